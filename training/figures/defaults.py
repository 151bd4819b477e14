"""The section of the page that says where each default of a shipped bundle has its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.adapters.fit import FitConfig
from training.configs import experiment
from training.configs.experiment import Experiment
from training.figures.record import text
from training.meta_train import MetaTrainConfig

TITLE = "The defaults of the shipped bundles"
BUNDLES = Path(__file__).parents[2] / "bundles"
IMAGES, TEXTS, ADAPTERS = ("omniglot", "omniglot-background"), ("minilm", "any-embedding"), "minilm-lora"


def defaults(records: dict[str, dict[str, Any]]) -> list[str]:
    """A table of what each bundle has, from its own files, and one of where that has its row and what the row says."""
    lines = [f"## {TITLE}", "", "| bundle | T | m | schedule | SAM radius | augmentation of targets | learned on |", "|---" * 7 + "|"]
    lines += [_image_bundle(name) for name in IMAGES] + [_text_bundle(name) for name in TEXTS] + [_adapter_bundle()]
    lines += ["", "| default | its row | what the row says |", "|---|---|---|"]
    return lines + [f"| {name} | {where} | {says} |" for name, where, says in _rows(records)]


def _config(name: str) -> dict[str, Any]:
    return json.loads((BUNDLES / name / "config.json").read_text(encoding="utf-8"))["schedule"]


def _image_bundle(name: str) -> str:
    chosen = experiment(name)
    assert isinstance(chosen, Experiment) and isinstance(chosen.meta_train, MetaTrainConfig)
    schedule, prepare, weight = _config(name), chosen.prepare, chosen.meta_train.eq2_weight
    eq2 = f"and Eq. 2 of weight {weight:g}" if weight else "alone, no trajectories"
    sam, views = (f"{prepare.sam_radius:g}", f"{prepare.views} views, noise {prepare.noise:g}") if weight else ("none", "none")
    return f"| `{name}` | {schedule['steps']} | {schedule['segments']} | {schedule['shape']} | {sam} | {views} | the task's loss {eq2} |"


def _text_bundle(name: str) -> str:
    schedule = _config(name)
    return f"| `{name}` | {schedule['steps']} | {schedule['segments']} | {schedule['shape']} | none | none | the task's loss alone, no trajectories |"


def _adapter_bundle() -> str:
    segments = json.loads((BUNDLES / ADAPTERS / "bundle.json").read_text(encoding="utf-8"))["predictor"]["sizes"][1]
    fit = FitConfig()
    return f"| `{ADAPTERS}` | 20 | {segments} | cosine | {fit.sam_radius:g} | a tenth of the words masked | the task's loss; trajectories are walked, and decide nothing |"


def _rows(records: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    values = {name: record["values"] for name, record in records.items()}
    return [
        ("T = 20", "[figure5](#figure5), [figure7](#figure7), [figure8](#figure8)", _steps(values)),
        ("m = 3", "[figure3](#figure3), [figure3-mini](#figure3-mini)", _segments(values)),
        ("cosine schedule", "[variants](#variants)", _variant(values, "linear to 0.5")),
        ("SAM and augmentation", "[figure6](#figure6)", _preparation(values)),
        ("Adam on plain batches, not REPTILE", "[variants](#variants)", _variant(values, "REPTILE")),
        ("a small network over rows, not a U-Net", "[variants](#variants)", _variant(values, "the paper's U-Net")),
        ("Eq. 2 of small weight beside the task's loss", "the bundles' cards", "on validation classes weights from 0 to 0.1 are level, 1 is behind: the chain is kept, its targets hardly matter"),
    ]  # fmt: skip


def _steps(values: dict[str, Any]) -> str:
    if "figure5" not in values:
        return "not measured"
    rows = {int(steps): row["Lt-Di"]["error"] for steps, row in values["figure5"]["by_steps"].items()}
    best = min(rows, key=lambda steps: rows[steps]["mean"])
    end = f"T = {best} has the lowest error of Lt-Di, {text(rows[best])}"
    return f"{end}; T = 20 has {text(rows[20])}. Kept: accuracy is level, and the paper's chain is what callers ask for" if 20 in rows else end


def _segments(values: dict[str, Any]) -> str:
    found = []
    for name, images in (("figure3", "Omniglot"), ("figure3-mini", "mini-ImageNet")):
        for shots, column in values.get(name, {}).items():
            rows = column["by_segments"]
            if "3" in rows:
                lost = rows["1"]["accuracy"]["mean"] - rows["3"]["accuracy"]["mean"]
                found.append(f"{images} {shots} {text(rows['3']['error_minus_vanilla'], signed=True)} in error, {-lost:+.2f} points")
    return f"against m = 1: {'; '.join(found)}. Kept as the paper's: differences are small, of either sign" if found else "not measured"


def _variant(values: dict[str, Any], name: str) -> str:
    rows = values.get("variants", {})
    first = next(iter(rows), None)
    if first is None or name not in rows:
        return "not measured"
    return f"error of Lt-Di {text(rows[first]['Lt-Di']['error'])}; *{name}* {text(rows[name]['Lt-Di']['error'])}"


def _preparation(values: dict[str, Any]) -> str:
    rows = values.get("figure6", {}).get("many_shot")
    if rows is None:
        return "not measured"
    changes = ", ".join(f"{name} {text(row['difference'], 2, signed=True)}" for name, row in rows.items() if name != "neither")
    return f"points against neither, many-shot targets: {changes}. Kept as the paper's recipe, not for a gain"
