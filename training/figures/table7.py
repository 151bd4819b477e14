"""Tables 7 and 8: the parts of the method on other bodies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.published import ABLATION
from training.figures.record import Claim, text
from training.figures.setting import Setting
from training.figures.table1 import ORDER, chosen_line, order_claim, rows_on

MOST_SEEDS = 3
TITLE = "other bodies, 5-way 1-shot"
PAPER = "the order of Table 1 holds for Swin, ResNet-18 and MobileNetV2."


def measure(setting: Setting) -> dict[str, Any]:
    """Table 1 on each body; three seeds."""
    fewer = setting.first(MOST_SEEDS)
    return {"images": setting.images, "bodies": {name: rows_on(fewer, body=name) for name in setting.some(setting.bodies, 1)}}


def draw(values: dict[str, Any], path: Path) -> None:
    """Accuracies of each body."""
    figure, axes = plots.panels(len(values["bodies"]))
    for axis, (body, found) in zip(axes, values["bodies"].items(), strict=True):
        rows = {name: row["accuracy"] for name, row in found["rows"].items()} | found["closed"]
        for place, (name, row) in enumerate(rows.items()):
            colour = plots.TRAJECTORY if name in found["rows"] else plots.GREY
            axis.errorbar(row["mean"], place, xerr=row["half"] or 0, fmt="o", capsize=3, color=colour)
        axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(body, fontsize=10)
        axis.set_xlabel("accuracy, %")
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    bodies = values["bodies"]
    lines = ["| accuracy, % | " + " | ".join(f"{name} | the paper's" for name in bodies) + " |", "|---" * (1 + 2 * len(bodies)) + "|"]
    for method in [*next(iter(bodies.values()))["rows"], *next(iter(bodies.values()))["closed"]]:
        cells = [f"{_cell(found, method)} | {_printed(values['images'], body, method)}" for body, found in bodies.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    said = "Bodies are trained from random weights for minutes of one core; what they are worth is what class means have on them. Swin was not trained: `--bodies resnet18 mobilenet_v2 swin_t` does it."
    return [*lines, "", said, "", *[f"{body}: {chosen_line(found['chosen'])}" for body, found in bodies.items()]]


def _cell(found: dict[str, Any], method: str) -> str:
    return text(found["rows"][method]["accuracy"] if method in found["rows"] else found["closed"][method], 2)


def _printed(images: str, body: str, method: str) -> str:
    return f"{ABLATION[images, body][method]:.2f}" if method in ORDER else ""


def claims(values: dict[str, Any]) -> list[Claim]:
    """The order of Table 1, body by body."""
    found = []
    for body, rows in values["bodies"].items():
        says, verdict, why = order_claim(rows, ABLATION[values["images"], body])
        found.append(Claim("D.4", f"on {body}: {says}", verdict, why))
    return found
