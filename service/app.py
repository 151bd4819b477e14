"""The application: state, request ids, logs, problems for every error, start and drain."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ltdi import Bundle, LtDiError, library_version
from service.encode import Cache
from service.metrics import Metrics
from service.models import Models
from service.openapi import document
from service.problems import Problem, framework_problem, located, problem_of, problem_response
from service.routes import router
from service.settings import Settings
from service.worker import Worker, WorkerDead

LOG = logging.getLogger("ltdi.service")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
ASGI = Callable[[dict, Callable, Callable], Awaitable[None]]


class State:
    """What the routes share.

    Args:
        bundles: served instead of those that the settings name.
    """

    def __init__(self, settings: Settings, bundles: list[Bundle] | None = None) -> None:
        self.settings, self.metrics, self.cache = settings, Metrics(), Cache(settings.cache_items)
        self.models = Models(settings, bundles, self.metrics)
        self.worker = Worker(
            settings.queue_length,
            settings.max_batch,
            lambda name, size: self.metrics.batch_size.labels(name).observe(size),
        )
        self.metrics.watch_queue(lambda: self.worker.depth, settings.queue_length)
        self.draining = False

    def live_reasons(self) -> list[str]:
        """Why the process should be restarted; empty when it should not."""
        return [] if self.worker.alive else ["the inference thread is not running"]

    def ready_reasons(self) -> list[str]:
        """Why no work should be sent; empty when it should."""
        default = self.models.default
        reasons = self.live_reasons()
        if self.draining:
            reasons.append("the service is shutting down")
        if default.state != "ready":
            reasons.append(f"model {default.name!r} is {default.state}: {default.reason}")
        return reasons

    async def drain(self) -> None:
        """Finish the work in hand, for `drain_seconds` at most."""
        self.draining = True
        await asyncio.to_thread(self.worker.stop, self.settings.drain_seconds)


def create_app(settings: Settings | None = None, bundles: list[Bundle] | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: defaults where absent.
        bundles: bundles to serve, instead of loading those that the settings name.
    """
    state = State(settings or Settings(), bundles)
    app = FastAPI(
        title="ltdi",
        version=library_version(),
        lifespan=_lifespan,
        summary="Weights on demand: classifier heads from a few examples",
        redirect_slashes=False,
    )
    app.state.service = state
    app.include_router(router)
    app.openapi = cache(lambda: document(app))
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(LtDiError, _on_library_error)
    app.add_exception_handler(WorkerDead, _on_dead_worker)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_middleware(Envelope, state=state)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.service
    state.worker.start()
    loading = threading.Thread(target=state.models.load_all, name="loading", daemon=True)
    loading.start()
    yield
    await state.drain()


class Envelope:
    """Around every request: its id, its place in metrics and log, and a problem where nothing else answered."""

    def __init__(self, app: ASGI, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = identifier = request_id_of(scope)
        timing: dict[str, float] = {}
        scope["state"] |= {"seconds": timing, "started": started}

        async def send_with_id(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identifier.encode())]
            await send(message)

        metrics = self.state.metrics
        metrics.in_flight.inc()
        try:
            await self._answer(scope, receive, send_with_id, identifier)
        except Exception as error:
            LOG.error("fault", extra={"fields": {"request_id": identifier} | fault_fields(error)})
            if not status:
                problem = Problem("fault", "something went wrong here; report it with the request id")
                await problem_response(problem, identifier)(scope, receive, send_with_id)
        finally:
            metrics.in_flight.dec()
            self._count(scope, status, time.perf_counter() - started, timing, identifier)

    async def _answer(self, scope: dict, receive: Callable, send: Callable, identifier: str) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        most = self.state.settings.max_header_bytes
        if size > most:
            problem = Problem("headers-too-large", f"the headers hold {size} bytes; at most {most}")
            self.state.metrics.rejected.labels("too_large").inc()
            await problem_response(problem, identifier)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _count(self, scope: dict, status: int, seconds: float, timing: dict[str, float], identifier: str) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self.state.metrics.requests.labels(route, str(status)).inc()
        self.state.metrics.duration.labels(route).observe(seconds)
        fields = {"request_id": identifier, "route": route, "code": status, "seconds": round(seconds, 6)}
        fields |= {f"{stage}_seconds": round(value, 6) for stage, value in timing.items() if stage != "total"}
        LOG.info("request", extra={"fields": fields})


def request_id_of(scope: dict) -> str:
    """The caller's `X-Request-Id` where it is a plain token, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return text
    return uuid.uuid4().hex


def fault_fields(error: BaseException) -> dict[str, Any]:
    """Where an error was raised, for the log; its message is left out, as it may hold a caller's labels."""
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "at": [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-8:]]}


def _answer(request: Request, problem: Problem) -> Response:
    problem = located(problem, request.headers.get("content-type", ""))
    reason = problem.kind.reason
    if reason is not None:
        request.app.state.service.metrics.rejected.labels(reason).inc()
    return problem_response(problem, request.state.request_id)


async def _on_problem(request: Request, error: Problem) -> Response:
    return _answer(request, error)


async def _on_library_error(request: Request, error: LtDiError) -> Response:
    problem = problem_of(error)
    if problem.kind.status >= 500:
        request.app.state.service.metrics.check_failures.labels(error.code).inc()
        LOG.error("fault", extra={"fields": {"request_id": request.state.request_id} | fault_fields(error)})
    return _answer(request, problem)


async def _on_dead_worker(request: Request, error: WorkerDead) -> Response:
    return _answer(
        request, Problem("not-ready", "the inference thread is not running; the process has to be restarted")
    )


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    problem = framework_problem(error.status_code, request.url.path, request.method, error.headers)
    return _answer(request, problem)


async def _on_validation(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return _answer(request, Problem("request-invalid", f"{name}: {first['msg'].lower()}", name))


class JsonLines(logging.Formatter):
    """A log record as one JSON line; never examples, labels or keys."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= fault_fields(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def log_to_stdout() -> None:
    """JSON lines of this service and of its server, on standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name in ("ltdi", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
