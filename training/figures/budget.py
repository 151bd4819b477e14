"""Ours: vanilla against trajectory diffusion as tasks and training grow far beyond the page's budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.record import Claim, Interval, counted, difference, interval, sign, text
from training.figures.references import error, linear_map
from training.figures.setting import Setting
from training.figures.tasks import Lab, laboratory
from training.figures.variants import UNET

TITLE = "three times the tasks, up to 18 times the training"
PAPER = "budgets of GPU hours; trajectory diffusion is ahead of vanilla at any of them."
SEGMENTS = (1, 2, 3)
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


def _case(setting: Setting, images: str, generator: dict[str, Any], batches: tuple[int, ...], seeds: int) -> dict[str, Any]:
    own = replace(setting, images=images)
    made = [by_seed(own, seed, generator, tuple(setting.some(batches))) for seed in setting.seeds[:seeds]]
    rows = []
    for place, count in enumerate(setting.some(batches)):
        row: dict[str, Any] = {"batches": count}
        for m in SEGMENTS:
            ends = [seed["rows"][place][str(m)] for seed in made]
            row[str(m)] = {key: interval([end[key] for end in ends]) for key in ("error", "accuracy")}
        rows.append(row | {f"{m} less 1": difference(row[str(m)]["error"], row["1"]["error"]) for m in SEGMENTS[1:]})
    return {"rows": rows, LINEAR: interval([seed[LINEAR] for seed in made])}


def by_seed(setting: Setting, seed: int, generator: dict[str, Any], batches: tuple[int, ...]) -> dict[str, Any]:
    """The rows of one seed; its tasks, 800 MB of them, are let go of at the end."""
    lab = lab_of(setting, seed)
    rows = [{str(m): setting.model(lab, m, **_budget(setting, count), **generator).curve[-1] for m in SEGMENTS} for count in batches]
    found = {"rows": rows, LINEAR: error(lab, lab.measured(setting.part), lab.codec.decode(linear_map(lab, lab.measured(setting.part))))}
    laboratory.cache_clear()
    return found


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
            plots.curve(axis, [row["batches"] for row in rows], [row[f"{m} less 1"] for row in rows], color=colour, label=f"m = {m}")
        axis.axhline(0, color=plots.GREY, lw=1)
        axis.set_xscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("batches of training")
    axes[0].set_ylabel("mean squared error, less that of m = 1")
    axes[0].legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = [
        f"Each generator learns from {TASKS} tasks in place of 3000; each row is a training of its own, with its learning rate falling to 0.", "",
        "| | batches | error, m = 1 | m = 2, less m = 1 | m = 3, less m = 1 | accuracy, m = 1; m = 3 |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in values.items():
        for row in found["rows"]:
            accuracies = "; ".join(text(row[m]["accuracy"], 2) for m in ("1", "3"))
            less = " | ".join(text(row[f"{m} less 1"], signed=True) for m in SEGMENTS[1:])
            lines.append(f"| {name} | {row['batches']} | {text(row['1']['error'])} | {less} | {accuracies} |")
    linear = "; ".join(f"{name} {text(found[LINEAR])}" for name, found in values.items() if "U-Net" not in name)
    return [*lines, "", f"A linear map of the class means, fitted to the same tasks, has {linear}."]


def claims(values: dict[str, Any]) -> list[Claim]:
    """That the lead is there at any budget, case by case."""
    found = []
    for name, case in values.items():
        signs = {f"m = {m} at {row['batches']}": sign(row[f"{m} less 1"]) for row in case["rows"] for m in SEGMENTS[1:]}
        ahead, behind = ("; ".join(place for place, way in signs.items() if way == wanted) or "nowhere" for wanted in (-1, 1))
        why = f"lower error: {ahead}; higher: {behind}, intervals apart; m = 3 less m = 1 {_path(case)}"
        found.append(Claim("3.2", f"{name}: trajectory diffusion has the lower error at one budget, whatever the budget", counted([-way for way in signs.values()]), why))
    return found


def _path(case: dict[str, Any]) -> str:
    found: list[Interval] = [row["3 less 1"] for row in case["rows"]]
    return ", ".join(f"{text(one, signed=True)} at {row['batches']}" for one, row in zip(found, case["rows"], strict=True))
