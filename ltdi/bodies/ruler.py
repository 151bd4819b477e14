"""Texts measured in tokens by the tokenizer alone, where the model is not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ltdi.errors import InvalidText

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


def load_ruler(folder: Path | None) -> Tokenizer | None:
    """The tokenizer of a model's folder, which neither cuts nor pads; None where it has no such file."""
    if folder is None or find_spec("tokenizers") is None or not (folder / TOKENIZER).is_file():
        return None
    from tokenizers import Tokenizer

    ruler = Tokenizer.from_file(str(folder / TOKENIZER))
    ruler.no_truncation()
    ruler.no_padding()
    return ruler


def refuse_long(long: Sequence[tuple[int, int]], most: int, field: str) -> None:
    """Refuse the first of the texts that are longer than `most` tokens.

    Args:
        long: place and tokens of each.

    Raises:
        InvalidText: there is one.
    """
    for i, length in long:
        raise InvalidText(f"the text has {length} tokens; this body reads {most}: shorten it, or say truncate", field=f"{field}/{i}")
