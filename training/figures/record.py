"""Numbers of figures: intervals over seeds, and the JSON that holds them with seed, commit, budget and time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltdi.files import write_json

T_95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's, by degrees of freedom

Interval = dict[str, Any]


def interval(values: Sequence[float]) -> Interval:
    """Mean and half-width of Student's 95 % interval over seeds, with the values; no half-width for one seed."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return {"mean": mean, "half": None, "values": list(values)}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    free = min(len(values) - 1, len(T_95) - 1)
    return {"mean": mean, "half": T_95[free] * deviation / math.sqrt(len(values)), "values": list(values)}


def difference(left: Interval, right: Interval) -> Interval:
    """Of two quantities measured with the same seeds on the same tasks, seed by seed."""
    return interval([a - b for a, b in zip(left["values"], right["values"], strict=True)])


def sign(found: Interval) -> int:
    """-1 or 1 where the whole interval lies on one side of 0, else 0."""
    half = math.inf if found["half"] is None else found["half"]
    return 0 if abs(found["mean"]) <= half else (1 if found["mean"] > 0 else -1)


def text(found: Interval, digits: int = 4, signed: bool = False) -> str:
    """`0.4580 ± 0.0021`."""
    mean = f"{found['mean']:{'+' if signed else ''}.{digits}f}"
    return mean if found["half"] is None else f"{mean} ± {found['half']:.{digits}f}"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what became of it.

    Args:
        section: of the paper.
        says: the claim.
        verdict: one of `VERDICTS`.
        why: with its numbers.
    """

    section: str
    says: str
    verdict: str
    why: str


HOLDS, CONDITION, NOT_HERE = "holds", "holds with a condition", "does not hold here"
VERDICTS = (HOLDS, CONDITION, NOT_HERE, "not measured yet")


def counted(signs: Sequence[int]) -> str:
    """The verdict on "ahead everywhere" from the sign of each case: all ahead, more ahead than behind, or not."""
    ahead, behind = (sum(way == wanted for way in signs) for wanted in (1, -1))
    return HOLDS if ahead == len(signs) > 0 else (CONDITION if ahead > behind else NOT_HERE)


def write_record(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """`NAME.json` under `folder`."""
    path = folder / f"{name}.json"
    write_json(path, result)
    return path


def has_record(folder: Path, name: str) -> bool:
    """Whether the figure has been made."""
    return (folder / f"{name}.json").exists()


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """What `write_record` wrote."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
