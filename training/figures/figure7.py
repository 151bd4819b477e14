"""Figure 7: accuracy over trajectory length and steps of the chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.record import HOLDS, NOT_HERE, Claim, interval, text
from training.figures.setting import Setting

MOST_SEEDS = 3
TITLE = "accuracy over trajectory length and diffusion steps"
PAPER = "Accuracy hardly depends on either; more of both helps slightly."
SEGMENTS, STEPS = (1, 2, 3, 5), (5, 10, 20, 50)
STABLE = 1.0


def measure(setting: Setting) -> dict[str, Any]:
    """Accuracy and error of each pair; at most three seeds."""
    cells = {}
    for m in setting.some(SEGMENTS):
        for steps in setting.some(STEPS):
            ends = [setting.model(setting.lab(seed), m, steps).curve[-1] for seed in setting.seeds[:MOST_SEEDS]]
            cells[f"{m}, {steps}"] = {key: interval([end[key] for end in ends]) for key in ("accuracy", "error")}
    return {"segments": setting.some(SEGMENTS), "steps": setting.some(STEPS), "cells": cells}


def draw(values: dict[str, Any], path: Path) -> None:
    """A line for each length."""
    figure, (left, right) = plots.panels(2)
    colours = (plots.VANILLA, plots.OTHER, plots.TRAJECTORY, plots.FOURTH)
    for m, colour in zip(values["segments"], colours, strict=False):
        found = [values["cells"][f"{m}, {steps}"] for steps in values["steps"]]
        plots.curve(left, values["steps"], [one["accuracy"] for one in found], color=colour, label=f"length {m + 1}")
        plots.curve(right, values["steps"], [one["error"] for one in found], color=colour, label=f"length {m + 1}")
    for axis, name in ((left, "accuracy, %"), (right, "mean squared error, 1 is the mean head's")):
        axis.set_xscale("log")
        axis.set_xticks(values["steps"], [str(steps) for steps in values["steps"]])
        axis.minorticks_off()
        axis.set_xlabel("steps of the chain, T")
        axis.set_ylabel(name)
    left.legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| accuracy, % | " + " | ".join(f"T = {steps}" for steps in values["steps"]) + " |"]
    lines.append("|---" * (1 + len(values["steps"])) + "|")
    for m in values["segments"]:
        cells = [text(values["cells"][f"{m}, {steps}"]["accuracy"], 2) for steps in values["steps"]]
        lines.append(f"| length {m + 1} (m = {m}) | " + " | ".join(cells) + " |")
    return lines


def claims(values: dict[str, Any]) -> list[Claim]:
    """The one of appendix D.3."""
    means = {name: cell["accuracy"]["mean"] for name, cell in values["cells"].items()}
    worst, best = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    spread = means[best] - means[worst]
    why = f"{means[worst]:.2f} (m, T = {worst}) to {means[best]:.2f} (m, T = {best})"
    verdict = HOLDS if spread <= STABLE else NOT_HERE
    return [Claim("D.3", "accuracy hardly depends on length and steps (here: by a point at most)", verdict, why)]
