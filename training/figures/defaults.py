"""The section of the page that says what each shipped bundle has, where that has its row, and whether the row speaks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltdi.schedule import ScheduleConfig
from training.adapters.fit import FitConfig
from training.configs import experiment
from training.configs.experiment import Experiment
from training.figures.evaluated import RESULTS
from training.figures.record import Interval, difference, sign, text
from training.meta_train import MetaTrainConfig

TITLE = "The defaults of the shipped bundles"
BUNDLES = Path(__file__).parents[2] / "bundles"
IMAGES, TEXTS, ADAPTERS = ("omniglot", "omniglot-background"), ("minilm", "any-embedding"), "minilm-lora"
COLUMNS = ("bundle", "T", "m", "schedule", "SAM radius", "augmentation of targets", "views that are read", "learned on", "the chain adds, points")
WAYS = {-1: "The row speaks against it", 0: "The row decides nothing", 1: "The row speaks for it"}

Values = dict[str, dict[str, Any]]


def defaults(records: dict[str, dict[str, Any]]) -> list[str]:
    """A table of what each bundle has, from its own files, and one of where that has its row and what the row says."""
    values = {name: record["values"] for name, record in records.items()}
    lines = [
        f"## {TITLE}", "",
        "From the bundles' own files and configs. None is trained by REPTILE: all by Adam on batches of tasks. What the chain adds is measured on "
        "test, against the same generator's estimate without it; where that is next to nothing, T, m, schedule and trajectories decide next to nothing.", "",
        f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|",
    ]  # fmt: skip
    bundles = [_image_bundle(name) for name in IMAGES] + [_text_bundle(name) for name in TEXTS] + [_adapter_bundle()]
    lines += [f"| {' | '.join(cells)} |" for cells in bundles]
    lines += [
        "", "A row that speaks against a default is of the laboratory, in errors of weights. The default is kept all the same: another T, m or schedule is another "
        "network, so another bundle with another digest, and where the chain adds next to nothing little is to be expected of it.", "",
        "| default | its row | what the row says |", "|---|---|---|",
    ]  # fmt: skip
    return lines + [f"| {name} | {where} | {says} |" for name, where, says in _rows(values)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _schedule(schedule: dict[str, Any]) -> list[str]:
    return [str(schedule[key]) for key in ("steps", "segments", "shape")]


def _image_bundle(name: str) -> list[str]:
    chosen, config = experiment(name), _read(BUNDLES / name / "config.json")
    assert isinstance(chosen, Experiment) and isinstance(chosen.meta_train, MetaTrainConfig)
    prepare, weight = chosen.prepare, chosen.meta_train.eq2_weight
    eq2 = f"and Eq. 2 of weight {weight:g}" if weight else "alone, no trajectories"
    prepared = [f"{prepare.sam_radius:g}", f"{prepare.views} views, noise {prepare.noise:g}"] if weight else ["no targets", "no targets"]
    added = [column["beyond_estimate"]["mean"] for column in _read(RESULTS / f"{name}.json")["columns"]]
    return [f"`{name}`", *_schedule(config["schedule"]), *prepared, str(config["views"]), f"the task's loss {eq2}", _from_to(added)]


def _text_bundle(name: str) -> list[str]:
    controls = _read(RESULTS / f"{name}.json")["controls_one_shot_all"].values()
    added = [row["generated"] - row["mixture alone, no chain"] for row in controls]
    schedule = _schedule(_read(BUNDLES / name / "config.json")["schedule"])
    return [f"`{name}`", *schedule, "no targets", "no targets", "0", "the task's loss alone, no trajectories", _from_to(added)]


def _adapter_bundle() -> list[str]:
    segments = _read(BUNDLES / ADAPTERS / "bundle.json")["predictor"]["sizes"][1]
    schedule, fit = ScheduleConfig(segments=segments), FitConfig()
    prepared = [f"{fit.sam_radius:g}", f"{fit.token_dropout:.0%} of the words masked", "0"]
    learned = "the task's loss; trajectories are stored and walked (T, SAM and masking as the code has them)"
    return [f"`{ADAPTERS}`", *_schedule(vars(schedule)), *prepared, learned, "m decides nothing (`tests/ltdi/adapters/test_bank.py`)"]


def _from_to(added: list[float]) -> str:
    return f"{min(added):+.2f} to {max(added):+.2f}"


def _rows(values: Values) -> list[tuple[str, str, str]]:
    return [
        ("T = 20, Omniglot", "[figure5](#figure5)", _steps(values.get("figure5", {}))),
        ("T = 20, mini-ImageNet", "[figure5-mini](#figure5-mini)", _steps(values.get("figure5-mini", {}))),
        ("m = 3", "[figure3](#figure3), [figure3-mini](#figure3-mini)", _segments(values)),
        ("three segments, trained 18 times as long", "[budget](#budget)", _longest(values.get("budget", {}))),
        ("cosine schedule", "[variants](#variants)", _variant(values, "linear to 0.5")),
        ("SAM and augmentation", "[figure6](#figure6)", _preparation(values.get("figure6", {}))),
        ("the same, photographs", "[figure6-mini](#figure6-mini)", _preparation(values.get("figure6-mini", {}))),
        ("Adam on plain batches, not REPTILE", "[variants](#variants)", _variant(values, "REPTILE")),
        ("a small network over rows, not a U-Net", "[variants](#variants)", _variant(values, "the paper's U-Net")),
        ("Eq. 2 of small weight beside the task's loss", "`bundles/omniglot/card.json`", _eq2_weight()),
    ]  # fmt: skip


def _steps(figure: dict[str, Any]) -> str:
    rows = {int(steps): row["Lt-Di"] for steps, row in figure.get("by_steps", {}).items()}
    own = rows.pop(20, None)
    if own is None or not rows:
        return "not measured"
    best = min(rows, key=lambda steps: rows[steps]["error"]["mean"])
    error, points = difference(rows[best]["error"], own["error"]), difference(own["accuracy"], rows[best]["accuracy"])
    said = f"error of Lt-Di {text(own['error'])}; the best of the others, T = {best}, {text(rows[best]['error'])}. {WAYS[sign(error)]}"
    return f"{said}; in accuracy T = 20 is at {text(points, 2, signed=True)} points to that"


def _segments(values: Values) -> str:
    found, ways = [], set()
    for name, images in (("figure3", "Omniglot"), ("figure3-mini", "mini-ImageNet")):
        for shots, column in values.get(name, {}).items():
            rows = column["by_segments"]
            if "3" in rows:
                error, points = (difference(rows["3"][key], rows["1"][key]) for key in ("error", "accuracy"))
                ways.add(-sign(error))
                found.append(f"{images} {shots} {text(error, signed=True)} in error, {text(points, 2, signed=True)} points")
    if not found:
        return "not measured"
    agreed = WAYS[ways.pop()] if len(ways) == 1 else "Columns disagree"
    return f"against m = 1: {'; '.join(found)}. {agreed}; kept as the paper's"


def _longest(figure: dict[str, Any]) -> str:
    found, ways = [], set()
    for name, case in figure.items():
        if "U-Net" not in name:
            last = case["rows"][-1]
            ways.add(-sign(last["error less 1"]["3"]))
            points = difference(last["3"]["accuracy"], last["1"]["accuracy"])
            found.append(f"{name} {text(last['error less 1']['3'], signed=True)} in error, {text(points, 2, signed=True)} points")
    if not found:
        return "not measured"
    return f"against m = 1: {'; '.join(found)}. {WAYS[ways.pop()] if len(ways) == 1 else 'Columns disagree'}"


def _variant(values: Values, name: str) -> str:
    rows = values.get("variants", {})
    first = next(iter(rows), None)
    if first is None or name not in rows:
        return "not measured"
    own, other = (rows[one]["Lt-Di"]["error"] for one in (first, name))
    return f"error of Lt-Di {text(own)}; *{name}* {text(other)}. {WAYS[sign(difference(other, own))]}"


def _preparation(figure: dict[str, Any]) -> str:
    rows: dict[str, dict[str, Interval]] = figure.get("many_shot", {})
    if "both" not in rows:
        return "not measured"
    changes = "; ".join(f"{name} {text(row['difference'], 2, signed=True)}" for name, row in rows.items() if name != "neither")
    alone = [name for name, row in rows.items() if name not in ("neither", "both") and sign(difference(row["difference"], rows["both"]["difference"])) > 0]
    better = f"; better than both: {', '.join(alone)}" if alone else ""
    return f"points against neither, many-shot targets: {changes}. {WAYS[sign(rows['both']['difference'])]}{better}"


def _eq2_weight() -> str:
    """The card's differences to the best closed form on validation classes, by weight of Eq. 2."""
    by_weight = _read(BUNDLES / IMAGES[0] / "card.json")["validation_difference_by_eq2_weight"]
    chosen = experiment(IMAGES[0])
    assert isinstance(chosen, Experiment) and isinstance(chosen.meta_train, MetaTrainConfig)
    own = by_weight[f"{chosen.meta_train.eq2_weight:g}"]
    outside = {name for name, row in by_weight.items() if any(abs(row[p]["mean"] - own[p]["mean"]) > own[p]["half_width"] for p in own)}
    said = "; ".join(f"{protocol} " + ", ".join(f"{row[protocol]['mean']:+.3f}" for row in by_weight.values()) for protocol in own)
    weight = f"{chosen.meta_train.eq2_weight:g}"
    level = ", ".join(name for name in by_weight if name not in outside and name != weight)
    return (
        f"points above the closed form on validation classes, at weights {', '.join(by_weight)}: {said}. Within the interval of {weight}, which ships: "
        f"{level or 'none'}; outside of it: {', '.join(name for name in by_weight if name in outside) or 'none'}"
    )
