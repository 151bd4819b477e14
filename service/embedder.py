"""Texts of a request to features by a remote body, while the generator does other work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ltdi import SupportSet
from ltdi.bodies.remote import RemoteBody
from ltdi.errors import EmbedderTimeout, InvalidConfig
from service.jobs import FULL_PAUSE
from service.problems import Problem
from service.settings import Settings

MAX_KEY_BYTES = 8 * 2**10


def remote_body(settings: Settings) -> RemoteBody | None:
    """The embedding endpoint that the settings name, or None.

    Raises:
        InvalidConfig: an impossible address, or a key file that cannot be read.
    """
    if not settings.embedder_url:
        return None
    return RemoteBody(
        settings.embedder_url,
        settings.embedder_protocol,
        settings.embedder_model,
        embedder_key(settings.embedder_key_file),
        timeout=settings.embedder_seconds,
        retries=settings.embedder_retries,
        batch=settings.embedder_batch,
        concurrency=settings.embedder_concurrency,
    )


def embedder_key(file: str) -> str:
    """The bearer token that a file holds; none where no file is named.

    Raises:
        InvalidConfig: it cannot be read, or is empty.
    """
    if not file:
        return ""
    try:
        with Path(file).open("rb") as opened:
            key = opened.read(MAX_KEY_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"embedder_key_file {Path(file).name!r} cannot be read as ASCII text") from error
    if not key:
        raise InvalidConfig(f"embedder_key_file {Path(file).name!r} is empty; leave the setting out where no key is needed")
    return key


class Embedder:
    """Embeds the texts of requests, those of `most` requests at a time; more are refused."""

    def __init__(self, most: int) -> None:
        self._most, self._busy = most, 0

    async def of_task(self, body: RemoteBody, task: SupportSet, truncate: bool, deadline: float) -> Mapping[str, Tensor]:
        """The features `[D]` of each text of a task.

        Args:
            deadline: `time.monotonic()` by which they must be there.

        Raises:
            Problem: too many requests wait for the endpoint (429).
            InvalidText, EmbedderFailed, EmbedderTimeout: what the endpoint says, or that it says nothing.
        """
        features = await self.of_texts(body, task.texts, truncate, deadline)
        return await asyncio.to_thread(lambda: dict(zip(task.texts, features.unbind(), strict=True)))

    async def of_texts(self, body: RemoteBody, texts: Sequence[str], truncate: bool, deadline: float) -> Tensor:
        """Features `[M, D]`; raises as `of_task` does."""
        if self._busy >= self._most:
            await asyncio.sleep(FULL_PAUSE)
        if self._busy >= self._most:
            raise Problem("queue-full", f"{self._busy} requests wait for the embedding endpoint, as many as may")
        self._busy += 1
        try:
            parts = await _answers(body, texts, truncate, deadline)
            return await asyncio.to_thread(body.joined, parts)
        finally:
            self._busy -= 1


async def _answers(body: RemoteBody, texts: Sequence[str], truncate: bool, deadline: float) -> list[np.ndarray]:
    """The answers of all calls; those that have not begun are given up where one fails, or the caller leaves."""
    calls = body.submit(texts, truncate, deadline)
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await asyncio.gather(*map(asyncio.wrap_future, calls))
    except TimeoutError as error:
        raise EmbedderTimeout("the deadline passed before the embedding endpoint had read all texts") from error
    finally:
        for call in calls:
            call.cancel()
