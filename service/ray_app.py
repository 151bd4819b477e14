"""The service on Ray Serve: `serve run service.ray_app:build bundle=minilm max_replicas=4`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application

from ltdi.errors import InvalidConfig
from service.app import ASGI, create_app, log_to_stdout
from service.settings import Settings, load_settings

LOOK_AGAIN_SECONDS = 0.05


class Scale(BaseModel):
    """How many replicas there are, and what each has; everything else is a setting of the service.

    A replica refuses by itself what its queue does not take (429). `max_ongoing_requests` therefore lies above
    `queue_length`: Ray holds requests back beyond it, and their callers wait without being told.
    """

    model_config = ConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(4, ge=1)
    target_ongoing_requests: float = Field(8, gt=0)
    max_ongoing_requests: int = Field(128, ge=1)
    replica_cpus: float = Field(1, ge=0)
    replica_gpus: float = Field(0, ge=0)

    def options(self, settings: Settings) -> dict[str, Any]:
        """What Ray Serve calls them."""
        return {
            "max_ongoing_requests": self.max_ongoing_requests,
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
            },
            "ray_actor_options": {"num_cpus": self.replica_cpus, "num_gpus": self.replica_gpus},
            "graceful_shutdown_timeout_s": settings.drain_seconds + 1,
        }


class OneRequestId:
    """Leaves `X-Request-Id` of a response to Ray's proxy, which adds the one that it gave the request."""

    def __init__(self, app: ASGI) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """ASGI."""

        async def send_without(message: dict) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = message | {"headers": kept}
            await send(message)

        await self.app(scope, receive, send_without)


@serve.ingress()
class Replica:
    """One copy of the service: its own bundles, queue, inference thread and cache."""

    def __init__(self, settings: Settings) -> None:
        log_to_stdout()
        self._app = create_app(settings)
        self._app.add_middleware(OneRequestId)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app; Ray Serve runs its lifespan."""
        return self._app

    async def check_health(self) -> None:
        """Wait while the default bundle is being loaded, so that a new replica gets no request before it can answer.

        Raises:
            RuntimeError: the replica should be replaced.
        """
        state = self._app.state.service
        while state.models.default.state == "loading":
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        if reasons := state.ready_reasons():
            raise RuntimeError("; ".join(reasons))


def build(arguments: dict[str, Any]) -> Application:
    """The application that `serve run` and a Serve config file name.

    A replica is a process already, so torch runs in a thread of it; `worker=process` takes another one beside each.

    Args:
        arguments: fields of `Scale` and settings of the service; `LTDI_*` variables of this process count too.

    Raises:
        InvalidConfig: an unknown or impossible one.
    """
    chosen = {name: value for name, value in arguments.items() if name in Scale.model_fields}
    flags = {name: value for name, value in arguments.items() if name not in Scale.model_fields}
    if unknown := sorted(set(flags) - set(Settings.model_fields)):
        raise InvalidConfig(f"{unknown[0]!r} is neither a setting of the service nor one of {', '.join(Scale.model_fields)}")
    try:
        scale = Scale(**chosen)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidConfig(f"{first['loc'][0]} is {first['input']!r}: {first['msg'].lower()}") from error
    settings = Settings(**load_settings({"worker": "thread"} | flags).model_dump())
    return serve.deployment(Replica, name="ltdi", **scale.options(settings)).bind(settings)
