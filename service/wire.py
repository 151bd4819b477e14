"""What goes between the server and the process that runs torch: pickled values in frames. No other process has an end."""

from __future__ import annotations

import pickle
import select
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltdi import Bundle
from ltdi.adapters import AdapterBundle

SIZE = 8  # bytes of a frame's length
CHUNK = 2**20


def pack(value: Any) -> bytes:
    """A value as bytes; a bundle as its digest, a tensor as plain bytes, which takes a tenth of the time of its own way."""
    made = BytesIO()
    pickler = pickle.Pickler(made, protocol=5)
    pickler.dispatch_table = {Tensor: _reduced_tensor, Bundle: _named_bundle, AdapterBundle: _named_bundle}  # type: ignore[assignment]
    pickler.dump(value)
    return made.getvalue()


def unpack(content: bytes, bundles: Mapping[str, Bundle] | None = None) -> Any:
    """The value of bytes that `pack` made.

    Args:
        bundles: those that are here, by digest.

    Raises:
        KeyError: a bundle that is not here.
    """
    return Unpickler(content, bundles or {}).load()


class Unpickler(pickle.Unpickler):
    """Finds bundles by their digests."""

    def __init__(self, content: bytes, bundles: Mapping[str, Bundle]) -> None:
        super().__init__(BytesIO(content))
        self._bundles = bundles

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for."""
        return self._bundles.__getitem__ if name == bundle_of.__name__ else super().find_class(module, name)


def bundle_of(digest: str) -> Bundle:
    """Stands in what is packed for a bundle that the other side has."""
    raise LookupError(f"bundle {digest[:12]} is found by `unpack` only")


def _named_bundle(bundle: Bundle | AdapterBundle) -> tuple[Any, ...]:
    return bundle_of, (bundle.digest,)


def _reduced_tensor(tensor: Tensor) -> tuple[Any, ...]:
    array = tensor.detach().cpu().numpy() if tensor.requires_grad or not tensor.is_cpu else tensor.numpy()
    return _tensor, (array.tobytes(), array.dtype.str, array.shape)


def _tensor(content: bytes, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(content), dtype).reshape(shape))


@dataclass(frozen=True)
class SentError:
    """An error on its way.

    Args:
        error: itself.
        at: places where it was raised, which it does not take along by itself.
    """

    error: BaseException
    at: list[str]

    def arrived(self) -> BaseException:
        """The error, with its places as `at`."""
        self.error.at = self.at  # type: ignore[attr-defined]
        return self.error


def frame(content: bytes) -> bytes:
    """Content as it goes through a socket: its length, then itself."""
    return len(content).to_bytes(SIZE, "little") + content


class Buffer:
    """Bytes as they come, and the whole frames among them."""

    def __init__(self) -> None:
        self._held = bytearray()

    def add(self, received: bytes) -> None:
        """Some more bytes."""
        self._held += received

    def whole(self) -> bytes | None:
        """The next frame's content, taken out; None where it has not come yet."""
        end = SIZE + int.from_bytes(self._held[:SIZE], "little")
        if len(self._held) < max(end, SIZE):
            return None
        content = bytes(self._held[SIZE:end])
        del self._held[:end]
        return content


class Frames:
    """Whole frames of a socket that others write to."""

    def __init__(self, source: socket.socket) -> None:
        self._source, self._buffer = source, Buffer()
        self._readable = select.poll()
        self._readable.register(source, select.POLLIN | select.POLLHUP)

    def take(self, wait: bool) -> Iterator[bytes]:
        """Those that are there; where `wait` and there is none, the first that comes.

        Raises:
            EOFError: the other end is closed.
        """
        while True:
            while (whole := self._buffer.whole()) is not None:
                wait = False
                yield whole
            if not wait and not self._readable.poll(0):
                return
            if not (received := self._source.recv(CHUNK)):
                raise EOFError("the other end is closed")
            self._buffer.add(received)
