"""Figure 6: SAM and augmentation in weight preparation, each alone and both, over training time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.record import CONDITION, HOLDS, NOT_HERE, Claim, difference, interval, sign, text
from training.figures.setting import Setting

MOST_SEEDS = 3
TITLE = "SAM and augmentation in weight preparation: accuracy over training time"
PAPER = "Each makes the generated heads more accurate at every moment of training, at no cost of training time."
COMPONENTS: dict[str, dict[str, Any]] = {
    "neither": {}, "SAM": {"sam_radius": 0.5}, "augmentation": {"views": 4, "noise": 0.3},
    "both": {"sam_radius": 0.5, "views": 4, "noise": 0.3},
}  # fmt: skip
TARGETS = ("few_shot", "many_shot")
SEGMENTS = 3
TICKS = (0.1, 0.2, 0.5, 1, 2, 5)


def measure(setting: Setting) -> dict[str, Any]:
    """Accuracy by batch, of generators of heads and of the prepared heads themselves; three seeds."""
    found: dict[str, Any] = {}
    for target in TARGETS:
        found[target] = {name: _row(setting, target, changes) for name, changes in COMPONENTS.items()}
        for row in found[target].values():
            row["difference"] = difference(row["accuracy"][-1], found[target]["neither"]["accuracy"][-1])
    return found


def _row(setting: Setting, target: str, changes: dict[str, Any]) -> dict[str, Any]:
    labs = [setting.lab(seed, target=target, **changes) for seed in setting.seeds[:MOST_SEEDS]]
    curves = [setting.model(lab, SEGMENTS).curve for lab in labs]
    points = range(len(curves[0]))
    return {
        "seconds": [interval([curve[i]["seconds"] for curve in curves]) for i in points],
        "accuracy": [interval([curve[i]["accuracy"] for curve in curves]) for i in points],
        "prepared": interval([float(lab.train.accuracy(lab.train.optimum).mean()) for lab in labs]),
    }


def draw(values: dict[str, Any], path: Path) -> None:
    """A panel for each kind of target."""
    figure, axes = plots.panels(len(values))
    colours = (plots.GREY, plots.VANILLA, plots.OTHER, plots.TRAJECTORY)
    for axis, (target, rows) in zip(axes, values.items(), strict=True):
        for (name, row), colour in zip(rows.items(), colours, strict=True):
            seconds = [one["mean"] for one in row["seconds"]]
            plots.curve(axis, seconds[2:], row["accuracy"][2:], color=colour, label=name)
        axis.set_title(f"{target.replace('_', '-')} targets", fontsize=10)
        plots.logarithmic(axis, [tick for tick in TICKS if tick <= seconds[-1] * 1.2])
        axis.set_xlabel("training of the generator, seconds of one core")
        axis.set_ylabel("accuracy, %")
    axes[0].legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| targets | prepared with | their own accuracy on training classes | generated, at the end | minus neither |", "|---|---|---|---|---|"]
    for target, rows in values.items():
        for name, row in rows.items():
            cells = f"{text(row['prepared'], 2)} | {text(row['accuracy'][-1], 2)} | {text(row['difference'], 2, signed=True)}"
            lines.append(f"| {target.replace('_', '-')} | {name} | {cells} |")
    return lines


def claims(values: dict[str, Any]) -> list[Claim]:
    """The one of section 4.1.2, for the paper's few-shot targets and for many-shot ones."""
    rows = {f"{name}, {target}": row for target, found in values.items() for name, row in found.items() if name != "neither"}
    better = [name for name, row in rows.items() if sign(row["difference"]) > 0]
    worse = [name for name, row in rows.items() if sign(row["difference"]) < 0]
    verdict = HOLDS if len(better) == len(rows) else (CONDITION if better else NOT_HERE)
    why = f"better, intervals apart from 0: {'; '.join(better) or 'none'}; worse: {'; '.join(worse) or 'none'}"
    return [Claim("4.1.2", "SAM and augmentation improve accuracy at no cost of training time", verdict, why.replace("_", "-"))]
