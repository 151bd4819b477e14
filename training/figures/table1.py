"""Table 1: which part of the method is worth what, on Omniglot 5-way 1-shot."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.models import ModelConfig
from training.figures.record import CONDITION, HOLDS, NOT_HERE, Claim, Interval, difference, interval, sign, text
from training.figures.rivals import CLOSED, Budget, Heads, reptile, tuned_cosine, weights_vae
from training.figures.setting import QUICK_MODEL, Setting
from training.figures.tasks import Lab, Tasks

TITLE = "which component is worth what: Omniglot, 5-way 1-shot"
PAPER = "REPTILE 95.39, LLO-VAE 94.92, Lv-Di 96.35, Lt-Di 97.12 on Omniglot: learning weights, diffusion and trajectories each add."
INNER_RATES, BETAS = (0.5, 2.0, 10.0, 50.0), (0.03, 0.3, 1.0)
ORDER = ("REPTILE", "LLO-VAE", "Lv-Di", "Lt-Di")


def measure(setting: Setting) -> dict[str, Any]:
    """Accuracy and, where the head is of the optimum's kind, error of each method; settings chosen on validation tasks, seed 0."""
    lab = setting.lab()
    own = QUICK_MODEL if setting.quick else ModelConfig()
    budget = Budget(own.batches, own.tasks)
    inner_lr = _best(lab, {rate: reptile(lab, 0, budget, inner_lr=rate) for rate in INNER_RATES})
    beta = _best(lab, {weight: weights_vae(lab, 0, budget, beta=weight) for weight in BETAS})
    closed = _best(lab, {name: lambda tasks, f=f: f(tasks.support) for name, f in CLOSED.items()})
    makers: dict[str, Callable[[int], Heads]] = {
        "REPTILE": lambda seed: reptile(lab, seed, budget, inner_lr=inner_lr),
        "LLO-VAE": lambda seed: weights_vae(lab, seed, budget, beta=beta),
        "Lv-Di": lambda seed: lambda tasks: setting.model(lab, seed, 1).generate(lab, tasks).heads,
        "Lt-Di": lambda seed: lambda tasks: setting.model(lab, seed, 3).generate(lab, tasks).heads,
        "Meta-Baseline": lambda seed: tuned_cosine(lab, seed, budget),
    }
    rows = {name: _row(setting, lab, make) for name, make in makers.items()}
    tasks = lab.measured(setting.part)
    return {
        "rows": rows, "chosen": {"inner_lr": inner_lr, "beta": beta, "closed form": closed},
        "closed": {name: interval([float(tasks.accuracy(f(tasks.support)).mean())]) for name, f in CLOSED.items()},
        "differences": {f"{b} minus {a}": difference(rows[b]["accuracy"], rows[a]["accuracy"]) for a, b in itertools.pairwise(ORDER)},
    }  # fmt: skip


def _best(lab: Lab, found: dict[Any, Heads]) -> Any:
    tasks = lab.measured("val")
    scores = {name: float(tasks.accuracy(heads(tasks)).mean()) for name, heads in found.items()}
    return max(scores, key=scores.__getitem__)


def _row(setting: Setting, lab: Lab, make: Callable[[int], Heads]) -> dict[str, Interval]:
    tasks = lab.measured(setting.part)
    made = [make(seed)(tasks) for seed in setting.seeds]
    return {
        "accuracy": interval([float(tasks.accuracy(heads).mean()) for heads in made]),
        "error": interval([_error(lab, tasks, heads) for heads in made]),
    }


def _error(lab: Lab, tasks: Tasks, heads: Any) -> float:
    return float((lab.codec.encode(heads) - lab.codec.encode(tasks.optimum)).square().mean())


def draw(values: dict[str, Any], path: Path) -> None:
    """Accuracies as points with intervals."""
    figure, (axis,) = plots.panels(1, width=7)
    rows = {name: row["accuracy"] for name, row in values["rows"].items()} | values["closed"]
    names = list(rows)
    for place, (name, found) in enumerate(rows.items()):
        colour = plots.TRAJECTORY if name in values["rows"] else plots.GREY
        axis.errorbar(found["mean"], place, xerr=found["half"] or 0, fmt="o", capsize=3, color=colour)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("accuracy, %, 5-way 1-shot")
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| | accuracy, % | error to the many-shot optimum |", "|---|---|---|"]
    kind = ("LLO-VAE", "Lv-Di", "Lt-Di")
    for name, row in values["rows"].items():
        lines.append(f"| {name} | {text(row['accuracy'], 2)} | {text(row['error']) if name in kind else ''} |")
    lines += [f"| {name} | {text(found, 2)} | |" for name, found in values["closed"].items()]
    chosen = values["chosen"]
    return [*lines, "", f"Chosen on validation tasks: REPTILE's inner rate {chosen['inner_lr']:g}, the VAE's divergence at {chosen['beta']:g}, closed form *{chosen['closed form']}*."]


def claims(values: dict[str, Any]) -> list[Claim]:
    """The order of Table 1, and its parts."""
    why = "; ".join(f"{name} {text(found, 2, signed=True)}" for name, found in values["differences"].items())
    signs = [sign(found) for found in values["differences"].values()]
    paper = [-1, 1, 1]
    verdict = HOLDS if signs == paper else (CONDITION if signs[1:] == paper[1:] else NOT_HERE)
    return [Claim("4.1.1", "on Omniglot LLO-VAE is below REPTILE, Lv-Di above LLO-VAE, Lt-Di above Lv-Di", verdict, why)]
