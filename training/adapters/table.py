"""The table of adapters: every method on every task left out, settings chosen on the tasks of the other folds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.adapters.tasks import FOLDS, MEASURED, RECIPES, fold_of

Rows = Mapping[str, list]  # task -> a number, or a dictionary of closed forms, for each seed
FAMILIES = {
    "frozen body": ("frozen, mean pooled", "frozen, mean pooled, unit length"),
    "default adapter": ("default adapter",),
    "multi-task LoRA": ("multi-task",),
    "mean training LoRA": ("mean adapter",),
    "picked training LoRA": ("picked",),
    "retrieved training LoRA": ("retrieved",),
    "condition of another task": ("condition of another task",),
    "generated, closed form": ("generated, closed form",),
    "names hidden, closed form": ("generated, names hidden, closed form",),
}
PLAIN = {"generated": "generated", "names hidden": "generated, names hidden"}
AGAINST = (
    "frozen body", "multi-task LoRA", "mean training LoRA", "picked training LoRA", "retrieved training LoRA",
    "condition of another task", "names hidden",
)  # fmt: skip


def read_results(folder: Path) -> dict[str, dict]:
    """What each pass said of each measured task that all passes are done with, joined."""
    found: dict[str, dict] = {}
    for name in MEASURED:
        for part in ("baselines", "generated"):
            path = folder / f"{name}.{part}.json"
            if path.is_file():
                found.setdefault(name, {}).update(json.loads(path.read_text(encoding="utf-8")))
        seeds = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}.picked?.json"))]
        if seeds:
            found.setdefault(name, {}).update(picked=[said["picked"] for said in seeds], chosen=[s["chosen"] for s in seeds])
    return {name: said for name, said in found.items() if {"generated", "multi-task", "picked"} <= set(said)}


def make_table(found: Mapping[str, dict]) -> dict:
    """Accuracies in per cent by method and task, means, and paired differences with their 95 % intervals over tasks."""
    rows: dict[str, dict[str, list[float]]] = {}
    for family, variants in FAMILIES.items():
        if all(variant in said for said in found.values() for variant in variants):
            rows[family] = {name: _chosen(found, variants, name) for name in found}
    for title, key in PLAIN.items():
        own = {name: said[key] for name, said in found.items() if key in said}
        if own:
            rows[title] = own
    means = {title: {name: _mean(values) for name, values in own.items()} for title, own in rows.items()}
    table = {title: {"mean": round(_mean(own.values()), 2)} | {n: round(v, 1) for n, v in own.items()} for title, own in means.items()}
    differences = {
        own: {title: _difference(_paired(rows[own], rows[title])) for title in AGAINST if title in rows and title != own}
        for own in ("generated", "generated, closed form", "names hidden")
    }
    return {"accuracy": table, "less": differences}


def _chosen(found: Mapping[str, dict], variants: Sequence[str], name: str) -> list[float]:
    """A task's accuracies by the variant and closed form that are best on the measured tasks of other folds."""
    own = _fold(name)
    elsewhere = [said for other, said in found.items() if _fold(other) != own] or list(found.values())
    choices = [(variant, head) for variant in variants for head in elsewhere[0][variant][0]]
    variant, head = max(choices, key=lambda c: sum(_mean(row[c[1]] for row in said[c[0]]) for said in elsewhere))
    return [row[head] for row in found[name][variant]]


def _fold(name: str) -> int:
    return fold_of(RECIPES[name][0])


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def _paired(own: Rows, other: Rows) -> list[float]:
    """A task's mean difference over the draws that both have; the first ones where one has fewer."""
    return [_mean(a - b for a, b in zip(own[name], other[name], strict=False)) for name in own]


def _difference(values: Sequence[float]) -> dict[str, float]:
    """Mean, half the 95 % interval, and on how many tasks it is above 0."""
    mean = _mean(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
    return {
        "mean": round(mean, 2), "interval": round(1.96 * spread / math.sqrt(len(values)), 2),
        "above": sum(v > 0 for v in values), "tasks": len(values),
    }  # fmt: skip


def lines(table: dict) -> list[str]:
    """The table for a page, tasks by fold."""
    accuracy = table["accuracy"]
    names = sorted({n for row in accuracy.values() for n in row if n != "mean"}, key=lambda n: (_fold(n), MEASURED.index(n)))
    out = ["| task | fold | " + " | ".join(accuracy) + " |", "|---" * (len(accuracy) + 2) + "|"]
    for name in ["mean", *names]:
        fold = "" if name == "mean" else str(_fold(name))
        out.append(f"| {name} | {fold} | " + " | ".join(f"{row[name]:.1f}" if name in row else "" for row in accuracy.values()) + " |")
    assert len(FOLDS) == 4
    return out
