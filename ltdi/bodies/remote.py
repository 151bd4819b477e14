"""Texts to features, by an embedding endpoint: OpenAI's `/v1/embeddings`, or `/embed` of text-embeddings-inference."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import torch
from torch import Tensor, nn

from ltdi.bodies.features import MAX_FEATURE
from ltdi.bodies.texts import check_texts
from ltdi.errors import EmbedderFailed, EmbedderTimeout, InvalidConfig, InvalidText

PATHS = {"openai": "/v1/embeddings", "tei": "/embed"}
PASSING = frozenset({408, 424, 425, 429, 500, 502, 503, 504})  # worth another try
OF_TEXTS = frozenset({400, 413, 422})  # together with a word of tokens: a text is too long
MAX_ANSWER_BYTES = 128 * 2**20
FIRST_PAUSE = 0.1  # seconds; doubled at every try
SECRET = re.compile(r"https?://\S+|\S{20,}")  # addresses, keys and paths


class _MayPass(Exception):
    """An error after which another try may help.

    Args:
        error: what is raised where there is none.
        pause: seconds that the endpoint asks for.
    """

    def __init__(self, error: EmbedderFailed | InvalidText, pause: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.pause = error, pause


class RemoteBody(nn.Module):
    """A text encoder behind HTTP. Texts go out in batches, some at a time; each batch is tried again where that may help.

    It may be used from several threads. Nothing is sent before texts are to be embedded.

    Args:
        url: of the server, or of the endpoint itself; ends in `/v1` where the server says so.
        protocol: `openai` (OpenAI, vLLM and others) or `tei` (text-embeddings-inference).
        model: the model's name as the endpoint knows it; left out of the request where empty.
        key: sent as a bearer token.
        feature_size: D; 0 takes the size of the first answer, and holds the endpoint to it.
        timeout: seconds for one batch, a try.
        retries: further tries of a batch.
        batch: texts in one call.
        concurrency: calls at a time.

    Raises:
        InvalidConfig: an argument that cannot be.
    """

    kind = "text"
    remote = True
    installed = True

    def __init__(
        self, url: str, protocol: str = "openai", model: str = "", key: str = "", *, feature_size: int = 0,
        timeout: float = 10.0, retries: int = 2, batch: int = 32, concurrency: int = 8,
    ) -> None:
        super().__init__()
        if min(batch, concurrency) < 1 or min(retries, feature_size) < 0 or not timeout > 0:
            raise InvalidConfig("batch and concurrency are 1 or more, retries and feature_size 0 or more, timeout above 0")
        self.url = endpoint(url, protocol)
        self.protocol, self.model_name, self.feature_size = protocol, model, feature_size
        self.timeout, self.retries, self.batch = timeout, retries, batch
        self._size_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="ltdi-embedder")
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._http = httpx.Client(limits=limits)
        self.use_key(key)

    def use_key(self, key: str) -> None:
        """Send another bearer token from now on; none where it is empty.

        Raises:
            InvalidConfig: a key that no header can hold.
        """
        self._key = checked_key(key)

    @property
    def identity(self) -> str:
        """What tells its features from those of another: `remote:MODEL`, or the protocol where no model is named."""
        return f"remote:{self.model_name or self.protocol}"

    def prepare(self, texts: Sequence[str], field: str, truncate: bool = False) -> tuple[str, ...]:
        """Texts that can be sent; only the endpoint knows which are too long.

        Raises:
            InvalidText: not a string, or empty.
        """
        return check_texts(texts, field)

    def too_long(self, texts: Sequence[str]) -> int:
        """How many texts are known to be cut: none, as the endpoint does not say."""
        return 0

    def embed(self, texts: Sequence[str], truncate: bool = False) -> Tensor:
        """Features `[M, D]` of texts, float32.

        Args:
            truncate: ask the endpoint to cut texts that are too long; `openai` has no such request.

        Raises:
            InvalidText: the endpoint says that a text is too long.
            EmbedderTimeout: it did not answer in time.
            EmbedderFailed: it refused, could not be reached, or answered with something else.
        """
        calls = self.submit(texts, truncate)
        try:
            return self.joined([call.result() for call in calls])
        finally:
            for call in calls:
                call.cancel()

    def submit(self, texts: Sequence[str], truncate: bool = False, deadline: float = float("inf")) -> list[Future]:
        """The calls that embed `texts`, begun as room allows; each gives features `[m, D]`, a NumPy array.

        Args:
            deadline: `time.monotonic()` after which none is tried any more.
        """
        parts = [list(texts[at : at + self.batch]) for at in range(0, len(texts), self.batch)]
        return [self._pool.submit(self._embed_batch, part, truncate, deadline) for part in parts]

    def joined(self, parts: Sequence[np.ndarray]) -> Tensor:
        """The features of all calls, `[M, D]`."""
        return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0, self.feature_size)

    def close(self) -> None:
        """Give up what waits, and close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    def _embed_batch(self, texts: list[str], truncate: bool, deadline: float) -> np.ndarray:
        for tried in range(self.retries + 1):
            try:
                return self._try(texts, truncate, deadline)
            except _MayPass as passing:
                pause = max(passing.pause, FIRST_PAUSE * 2**tried * random.uniform(1, 1.5))
                if tried == self.retries or pause > min(self.timeout, deadline - time.monotonic()):
                    raise passing.error from passing
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _try(self, texts: list[str], truncate: bool, deadline: float) -> np.ndarray:
        until = min(deadline, time.monotonic() + self.timeout)
        if (left := until - time.monotonic()) <= 0:
            raise EmbedderTimeout("the deadline passed before the embedding endpoint was asked")
        try:
            answer, content = self._post(self._request(texts, truncate), until, left)
        except httpx.TimeoutException as error:
            late = EmbedderTimeout(f"the embedding endpoint did not answer within {left:.3g} seconds")
            raise _MayPass(late) from error
        except httpx.TransportError as error:
            lost = EmbedderFailed(f"the embedding endpoint cannot be reached ({type(error).__name__})")
            raise _MayPass(lost) from error
        except httpx.HTTPError as error:
            raise EmbedderFailed(f"the embedding endpoint's answer cannot be read ({type(error).__name__})") from error
        if answer.status_code in PASSING:
            refused = self._refused(answer.status_code, content)
            raise _MayPass(refused, _seconds(answer.headers.get("retry-after", "")))
        if answer.status_code != 200:
            raise self._refused(answer.status_code, content)
        return self._features(content, len(texts))

    def _request(self, texts: list[str], truncate: bool) -> dict[str, Any]:
        if self.protocol == "tei":
            return {"inputs": texts, "truncate": truncate}
        named = {"model": self.model_name} if self.model_name else {}
        return {"input": texts, "encoding_format": "float"} | named

    def _post(self, body: dict[str, Any], until: float, left: float) -> tuple[httpx.Response, bytes]:
        """The response and its content, read while there is time and room for it."""
        content = bytearray()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with self._http.stream("POST", self.url, json=body, headers=headers, timeout=left) as answer:
            for part in answer.iter_bytes():
                content += part
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the answer is too slow")
                if len(content) > MAX_ANSWER_BYTES:
                    raise EmbedderFailed(f"the embedding endpoint's answer is larger than {MAX_ANSWER_BYTES} bytes")
        return answer, bytes(content)

    def _refused(self, status: int, content: bytes) -> EmbedderFailed | InvalidText:
        if status in (401, 403):
            return EmbedderFailed(f"the embedding endpoint refused the key ({status}); see the service's settings")
        said = safe_words(content, self._key)
        if status in OF_TEXTS and "token" in said.lower():
            return InvalidText(f"the embedding endpoint refused a text: {said}; shorten it, or say truncate")
        return EmbedderFailed(f"the embedding endpoint answered {status}" + (f": {said}" if said else ""))

    def _features(self, content: bytes, count: int) -> np.ndarray:
        """Rows `[m, D]` from an answer.

        Raises:
            EmbedderFailed: it is no list of as many vectors of one size, all finite.
        """
        try:
            rows = np.asarray(_rows(json.loads(content), self.protocol), dtype=np.float32)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise EmbedderFailed(
                f"the embedding endpoint's answer holds no embeddings as protocol {self.protocol!r} has them"
            ) from error
        if rows.ndim != 2 or len(rows) != count or not rows.size:
            raise EmbedderFailed(f"the embedding endpoint gave numbers of shape {list(rows.shape)} for {count} texts")
        if not np.isfinite(rows).all() or np.abs(rows).max() > MAX_FEATURE:
            raise EmbedderFailed(f"the embedding endpoint gave NaN, infinity, or a number beyond +-{MAX_FEATURE:g}")
        with self._size_lock:
            self.feature_size = self.feature_size or rows.shape[1]
        if rows.shape[1] != self.feature_size:
            raise EmbedderFailed(
                f"the embedding endpoint gave features of size {rows.shape[1]}; this body has {self.feature_size}"
            )
        return rows


def endpoint(url: str, protocol: str) -> str:
    """The address that texts are posted to.

    Raises:
        InvalidConfig: no http address, or an unknown protocol.
    """
    if protocol not in PATHS:
        raise InvalidConfig(f"protocol is {protocol!r}; known: {', '.join(PATHS)}", field="protocol")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidConfig("the embedder's url is not an address; give http://HOST:PORT", field="url") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise InvalidConfig("the embedder's url is http://HOST:PORT or https://..., without a user", field="url")
    path, last = parsed.path.rstrip("/"), PATHS[protocol]
    if path.endswith(last.rpartition("/")[2]):
        return str(parsed.copy_with(path=path))
    return str(parsed.copy_with(path=path.removesuffix("/v1") + last if protocol == "openai" else path + last))


def checked_key(key: str) -> str:
    """A key that fits into a header.

    Raises:
        InvalidConfig: it does not; its text is not shown.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidConfig("the embedder's key is not one line of visible ASCII", field="key")
    return key


def safe_words(content: bytes, key: str = "") -> str:
    """What an endpoint said of an error, at most 200 characters; keys, addresses and paths are left out."""
    try:
        said = json.loads(content)
        said = said.get("error", said.get("message", said.get("detail", ""))) if isinstance(said, dict) else ""
        said = said.get("message", "") if isinstance(said, dict) else said
    except (ValueError, RecursionError):
        return ""
    if not isinstance(said, str):
        return ""
    said = said.replace(key, "...") if key else said
    return "".join(c if c.isprintable() else " " for c in SECRET.sub("...", said))[:200].strip()


def _rows(answer: Any, protocol: str) -> list:
    """The vectors of an answer, in the order of the texts."""
    if protocol == "tei":
        return answer
    data = sorted(answer["data"], key=lambda item: item["index"])
    if [item["index"] for item in data] != list(range(len(data))):
        raise ValueError("the indices are not 0, 1, ...")
    return [item["embedding"] for item in data]


def _seconds(header: str) -> float:
    """`Retry-After` in seconds; 0 where it is absent or a date."""
    return float(header) if header.isdecimal() else 0.0
