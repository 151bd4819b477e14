"""What adapters read: texts, or pairs of texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ltdi.bodies.texts import check_texts
from ltdi.errors import InvalidText

Texts = Sequence[str | tuple[str, str]]


def check_items(items: Sequence[Any], field: str) -> tuple[str | tuple[str, str], ...]:
    """Texts, or pairs of texts, none of them blank; not mixed.

    Raises:
        InvalidText: what is wrong with the first that is none; the error's field is `field` and its place.
    """
    checked = tuple(item if isinstance(item, str) else _pair(item, f"{field}/{i}") for i, item in enumerate(items))
    for i, item in enumerate(checked):
        try:
            check_texts([item] if isinstance(item, str) else item, field)
        except InvalidText as error:
            raise InvalidText(str(error), field=f"{field}/{i}") from error
    if len({type(item) for item in checked}) > 1:
        raise InvalidText("texts and pairs of texts are not mixed in one task", field=field)
    return checked


def columns(items: Texts) -> tuple[list[str], ...]:
    """What a tokenizer takes of texts, or of pairs."""
    if isinstance(items[0], str):
        return (list(items),)  # type: ignore[arg-type]
    return tuple(list(column) for column in zip(*items, strict=True))


def spoken(label: str) -> str:
    """A class label as words: `not_entailment` and `PlayMusic` are `not entailment` and `play music`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\W]+", " ", label).strip().lower()
    return parted or label


def size_of(item: str | tuple[str, str]) -> int:
    """Its bytes in UTF-8."""
    return len(item.encode()) if isinstance(item, str) else sum(len(text.encode()) for text in item)


def _pair(item: Any, field: str) -> tuple[str, str]:
    if not isinstance(item, list | tuple) or len(item) != 2 or not all(isinstance(text, str) for text in item):
        raise InvalidText(f"{item!r:.60} is neither a text nor a pair of two texts", field=field)
    return tuple(item)  # type: ignore[return-value]
