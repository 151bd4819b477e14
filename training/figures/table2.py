"""Table 2: heads for sets that nothing was trained on: from class names alone where the body reads text, else from one example."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltdi import baselines
from ltdi.errors import DataMissing
from training.figures import plots
from training.figures.record import CONDITION, NOT_HERE, Claim, difference, interval, sign, text
from training.figures.rivals import CLOSED
from training.figures.setting import Setting

MOST_SEEDS = 3
TITLE = "sets that nothing was trained on"
PAPER = "zero-shot from ImageNet to CIFAR-10 and others, Lt-Di above REPTILE, Meta-Baseline and other generators, by 1.58 points in the mean."
TRANSFERS = {"mini-imagenet": ("cifar10",), "omniglot": ("kannada", "digits")}
KINDS = {"Lv-Di": 1, "Lt-Di": 3}
TEXTS = Path(__file__).parents[2] / "results" / "minilm.json"
NAMES_ONLY = {"shots": 0, "information": "names", "raw_labels": False}


def measure(setting: Setting) -> dict[str, Any]:
    """Names alone on texts, read from the table of the bundle `minilm`; one-shot transfer of the laboratory's generators."""
    fewer = setting.first(MOST_SEEDS)
    images = {
        f"{source} to {name}": _transfer(replace(fewer, images=source), name)
        for source, names in setting.some(list(TRANSFERS.items()), 1) for name in setting.some(names, 1)
    }  # fmt: skip
    return {"texts": names_only(TEXTS), "images": images}


def names_only(path: Path) -> list[dict[str, Any]]:
    """Per left-out text set: classes, accuracy of the head from names alone and of the best closed form, their difference.

    Raises:
        DataMissing: the table is not there.
    """
    if not path.exists():
        raise DataMissing(f"no {path.name}; make it by `ltdi evaluate --config minilm`")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    chosen = [cell for cell in cells if all(cell[key] == value for key, value in NAMES_ONLY.items())]
    return [
        {"set": c["set"], "ways": c["ways"], "generated": c["generated"], "closed_form": c["closed_form"], "difference": c["difference_closed_form"]}
        for c in chosen
    ]  # fmt: skip


def _transfer(setting: Setting, name: str) -> dict[str, Any]:
    """5-way 1-shot on another set, body, frame, generator and closed form those of the source."""
    val = setting.lab().measured("val")
    best = max(CLOSED, key=lambda form: float(val.accuracy(CLOSED[form](val.support)).mean()))
    found: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "best closed form", "class means")}
    for seed in setting.seeds:
        lab = setting.lab(seed)
        tasks = lab.elsewhere(name)
        for kind, m in KINDS.items():
            found[kind].append(float(setting.model(lab, m).generate(lab, tasks).accuracy.mean()))
        for kind, form in (("best closed form", CLOSED[best]), ("class means", baselines.class_means)):
            found[kind].append(float(tasks.accuracy(form(tasks.support)).mean()))
    rows = {kind: interval(values) for kind, values in found.items()}
    return {
        "closed_form": best, "rows": rows, "trajectory": difference(rows["Lt-Di"], rows["Lv-Di"]),
        "difference": difference(rows["Lt-Di"], rows["best closed form"]),
    }  # fmt: skip


def draw(values: dict[str, Any], path: Path) -> None:
    """Differences: texts on the left, images on the right."""
    figure, (left, right) = plots.panels(2)
    for place, row in enumerate(values["texts"]):
        low, mean, high = (row["difference"][key] for key in ("low", "mean", "high"))
        left.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=plots.TRAJECTORY)
    left.set_yticks(range(len(values["texts"])), [f"{row['set']} ({row['ways']})" for row in values["texts"]], fontsize=8)
    left.set_xlabel("from names alone, less the best closed form, points")
    for place, row in enumerate(values["images"].values()):
        for shift, key, colour in ((-0.1, "difference", plots.TRAJECTORY), (0.1, "trajectory", plots.VANILLA)):
            label = {"difference": "Lt-Di less the best closed form", "trajectory": "Lt-Di less Lv-Di"}[key] if place == 0 else None
            right.errorbar(row[key]["mean"], place + shift, xerr=row[key]["half"] or 0, fmt="o", capsize=3, color=colour, label=label)
    right.set_yticks(range(len(values["images"])), list(values["images"]), fontsize=8)
    right.set_xlabel("one example a class, points")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.axvline(0, color=plots.GREY, lw=1)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = [
        "Zero-shot, as the bundle `minilm` does it: sets of texts that its generators never saw, heads from the names of the classes alone "
        "(`ltdi evaluate --config minilm`; closed forms read the same names).", "",
        "| set (classes) | from names | best closed form | difference |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in values["texts"]:
        d = row["difference"]
        lines.append(f"| {row['set']} ({row['ways']}) | {row['generated']:.1f} | {row['closed_form']['accuracy']:.1f} | {d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f}) |")
    kinds = [*KINDS, "class means"]
    lines += [
        "", "Not zero-shot: no body here reads both images and names. The laboratory's generators, 5-way 1-shot, on sets that neither they nor "
        "their bodies saw:", "",
        "| from, to | " + " | ".join(kinds) + " | closed form that validation tasks choose | Lt-Di less it | Lt-Di less Lv-Di |", "|---" * (len(kinds) + 4) + "|",
    ]  # fmt: skip
    for name, row in values["images"].items():
        cells = " | ".join(text(row["rows"][kind], 2) for kind in kinds)
        best = f"{row['closed_form']} {text(row['rows']['best closed form'], 2)}"
        lines.append(f"| {name} | {cells} | {best} | {text(row['difference'], 2, signed=True)} | {text(row['trajectory'], 2, signed=True)} |")
    return lines


def claims(values: dict[str, Any]) -> list[Claim]:
    """The one of section 4.2.1."""
    texts = values["texts"]
    above = [row["set"] for row in texts if row["difference"]["low"] > 0]
    below = [row["set"] for row in texts if row["difference"]["high"] < 0]
    carried = {name: sign(row["difference"]) for name, row in values["images"].items()}
    ahead = [name for name, found in carried.items() if found > 0]
    why = (
        f"names alone: above the best closed form on {', '.join(above) or 'none'}, below on {', '.join(below) or 'none'} of {len(texts)}; "
        f"transfer of the laboratory's Lt-Di: above on {', '.join(ahead) or 'none'} of {len(carried)}"
    )
    verdict = CONDITION if above or ahead else NOT_HERE
    return [Claim("4.2.1", "generated heads are ahead on sets that nothing was trained on", verdict, why)]
