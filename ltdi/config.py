"""Frozen dataclasses to and from JSON; unknown keys stop it and name the nearest known one."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

from ltdi.errors import InvalidConfig

C = TypeVar("C")


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as JSON values."""
    return asdict(config)


def from_json(kind: type[C], values: Any, where: str = "config") -> C:
    """A dataclass from JSON values; absent keys take their defaults.

    Raises:
        InvalidConfig: an unknown key, a value of the wrong type, or a missing one.
    """
    if not isinstance(values, dict):
        raise InvalidConfig(f"{where} must be an object, not {type(values).__name__}", field=where)
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise InvalidConfig(f"{where} has the unknown key {key!r}; {nearest(key, known)}", field=where)
    try:
        return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()})
    except TypeError as error:
        raise InvalidConfig(f"{where} is incomplete: {error}", field=where) from error


def nearest(key: str, known: list[str]) -> str:
    """A hint at the known name that is closest to `key`."""
    close = difflib.get_close_matches(key[:80], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else _value(options[0], value, where)
    if is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InvalidConfig(f"{where} must be a list", field=where)
        return tuple(_value(typing.get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        raise InvalidConfig(f"{where} is {value!r}; expected {hint.__name__}", field=where)
    return value
