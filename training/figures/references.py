"""What needs no chain: closed forms and a linear map, on the laboratory's tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi import baselines
from training.figures.record import Interval, interval
from training.figures.setting import Setting
from training.figures.tasks import Lab, Tasks

PENALTIES = (1e-4, 1e-3, 1e-2)


def references(setting: Setting, shots: int) -> dict[str, dict[str, Interval | None]]:
    """Error (where the head is of the optimum's kind) and accuracy of each, over the seeds."""
    found = [_of_lab(setting.lab(seed, shots=shots), setting.part) for seed in setting.seeds]
    return {
        name: {key: None if row[key] is None else interval([one[name][key] for one in found]) for key in row}
        for name, row in found[0].items()
    }


def _of_lab(lab: Lab, part: str) -> dict[str, dict[str, float | None]]:
    tasks = lab.measured(part)
    linear = lab.codec.decode(linear_map(lab, tasks))
    return {
        "linear map of the class means": {"error": error(lab, tasks, linear), **_accuracy(tasks, linear)},
        "class means": {"error": None, **_accuracy(tasks, baselines.class_means(tasks.support))},
        "the optimum itself": {"error": 0.0, **_accuracy(tasks, tasks.optimum)},
    }


def error(lab: Lab, tasks: Tasks, heads: Tensor) -> float:
    """Mean squared error to the optimum, standardised."""
    return float((lab.codec.encode(heads) - lab.codec.encode(tasks.optimum)).square().mean())


def linear_map(lab: Lab, tasks: Tasks) -> Tensor:
    """Standardised heads by ridge regression from a class's mean and the mean of all, fitted on the training tasks.

    The penalty is the best of three on the last fifth of the training tasks.
    """
    rows, targets = _rows(lab.train), lab.codec.encode(lab.train.optimum)
    held = len(rows) - len(rows) // 5
    maps = [_ridge(rows[:held], targets[:held], penalty) for penalty in PENALTIES]
    errors = [float((rows[held:] @ fitted - targets[held:]).square().mean()) for fitted in maps]
    return _rows(tasks) @ _ridge(rows, targets, PENALTIES[errors.index(min(errors))])


def _ridge(rows: Tensor, targets: Tensor, penalty: float) -> Tensor:
    x, y = rows.flatten(0, 1), targets.flatten(0, 1)
    gram = x.T @ x / len(x)
    return torch.linalg.solve(gram + penalty * gram.diagonal().mean() * torch.eye(len(gram)), x.T @ y / len(x))


def _rows(tasks: Tasks) -> Tensor:
    means = tasks.support.mean(2)
    return torch.cat([means, means.mean(1, keepdim=True).expand_as(means), torch.ones_like(means[..., :1])], dim=-1)


def _accuracy(tasks: Tasks, heads: Tensor) -> dict[str, float]:
    return {"accuracy": float(tasks.accuracy(heads).mean())}
