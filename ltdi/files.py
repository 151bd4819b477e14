"""Files that leave the process: written to a temporary name, synced, renamed; never half there."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save
from torch import Tensor

from ltdi.errors import DamagedFile

ARCHIVES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
MAX_HEADER_BYTES, MAX_TENSORS = 2**20, 4096  # of a safetensors file: a header costs its reader fifty times its size
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file; the same tensors and metadata give the same bytes.

    The library's own writer takes metadata in the random order of a hash map, so the header is written here.
    """
    plain = _plain(tensors)
    end = 8 + int.from_bytes(plain[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} | json.loads(plain[8:end])
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + plain[end:]


def _plain(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file without metadata; by the library's writer for arrays where it can, which takes a third of the time."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if any(tensor.dtype == torch.bfloat16 for tensor in own.values()):
        return save(own)
    return save_arrays({name: tensor.numpy() for name, tensor in own.items()})


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Tensors and their metadata; metadata values are strings, JSON where structured."""
    write_bytes(path, safetensors_bytes(tensors, metadata))


def read_safetensors(source: str | Path | bytes, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file or of its bytes.

    Args:
        what: what the file should be, for messages.

    Raises:
        DamagedFile: it cannot be read, is not safetensors (a pickle, for example), or holds NaN or infinity.
    """
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise DamagedFile(f"the {what} cannot be read: {error.strerror}") from error
    if content[:2] in ARCHIVES and content[8:9] != b"{":  # a header's length can begin with the same bytes
        raise DamagedFile(f"the {what} is a pickle or zip archive, not safetensors; it was not opened")
    try:
        _, metadata = safetensors_header(content)
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"the {what} is not a whole safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise DamagedFile(f"tensor {name!r} of the {what} is {tensor.dtype}; known: {', '.join(map(str, DTYPES))}")
        if not all_finite(tensor):
            raise DamagedFile(f"tensor {name!r} of the {what} holds NaN or infinity")
    return tensors, metadata


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite; by NumPy where it can, in a third of the time for small ones."""
    if not tensor.is_floating_point():
        return True
    if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16:
        return bool(torch.isfinite(tensor).all())
    return bool(np.isfinite(tensor.detach().numpy()).all())


def safetensors_header(content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """What a safetensors file says of its tensors, by name, and its metadata; no tensor is read.

    Raises:
        ValueError: the header is not whole, too long, or no header.
    """
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise ValueError(f"it ends before its header of {length} bytes does")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
    tensors = parse_json(str(content[8 : 8 + length], "utf-8"))
    if not isinstance(tensors, dict):
        raise ValueError("its header is no JSON object")
    metadata = tensors.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata must be an object of strings")
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"it has {len(tensors)} tensors; at most {MAX_TENSORS} are read")
    return tensors, metadata


def parse_json(text: str) -> Any:
    """The value of a JSON text that others wrote.

    Raises:
        ValueError: it is not JSON, nested too deep to be read, or has a key twice in one object.
    """
    try:
        return DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys, each of which stands once."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return made


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, keys as given, a newline at the end."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def digest(*parts: bytes) -> str:
    """SHA-256 over the parts and their lengths, in hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()
