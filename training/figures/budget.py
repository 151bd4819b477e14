"""Ours: vanilla against trajectory diffusion as tasks and training grow far beyond the page's budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.models import Model
from training.figures.record import Claim, Interval, counted, difference, interval, sign, text
from training.figures.references import error, linear_map
from training.figures.setting import Setting
from training.figures.tasks import Lab, laboratory
from training.figures.variants import UNET

TITLE = "three times the tasks, up to 18 times the training"
PAPER = "with budgets of GPU hours trajectory diffusion is ahead of vanilla, the further the longer it is trained."
MADE = "`ltdi figure budget`, 5 seeds, 3 with the U-Net, test classes"
SEGMENTS = (1, 2, 3)
MEASURED = ("error", "accuracy", "scaled", "length")
TASKS = 10_000
SMALL, WIDE = (600, 3_600, 10_800), (600, 3_600)
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int]] = {  # images, the generator, batches, seeds
    "Omniglot": ("omniglot", {}, SMALL, 5),
    "mini-ImageNet": ("mini-imagenet", {}, SMALL, 5),
    "Omniglot, the paper's U-Net": ("omniglot", {"denoiser": UNET}, WIDE, 3),
}
LINEAR = "linear map of the class means"


def measure(setting: Setting) -> dict[str, Any]:
    """Error and accuracy of m = 1, 2, 3 by batches of training, for each case."""
    return {name: _case(setting, *case) for name, case in setting.some(list(CASES.items()), 1)}


def budget(setting: Setting) -> dict[str, Any]:
    """The page's, with the tasks and batches of each case."""
    return setting.budget | {"tasks": TASKS, "batches": {name: list(case[2]) for name, case in CASES.items()}}


def _case(setting: Setting, images: str, generator: dict[str, Any], batches: tuple[int, ...], seeds: int) -> dict[str, Any]:
    own = replace(setting, images=images)
    made = [by_seed(own, seed, generator, tuple(setting.some(batches))) for seed in setting.seeds[:seeds]]
    rows = []
    for place, count in enumerate(setting.some(batches)):
        row: dict[str, Any] = {"batches": count}
        for m in SEGMENTS:
            ends = [seed["rows"][place][str(m)] for seed in made]
            row[str(m)] = {key: interval([end[key] for end in ends]) for key in MEASURED}
        for key in ("error", "scaled"):
            row[f"{key} less 1"] = {str(m): difference(row[str(m)][key], row["1"][key]) for m in SEGMENTS[1:]}
        rows.append(row)
    return {"rows": rows, LINEAR: interval([seed[LINEAR] for seed in made])}


def by_seed(setting: Setting, seed: int, generator: dict[str, Any], batches: tuple[int, ...]) -> dict[str, Any]:
    """The rows of one seed; its tasks, 800 MB of them, are let go of at the end."""
    lab = lab_of(setting, seed)
    rows = [{str(m): _seen(lab, setting.part, setting.model(lab, m, **_budget(setting, count), **generator)) for m in SEGMENTS} for count in batches]
    found = {"rows": rows, LINEAR: error(lab, lab.measured(setting.part), lab.codec.decode(linear_map(lab, lab.measured(setting.part))))}
    laboratory.cache_clear()
    return found


def _seen(lab: Lab, part: str, model: Model) -> dict[str, float]:
    """Error, accuracy, squared length against the optima's, and the error where all heads are multiplied by the one best factor."""
    tasks = lab.measured(part)
    made, optimum = model.generate(lab, tasks), lab.codec.encode(tasks.optimum)
    heads = lab.codec.encode(made.heads)
    factor = (heads * optimum).sum() / heads.square().sum()
    found = {"error": made.error, "accuracy": made.accuracy, "scaled": (factor * heads - optimum).square()}
    length = heads.square().sum() / optimum.square().sum()
    return {name: float(values.mean()) for name, values in found.items()} | {"length": float(length)}


def lab_of(setting: Setting, seed: int) -> Lab:
    """The laboratory with three times the tasks."""
    return setting.lab(seed) if setting.quick else setting.lab(seed, tasks=TASKS)


def _budget(setting: Setting, batches: int) -> dict[str, Any]:
    """One snapshot, at the end; a quick run has fewer batches."""
    return {"batches": batches // 60 if setting.quick else batches, "snapshots": 1}


def draw(values: dict[str, Any], path: Path) -> None:
    """Differences of errors by batches, a panel for each case."""
    figure, axes = plots.panels(len(values))
    for axis, (name, found) in zip(axes, values.items(), strict=True):
        for m, colour in zip(SEGMENTS[1:], (plots.OTHER, plots.TRAJECTORY), strict=True):
            rows = found["rows"]
            batches = [row["batches"] for row in rows]
            plots.curve(axis, batches, [row["error less 1"][str(m)] for row in rows], color=colour, label=f"m = {m}")
            plots.curve(axis, batches, [row["scaled less 1"][str(m)] for row in rows], color=colour, label=f"m = {m}, each at its best length", ls="--")
        axis.axhline(0, color=plots.GREY, lw=1)
        plots.logarithmic(axis, [row["batches"] for row in found["rows"]])
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("batches of training")
    axes[0].set_ylabel("mean squared error, less that of m = 1")
    axes[0].legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = [
        f"Each generator learns from {TASKS} tasks in place of 3000; each row is a training of its own, with its learning rate falling to 0. "
        "*At its best length*: all heads of a generator multiplied by one factor, the best there is on these tasks (which no generator knows), "
        "so that what is left is direction. *Length*: mean square of the heads, against that of the optima.", "",
        "| | batches | error, m = 1 | m = 2, less m = 1 | m = 3, less m = 1 | at its best length, m = 1 | m = 2, less m = 1 | m = 3, less m = 1 | length, m = 1; 2; 3 | accuracy, m = 1; m = 3 |",
        "|---" * 10 + "|",
    ]  # fmt: skip
    for name, found in values.items():
        lines += [_line(name, row) for row in found["rows"]]
    linear = "; ".join(f"{name} {text(found[LINEAR])}" for name, found in values.items() if "U-Net" not in name)
    return [*lines, "", f"A linear map of the class means, fitted to the same tasks, has {linear}."]


def _line(name: str, row: dict[str, Any]) -> str:
    accuracies = "; ".join(text(row[m]["accuracy"], 2) for m in ("1", "3"))
    lengths = "; ".join(f"{row[str(m)]['length']['mean']:.2f}" for m in SEGMENTS)
    less, scaled = ([text(row[f"{key} less 1"][str(m)], signed=True) for m in SEGMENTS[1:]] for key in ("error", "scaled"))
    return f"| {name} | {row['batches']} | {text(row['1']['error'])} | {' | '.join([*less, text(row['1']['scaled']), *scaled])} | {lengths} | {accuracies} |"


def claims(values: dict[str, Any]) -> list[Claim]:
    """That the lead is there at any budget, case by case."""
    found = []
    for name, case in values.items():
        signs = {f"m = {m} at {row['batches']}": sign(row["error less 1"][str(m)]) for row in case["rows"] for m in SEGMENTS[1:]}
        ahead, behind = ("; ".join(place for place, way in signs.items() if way == wanted) or "nowhere" for wanted in (-1, 1))
        why = f"lower error: {ahead}; higher: {behind}, intervals apart; m = 3 less m = 1 {_path(case, 'error')}; each at its best length {_path(case, 'scaled')}"
        found.append(Claim("3.2", f"{name}: trajectory diffusion has the lower error at one budget, whatever the budget", counted([-way for way in signs.values()]), why))
    return found


def _path(case: dict[str, Any], key: str) -> str:
    found: list[Interval] = [row[f"{key} less 1"]["3"] for row in case["rows"]]
    return ", ".join(f"{text(one, signed=True)} at {row['batches']}" for one, row in zip(found, case["rows"], strict=True))
