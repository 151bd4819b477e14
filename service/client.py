"""Clients, blocking and asynchronous: a task over HTTP, a ready `nn.Module` back."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any, Self, TypeVar, Unpack

import httpx
from httpx_retries import Retry, RetryTransport
from PIL import Image
from torch import Tensor

from ltdi import Head
from ltdi.adapters import Adapter
from service import exchanges
from service.exchanges import Exchange, HeadOptions, ServiceError, advance

__all__ = ["AsyncLtDiClient", "LtDiClient", "ServiceError", "png"]

T = TypeVar("T")
NO_RETRY = {"retry": Retry(total=0)}


class LtDiClient:
    """Talks to one service.

    Where the service is busy (429), not ready (503) or not to be reached, a request is sent again, after the
    `Retry-After` of the answer or a growing pause. Any other error is final, and so is a connection that breaks once
    something was sent. Proxies of the environment are not used.

    Args:
        base_url: for example `http://localhost:8080`.
        timeout: seconds that connecting, sending or waiting for the answer may take.
        retries: how often a request is sent again, at most.
        max_wait: seconds to wait before that, at most, whatever `Retry-After` says.
        api_key: sent as a bearer token.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 60.0,
        *,
        retries: int = 2,
        max_wait: float = 10.0,
        api_key: str | None = None,
    ) -> None:
        transport = RetryTransport(retry=_retry(retries, max_wait))
        self._http = httpx.Client(base_url=base_url, timeout=timeout, transport=transport, headers=_headers(api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate_head(
        self, inputs: Any = (), labels: Sequence[str] = (), **options: Unpack[HeadOptions]
    ) -> Head:
        """The head of a task.

        Args:
            inputs: features (a float tensor or array `[M, D]`), images as `ltdi.images.prepare_images` takes them, or
                texts; none where descriptions say enough.
            labels: one for each.
            options: see `HeadOptions`.

        Raises:
            ServiceError: the service's answer is an error.
            ValueError: a label that is not among `classes`, or images for a model that reads none.
        """
        return self._run(exchanges.generate_head(inputs, labels, **options))

    def generate_adapter(self, inputs: Sequence[Any], labels: Sequence[str], *, model: str, **options: Any) -> Adapter:
        """The LoRA adapter of a task.

        Args:
            inputs: texts, or pairs of texts.
            labels: one for each.
            model: one that makes adapters.
            options: `classes`, `descriptions`, `seed`, `base_model_name_or_path`, `check`, `fallback`, `truncate`.

        Raises:
            ServiceError: the service's answer is an error.
        """
        return self._run(exchanges.generate_adapter(inputs, labels, model=model, **options))

    def embed(self, inputs: Any, *, model: str | None = None) -> Tensor:
        """Features of images or texts, `[M, D]`."""
        return self._run(exchanges.embed(inputs, model))

    def predict(self, head: Head, queries: Tensor) -> dict[str, Any]:
        """Labels and probabilities of features `[Q, D]`; a convenience for trying a head."""
        return self._run(exchanges.predict(head, queries))

    def model(self, name: str) -> dict[str, Any]:
        """One bundle, as `/models/NAME` says."""
        return self._run(exchanges.model(name))

    def models(self) -> list[dict[str, Any]]:
        """The bundles that are served."""
        return self._run(exchanges.models())

    def ready(self) -> bool:
        """Whether the service takes work; false also where nothing listens yet. Asks once."""
        try:
            return self._run(exchanges.ready(), NO_RETRY)
        except httpx.TransportError:
            return False

    def _run(self, exchange: Exchange[T], extensions: dict[str, Any] | None = None) -> T:
        call, result = advance(exchange, None)
        while call is not None:
            answer = self._http.request(
                call.method, call.path, content=call.content, headers=call.headers, extensions=extensions
            )
            call, result = advance(exchange, answer)
        return result  # type: ignore[return-value]


class AsyncLtDiClient:
    """The same for `async` code; what takes time on the processor happens in a thread.

    Args:
        base_url, timeout, retries, max_wait, api_key: as for `LtDiClient`.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 60.0,
        *,
        retries: int = 2,
        max_wait: float = 10.0,
        api_key: str | None = None,
    ) -> None:
        transport = RetryTransport(retry=_retry(retries, max_wait))
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=timeout, transport=transport, headers=_headers(api_key)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate_head(
        self, inputs: Any = (), labels: Sequence[str] = (), **options: Unpack[HeadOptions]
    ) -> Head:
        """As `LtDiClient.generate_head`."""
        return await self._run(exchanges.generate_head(inputs, labels, **options))

    async def generate_adapter(self, inputs: Sequence[Any], labels: Sequence[str], *, model: str, **options: Any) -> Adapter:
        """As `LtDiClient.generate_adapter`."""
        return await self._run(exchanges.generate_adapter(inputs, labels, model=model, **options))

    async def embed(self, inputs: Any, *, model: str | None = None) -> Tensor:
        """As `LtDiClient.embed`."""
        return await self._run(exchanges.embed(inputs, model))

    async def predict(self, head: Head, queries: Tensor) -> dict[str, Any]:
        """As `LtDiClient.predict`."""
        return await self._run(exchanges.predict(head, queries))

    async def model(self, name: str) -> dict[str, Any]:
        """As `LtDiClient.model`."""
        return await self._run(exchanges.model(name))

    async def models(self) -> list[dict[str, Any]]:
        """As `LtDiClient.models`."""
        return await self._run(exchanges.models())

    async def ready(self) -> bool:
        """As `LtDiClient.ready`."""
        try:
            return await self._run(exchanges.ready(), NO_RETRY)
        except httpx.TransportError:
            return False

    async def _run(self, exchange: Exchange[T], extensions: dict[str, Any] | None = None) -> T:
        call, result = await asyncio.to_thread(advance, exchange, None)
        while call is not None:
            answer = await self._http.request(
                call.method, call.path, content=call.content, headers=call.headers, extensions=extensions
            )
            call, result = await asyncio.to_thread(advance, exchange, answer)
        return result  # type: ignore[return-value]


def _retry(retries: int, max_wait: float) -> Retry:
    """Which failures are met again: those where the service has not begun to work."""
    return Retry(
        total=retries,
        allowed_methods=("GET", "POST"),
        status_forcelist=(429, 503),
        retry_on_exceptions=(httpx.ConnectError, httpx.ConnectTimeout),
        backoff_factor=0.25,
        max_backoff_wait=max_wait,
    )


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def png(image: Tensor) -> bytes:
    """A grey image `[H, W]`, uint8, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
