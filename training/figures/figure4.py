"""Figure 4: each L_i of the trajectory loss over training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.record import HOLDS, NOT_HERE, Claim, interval, text
from training.figures.setting import Setting

TITLE = "each L_i over training, m = 3"
PAPER = "L_2 converges first, since theta_2 is closest to the start; L_0, the last waypoint of the chain, converges last."
SEGMENTS, CONVERGED = 3, 0.9


def measure(setting: Setting) -> dict[str, Any]:
    """L_i by batch, and the batch by which each had made nine tenths of its way."""
    curves = [setting.model(setting.lab(seed), SEGMENTS).curve for seed in setting.seeds]
    batches = [int(point["batch"]) for point in curves[0]]
    names = [f"segment_{i}" for i in range(SEGMENTS)]
    losses = {name: [interval([curve[i][name] for curve in curves]) for i in range(len(batches))] for name in names}
    reached = {name: interval([_reached(curve, name) for curve in curves]) for name in names}
    return {"batches": batches, "losses": losses, "converged_at": reached}


def _reached(curve: list[dict[str, float]], name: str) -> float:
    """The batch of the first snapshot below first - nine tenths (first - last)."""
    first, last = curve[0][name], curve[-1][name]
    return next(point["batch"] for point in curve if point[name] <= first - CONVERGED * (first - last))


def draw(values: dict[str, Any], path: Path) -> None:
    """The losses, and each as a share of its way."""
    figure, (left, right) = plots.panels(2)
    for (name, found), colour in zip(values["losses"].items(), (plots.VANILLA, plots.OTHER, plots.TRAJECTORY), strict=True):
        label = f"$L_{name[-1]}$"
        plots.curve(left, values["batches"], found, color=colour, label=label)
        first, last = found[0]["mean"], found[-1]["mean"]
        right.plot(values["batches"], [(one["mean"] - last) / (first - last) for one in found], color=colour, marker="o", ms=4)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("batches trained")
    left.set_ylabel("L_i on training states, mean since the last point")
    right.set_ylabel("share of the way still to go")
    left.legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| | " + " | ".join(f"{b} batches" for b in values["batches"]) + " | nine tenths of the way at batch |"]
    lines.append("|---" * (2 + len(values["batches"])) + "|")
    for name, found in values["losses"].items():
        cells = " | ".join(text(one) for one in found)
        lines.append(f"| L_{name[-1]} | {cells} | {text(values['converged_at'][name], 0)} |")
    return lines


def claims(values: dict[str, Any]) -> list[Claim]:
    """One of section 3.2.2."""
    at = [values["converged_at"][f"segment_{i}"]["mean"] for i in range(SEGMENTS)]
    holds = at[2] < at[1] and at[2] < at[0]
    why = "nine tenths of the way: " + ", ".join(f"L_{i} by batch {value:.0f}" for i, value in enumerate(at))
    return [Claim("3.2.2", "L_2, of the waypoint closest to the start, converges first", HOLDS if holds else NOT_HERE, why)]
