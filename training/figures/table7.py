"""Tables 7 and 8: the parts of the method on other bodies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltdi.files import digest, write_json
from training.classify import ClassifyConfig
from training.figures import plots
from training.figures.backbones import config_of
from training.figures.bodies import LONG_SIDES, SIDES
from training.figures.published import ABLATION
from training.figures.record import Claim, text
from training.figures.setting import Setting
from training.figures.table1 import BETAS, INNER_RATES, ORDER, chosen_line, order_claim, rows_on

MOST_SEEDS = 3
TITLE = "other bodies, 5-way 1-shot"
PAPER = "the order of Table 1 holds for Swin, ResNet-18 and MobileNetV2."


def measure(setting: Setting) -> dict[str, Any]:
    """Table 1 on each body; three seeds."""
    fewer = setting.first(MOST_SEEDS)
    bodies = {name: _rows(fewer, name) for name in setting.some(setting.networks, 1)}
    return {"images": setting.images, "training": _training(setting), "bodies": bodies}


def budget(setting: Setting) -> dict[str, Any]:
    """The page's, on bodies of its own."""
    shared = setting.budget
    return shared | {"lab": shared["lab"] | {"body": list(setting.some(setting.networks, 1))}, "bodies": _training(setting)}


def _rows(setting: Setting, body: str) -> dict[str, Any]:
    """The table of one body, kept once made, so that several can be made side by side."""
    stands_on = setting.lab(body=body).stands_on["body_digest"]
    key = json.dumps([stands_on, setting.budget, setting.seeds, setting.part, BETAS, INNER_RATES], sort_keys=True)
    path = setting.kept / "tables" / f"{body}-{setting.images}-{digest(key.encode())[:12]}.json"
    if not path.exists():
        write_json(path, rows_on(setting, body=body))
    return json.loads(path.read_text(encoding="utf-8"))


def _training(setting: Setting) -> dict[str, Any]:
    """How the bodies were trained, for the page."""
    configs = {name: config_of(name, setting.long, 3 if setting.images == "mini-imagenet" else 1) for name in setting.networks}
    one = next(iter(configs.values()))
    images = one.batch if isinstance(one, ClassifyConfig) else one.classes * one.drawings
    steps = {name: config.steps for name, config in configs.items()}
    return {"steps": steps, "images": images, "side": (LONG_SIDES if setting.long else SIDES)[setting.images], "long": setting.long}


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
    how = values["training"]
    steps, where = ", ".join(f"{name} {count}" for name, count in how["steps"].items()), "on one GPU, side by side" if how["long"] else "on one core"
    said = f"Bodies are trained from random weights for minutes {where}, in steps of {how['images']} images of {how['side']} pixels ({steps}); what they are worth is what class means have on them."
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
