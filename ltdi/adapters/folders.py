"""PEFT folders on disk, as loaders that watch a directory need them: whole or not there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from ltdi.adapters.adapter import Adapter
from ltdi.adapters.formats import CONFIG, MAX_ADAPTER_BYTES, WEIGHTS, from_files, to_files
from ltdi.errors import DamagedFile, InvalidInput

NAME = re.compile(r"\w[\w.-]{0,99}(/\w[\w.-]{0,99}){0,3}", re.ASCII)


def folder_of(root: str | Path, name: str) -> Path:
    """Where an adapter called `name` lies below `root`, which vLLM's filesystem resolver would look for there.

    Raises:
        InvalidInput: a name that is no plain one, or leads out of `root`, over a link too.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise InvalidInput(
            f"adapter name {name!r:.80} cannot be used; take letters, digits, '_', '-', '.', and '/' between parts", field="name"
        )
    root = Path(os.path.realpath(root))
    folder = Path(os.path.realpath(root / name))
    if os.path.commonpath([root, folder]) != str(root) or folder == root:
        raise InvalidInput(f"adapter name {name!r:.80} leads out of its directory", field="name")
    return folder


def write_folder(adapter: Adapter, folder: str | Path) -> Path:
    """Write a PEFT folder: into a temporary one beside it, each file synced, the config last, then renamed.

    An adapter that lies there already is replaced; for the moment between two renames it is not there.

    Returns:
        The folder, absolute.

    Raises:
        InvalidInput: something else than an adapter lies there.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not (folder / CONFIG).is_file():
        raise InvalidInput(f"{folder.name!r} is there already and is no adapter; take another name", field="name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        for name, content in to_files(adapter).items():
            _write_synced(temporary / name, content)
        os.chmod(temporary, 0o755)
        _sync(temporary)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def read_folder(folder: str | Path) -> Adapter:
    """An adapter from a PEFT folder; safetensors only, a pickle is not opened.

    Raises:
        DamagedFile: files are missing, too large, or must not be used.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        pickled = any((folder / f"adapter_model.{end}").exists() for end in ("bin", "pt"))
        raise DamagedFile(f"the adapter lacks {WEIGHTS}" + ("; its weights are a pickle, which is not opened" if pickled else ""))
    try:
        if (folder / WEIGHTS).stat().st_size > MAX_ADAPTER_BYTES:
            raise DamagedFile(f"{WEIGHTS} has more than {MAX_ADAPTER_BYTES} bytes")
        with (folder / CONFIG).open("rb") as file:
            config = file.read(2**21)
        return from_files((folder / WEIGHTS).read_bytes(), config)
    except OSError as error:
        raise DamagedFile(f"the adapter cannot be read: {error.strerror}") from error


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(path, 0o644)


def _sync(folder: Path) -> None:
    """Have the names in a directory written to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
