"""Ours: do generated heads repeat training heads? Distances to the nearest of them, with controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.figures import plots
from training.figures.models import condition_of, noise_of
from training.figures.record import interval, text
from training.figures.references import linear_map
from training.figures.setting import Setting
from training.figures.tasks import Lab, Tasks

TITLE = "memorisation: distance to the nearest training head, with controls"
PAPER = (
    "nothing. Weight generators have been shown to replicate their training checkpoints (Zeng et al., 2026), which would show as "
    "generated heads that lie nearer to training heads than optima of new tasks do, or are no better than those."
)
KINDS = {"Lv-Di": 1, "Lt-Di": 3}
BLOCK = 50


def measure(setting: Setting) -> dict[str, Any]:
    """Each row: distance to the nearest training optimum, to the task's own optimum, accuracy; over seeds."""
    found = [_of_seed(setting, seed) for seed in setting.seeds]
    rows = {name: {key: interval([one[name][key] for one in found]) for key in row} for name, row in found[0].items()}
    return {"training_heads": len(setting.lab().train.classes), "rows": rows}


def _of_seed(setting: Setting, seed: int) -> dict[str, dict[str, float]]:
    lab = setting.lab(seed)
    tasks, known = lab.measured(setting.part), lab.codec.encode(lab.train.optimum)
    own = lab.codec.encode(tasks.optimum)
    fixed = {
        "optima of the new tasks": own,
        "linear map of the class means": linear_map(lab, tasks),
        "nearest training head to the optimum": nearest(own, known)[1],
        "training head of the nearest support": known[_nearest_support(lab, tasks)],
        "mean training head": torch.zeros_like(own),
    }
    rows = {name: _row(lab, tasks, known, heads) for name, heads in fixed.items()}
    for name, m in KINDS.items():
        model = setting.model(lab, m)
        made = lab.codec.encode(model.generate(lab, tasks).heads)
        rows[f"{name}, generated"] = _row(lab, tasks, known, made)
        rows[f"{name}, generated, to the optimum's length"] = _row(lab, tasks, known, _as_long(made, own))
        other = model.chain(condition_of(tasks).roll(1, 0), noise_of(tasks, 0)).view_as(own)
        rows[f"{name}, support of another task"] = _row(lab, tasks, known, other)
    return rows


def _row(lab: Lab, tasks: Tasks, known: Tensor, heads: Tensor) -> dict[str, float]:
    own = lab.codec.encode(tasks.optimum)
    return {
        "to_training": float(nearest(heads, known)[0].mean()),
        "to_own": float((heads - own).square().flatten(1).mean(1).mean()),
        "accuracy": float(tasks.accuracy(lab.codec.decode(heads)).mean()),
    }


def nearest(heads: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared distance `[B]` of heads `[B, N, D + 1]` to the nearest of `known`, and that one; classes in any order.

    Rows are matched greedily, the closest pair first: the order of a head's classes means nothing.
    """
    distances, found = [], []
    for part in heads.split(BLOCK):
        rows = torch.cdist(part.flatten(0, 1), known.flatten(0, 1)).square()
        cost = rows.view(len(part), heads.shape[1], len(known), -1).transpose(1, 2)  # [B, known, N, N]
        total, order = greedy_match(cost)
        least = total.argmin(1)
        distances.append(total[torch.arange(len(part)), least] / part[0].numel())
        chosen = order[torch.arange(len(part)), least]
        found.append(known[least].gather(1, chosen.unsqueeze(2).expand_as(part)))
    return torch.cat(distances), torch.cat(found)


def greedy_match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of costs `[...]` and the column of each row `[..., N]` when the cheapest pair of `[..., N, N]` is taken first."""
    ways, cost = cost.shape[-1], cost.clone()
    total, order = torch.zeros(cost.shape[:-2]), torch.zeros(cost.shape[:-1], dtype=torch.long)
    for _ in range(ways):
        least, place = cost.flatten(-2).min(-1)
        row, column = place // ways, place % ways
        total = total + least
        order.scatter_(-1, row.unsqueeze(-1), column.unsqueeze(-1))
        taken = (torch.arange(ways) == row.unsqueeze(-1)).unsqueeze(-1) | (torch.arange(ways) == column.unsqueeze(-1)).unsqueeze(-2)
        cost = cost.masked_fill(taken, float("inf"))
    return total, order


def _nearest_support(lab: Lab, tasks: Tasks) -> Tensor:
    return torch.cdist(condition_of(tasks), condition_of(lab.train)).argmin(1)


def _as_long(heads: Tensor, own: Tensor) -> Tensor:
    return heads * (own.flatten(1).norm(dim=1) / heads.flatten(1).norm(dim=1)).reshape(-1, 1, 1)


def draw(values: dict[str, Any], path: Path) -> None:
    """Bars of both distances."""
    figure, (axis,) = plots.panels(1, width=8)
    names = list(values["rows"])
    for shift, key, colour, label in ((-0.2, "to_training", plots.TRAJECTORY, "nearest training head"), (0.2, "to_own", plots.VANILLA, "the task's own optimum")):
        found = [values["rows"][name][key] for name in names]
        axis.barh([i + shift for i in range(len(names))], [one["mean"] for one in found], 0.38, xerr=[one["half"] or 0 for one in found], color=colour, label=label)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("mean squared distance, 1 is that of the mean head to the optimum")
    axis.legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = [
        f"Nearest of {values['training_heads']} training heads, classes matched in any order. A head that is shrunk lies nearer to everything, "
        "so that the rows *to the optimum's length* are those to compare with the first.", "",
        "| | to the nearest training head | to the task's own optimum | accuracy, % |", "|---|---|---|---|",
    ]  # fmt: skip
    return lines + [
        f"| {name} | {text(row['to_training'])} | {text(row['to_own'])} | {text(row['accuracy'], 2)} |" for name, row in values["rows"].items()
    ]


def claims(values: dict[str, Any]) -> list[Any]:
    """None: the paper makes no claim of it."""
    return []
