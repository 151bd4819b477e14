"""The runs of tuning by gradient descent: rates first, on tasks that no table shows, then all tasks, a file a run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from training.adapters.encoded import EncodedTask, Part
from training.adapters.evaluate import kept, support_of, tested
from training.adapters.tuning import METHODS, TuneConfig, tune

TUNED = ("sst2", "mrpc", "trec", "mr", "subj", "emotion", "qnli", "rte")
FEW, MANY = "few", "many"
STEPS = {FEW: 60, MANY: 190}
MANY_ROWS = 1000

RATE_TASKS = {FEW: ("stackoverflow-cms", "clinc-cards-banking", "scicite-method", "curekart"), MANY: ("cola-order",)}
RATE_STEPS = {FEW: 60, MANY: 95}
RATE_ROWS = 100  # held-out rows that a rate is judged on
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    FEW: {
        "full": (3e-5, 1e-4, 3e-4, 1e-3),
        "lora": (1e-3, 3e-3, 1e-2),
        "adalora": (1e-2, 3e-2, 1e-1),
        "fourierft": (1e-2, 3e-2, 1e-1),
    },
    MANY: {
        "full": (3e-5, 1e-4, 3e-4),
        "lora": (3e-3, 1e-2),
        "adalora": (1e-2, 1e-1),
        "fourierft": (1e-2, 1e-1),
    },
}


def rows_of(task: EncodedTask, rows: str, seed: int) -> Part:
    """What a run learns from: the support set that all methods get, or `MANY_ROWS` rows of `train` (all, where fewer)."""
    if rows == FEW:
        return support_of(task, seed)
    count = min(MANY_ROWS, len(task.train))
    return task.train.take(torch.tensor(random.Random(f"{task.name} rows {seed}").sample(range(len(task.train)), count)))


def run_file(out: Path, task: str, method: str, rows: str, seed: int) -> Path:
    """Where a run is kept."""
    return out / "tuning" / f"{task}.{method}.{rows}.{seed}.json"


def tune_all(
    folder: Path, tasks: Sequence[EncodedTask], rows: str, seeds: Iterable[int], rates: Mapping[str, float], out: Path, say: Callable
) -> None:
    """Every method on every task, seed by seed; runs that are kept are not made again, unless their settings were others."""
    for seed in seeds:
        for task in tasks:
            for method in METHODS:
                config = TuneConfig(method, STEPS[rows], rates[method], seed=seed)
                path = run_file(out, task.name, method, rows, seed)
                new = not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["config"] != asdict(config)
                if new:
                    path.unlink(missing_ok=True)
                said = kept(path, tune, folder, task.ways, rows_of(task, rows, seed), tested(task), config)
                if new:
                    say(f"{task.name} {rows} {seed} {method}: " + curve_line(said["curve"]))


def try_rates(folder: Path, tasks: Sequence[EncodedTask], rows: str, out: Path, say: Callable) -> dict:
    """Each rate of each method on draw 0 of each task, judged by held-out rows of `train`; the best rate by the mean."""
    found: dict[str, dict] = {}
    for method, rates in RATES[rows].items():
        own = {f"{rate:g}": [_tried(folder, task, method, rows, rate, out) for task in tasks] for rate in rates}
        means = {rate: sum(values) / len(values) for rate, values in own.items()}
        best = max(means, key=means.__getitem__)
        found[method] = {"rate": float(best), "tried": own}
        say(f"{rows} {method}: {best} of " + ", ".join(f"{rate}: {mean:.1f} {own[rate]}" for rate, mean in means.items()))
    return {"tasks": [task.name for task in tasks], "steps": RATE_STEPS[rows], "methods": found}


def _tried(folder: Path, task: EncodedTask, method: str, rows: str, rate: float, out: Path) -> float:
    held = task.held.take(torch.arange(min(RATE_ROWS, len(task.held))))
    config = TuneConfig(method, RATE_STEPS[rows], rate)
    path = out / "tuning" / "rates" / f"{task.name}.{method}.{rows}.{rate:g}.json"
    return kept(path, tune, folder, task.ways, rows_of(task, rows, 0), held, config)["curve"][-1]["accuracy"]


def chosen_rates(path: Path, rows: str) -> dict[str, float]:
    """The rate of each method, as `try_rates` found it."""
    said = json.loads(path.read_text(encoding="utf-8"))[rows]
    return {method: own["rate"] for method, own in said["methods"].items()}


def curve_line(curve: Sequence[Mapping]) -> str:
    """A curve for a line of progress."""
    return ", ".join(f"{point['core_seconds']:.1f} s {point['accuracy']:.1f}" for point in curve)
