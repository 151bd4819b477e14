"""A real embedding server on a free loopback port; it speaks both protocols and fails on demand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

Encode = Callable[[list[str]], np.ndarray]
SIZE = 128
MAX_WORDS = 200


def ngrams(texts: list[str]) -> np.ndarray:
    """Hashed character n-grams of unit length, `[M, SIZE]`."""
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="the extra `dev` is not installed")
    hashed = text.HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=SIZE)
    return hashed.transform(texts).toarray()


class Embedder:
    """The server.

    Args:
        encode: texts to features.

    `fails` holds what the next calls get instead of an answer, one each; nobody gets an answer while `held`; `calls` holds
    what was asked, `busy` and `peak` how many calls wait for their answer, now and at most.
    """

    def __init__(self, encode: Encode = ngrams) -> None:
        self.encode = encode
        self.reset()
        app = FastAPI()
        app.add_api_route("/v1/embeddings", self._openai, methods=["POST"])
        app.add_api_route("/embed", self._tei, methods=["POST"])
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 20
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def reset(self) -> None:
        """Forget what was asked; answer at once and well."""
        self.fails: list[Response] = []
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.held = False
        self.busy = self.peak = 0

    @property
    def texts(self) -> list[str]:
        """All texts that were sent."""
        return [text for call in self.calls for text in call.get("inputs", call.get("input"))]

    async def _openai(self, request: Request) -> Response:
        asked = await request.json()
        return await self._answer(request, asked, asked["input"], lambda rows: {
            "object": "list", "model": asked.get("model", ""),
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)][::-1],
        })  # fmt: skip

    async def _tei(self, request: Request) -> Response:
        asked = await request.json()
        long = [len(text.split()) for text in asked["inputs"] if len(text.split()) > MAX_WORDS]
        if long and not asked["truncate"]:
            said = f"Input validation error: `inputs` must have less than {MAX_WORDS} tokens. Given: {long[0]}"
            return JSONResponse({"error": said, "error_type": "Validation"}, 413)
        return await self._answer(request, asked, asked["inputs"], lambda rows: rows)

    async def _answer(self, request: Request, asked: dict, texts: list[str], form: Callable[[list], Any]) -> Response:
        self.calls.append(asked)
        self.keys.append(request.headers.get("authorization"))
        if self.fails:
            return self.fails.pop(0)
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        await asyncio.sleep(0.02)
        while self.held:
            await asyncio.sleep(0.01)
        self.busy -= 1
        cut = [" ".join(text.split()[:MAX_WORDS]) for text in texts]
        return JSONResponse(form((await asyncio.to_thread(self.encode, cut)).tolist()))

    def wait_until_busy(self) -> None:
        """Return once a call waits for its answer."""
        until = time.monotonic() + 20
        while not self.busy:
            assert time.monotonic() < until, "nothing was asked"
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop serving."""
        self.held = False
        self._server.should_exit = True
        self._thread.join(timeout=20)


@contextmanager
def embedder(encode: Encode = ngrams) -> Iterator[Embedder]:
    """A server for as long as the block lasts."""
    server = Embedder(encode)
    try:
        yield server
    finally:
        server.stop()
