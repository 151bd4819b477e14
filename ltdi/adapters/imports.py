"""`transformers` and `peft` as this package needs them: without network, without noise, their errors without paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ltdi.torchvision_ops import declare_missing


def prepare_imports() -> None:
    """Before `transformers` or `peft` is imported: no network, no forked tokenizers, and torchvision as they expect it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if find_spec("torchvision") is not None:
        declare_missing()


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, `transformers` neither draws bars nor reports that the head is new, which it always is."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def reason_of(error: BaseException, folder: Path) -> str:
    """The first line of a library's error, without the path."""
    return str(error).strip().split("\n")[0].replace(str(folder), folder.name)[:200]
