"""Every figure by its name, and how one is made: numbers, JSON, plot."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

from ltdi.config import nearest
from ltdi.errors import InvalidInput
from training.figures import (
    budget,
    curvature,
    figure1,
    figure3,
    figure4,
    figure5,
    figure6,
    figure7,
    gap,
    memorisation,
    table1,
    table2,
    table4,
    table7,
    variants,
)
from training.figures.elsewhere import Elsewhere
from training.figures.record import write_record
from training.figures.setting import Setting
from training.runs import commit

MINI = "mini-imagenet"
FIGURES: dict[str, ModuleType | Elsewhere] = {
    "table1": table1, "table1-mini": Elsewhere(table1, MINI), "table2": table2, "table4": table4, "figure1": figure1, "figure3": figure3,
    "figure3-mini": Elsewhere(figure3, MINI), "figure4": figure4, "figure5": figure5, "figure5-mini": Elsewhere(figure5, MINI),
    "figure6": figure6, "figure6-mini": Elsewhere(figure6, MINI), "figure7": figure7, "figure8": Elsewhere(figure7, MINI), "table7": table7, "table8": Elsewhere(table7, MINI),
    "table7-gpu": Elsewhere(table7, "omniglot", long=True), "table8-gpu": Elsewhere(table7, MINI, long=True),
    "curvature": curvature, "gap": gap, "variants": variants, "budget": budget, "memorisation": memorisation,
}  # fmt: skip


def figure(name: str) -> ModuleType | Elsewhere:
    """The module of a figure.

    Raises:
        InvalidInput: there is none of that name.
    """
    if name not in FIGURES:
        raise InvalidInput(f"no figure {name!r}; {nearest(name, list(FIGURES))}")
    return FIGURES[name]


def budget_of(module: ModuleType | Elsewhere, setting: Setting) -> dict[str, Any] | None:
    """The budget for the record: the figure's own where it has one, None where it reads what others measured, else the page's."""
    if isinstance(module, Elsewhere):
        return budget_of(module.of, module.on(setting))
    return module.budget(setting) if hasattr(module, "budget") else setting.budget


def make(name: str, setting: Setting, out: Path) -> dict[str, Any]:
    """Measure and draw one figure; `NAME.json` and `NAME.png` under `out`."""
    module, started, at = figure(name), time.process_time(), commit()
    values = module.measure(setting)
    result = {
        "figure": name, "title": module.TITLE, "commit": at, "seeds": list(setting.seeds)[: getattr(module, "MOST_SEEDS", None)], "part": setting.part,
        "quick": setting.quick, "budget": budget_of(module, setting), "seconds": round(time.process_time() - started, 1), "values": values,
    }  # fmt: skip
    write_record(out, name, result)
    module.draw(values, out / f"{name}.png")
    return result
