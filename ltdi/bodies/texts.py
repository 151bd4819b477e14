"""What every body that reads texts asks of them."""

from __future__ import annotations

from collections.abc import Sequence

from ltdi.errors import InvalidText
from ltdi.support import encodable


def check_texts(texts: Sequence[str], field: str) -> tuple[str, ...]:
    """The texts, each a string of Unicode that is not blank.

    Raises:
        InvalidText: one is not; the error's field is `field` and its place.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InvalidText(f"text {text!r:.60} is empty or no string; every text needs a word", field=f"{field}/{i}")
        if not encodable(text):
            raise InvalidText("the text holds half a surrogate pair; texts are Unicode", field=f"{field}/{i}")
    return tuple(texts)
