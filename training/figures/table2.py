"""Table 2: heads for sets that nothing was trained on: without labels where the body reads text, else from a few examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ltdi import baselines
from training.figures import plots
from training.figures.evaluated import WITHOUT_LABELS, seeds_sign, seeds_text, transfers, without_labels
from training.figures.published import ZERO_SHOT, ZERO_SHOT_SETS
from training.figures.record import Claim, counted, difference, interval, sign, text
from training.figures.rivals import CLOSED
from training.figures.setting import Setting

MOST_SEEDS = 3
TITLE = "sets that nothing was trained on"
PAPER = "zero-shot from ImageNet to CIFAR-10 and others, Lt-Di above REPTILE, Meta-Baseline and other generators, by 1.58 points in the mean."
TRANSFERS = {"mini-imagenet": ("cifar10",), "omniglot": ("kannada", "digits")}
KINDS = {"Lv-Di": 1, "Lt-Di": 3}
BUNDLE = "minilm"


def measure(setting: Setting) -> dict[str, Any]:
    """Heads for texts without labels and few-shot transfer of whole generators, both read; transfer of the laboratory's generators."""
    fewer = setting.first(MOST_SEEDS)
    images = {
        f"{source} to {name}": _transfer(replace(fewer, images=source), name)
        for source, names in setting.some(list(TRANSFERS.items()), 1) for name in setting.some(names, 1)
    }  # fmt: skip
    return {"texts": without_labels(BUNDLE), "whole": transfers(), "images": images}


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
    names = values["texts"]["names"]
    for place, row in enumerate(names):
        low, mean, high = (row["difference"][key] for key in ("low", "mean", "high"))
        left.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=plots.TRAJECTORY)
    left.set_yticks(range(len(names)), [f"{row['set']} ({row['ways']})" for row in names], fontsize=8)
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
    """What the page says: what is zero-shot, what is not, and what the paper prints."""
    return [*_texts(values["texts"]), "", *_laboratory(values["images"]), "", *_whole(values["whole"]), "", *_printed()]


def _texts(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "**Zero-shot**, as the bundle `minilm` does it: sets of texts that its generators never saw, nor any of the same source; heads without one "
        "labelled item, from the names of the classes, or from those and unlabelled texts, read from the table of `ltdi evaluate --config minilm`. "
        "A closed form has the same information and is chosen for each set on the others, self-training among them; `name-means` are the names' "
        "embeddings. Where unlabelled texts mislead the closed form that was chosen, the names' embeddings on the left are the ones to beat.", "",
        "| set (classes) | names: generated; closed form; difference | names and unlabelled texts: generated; closed form; difference |", "|---|---|---|",
    ]  # fmt: skip
    for rows in zip(*(found[kind] for kind in WITHOUT_LABELS), strict=True):
        lines.append(f"| {rows[0]['set']} ({rows[0]['ways']}) | " + " | ".join(map(_cell, rows)) + " |")
    return lines


def _cell(row: dict[str, Any]) -> str:
    found, closed = row["difference"], row["closed_form"]
    said = f"{found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"
    return f"{row['generated']:.1f}; {closed['name']} {closed['accuracy']:.1f}; {said}"


def _laboratory(found: dict[str, dict[str, Any]]) -> list[str]:
    kinds = [*KINDS, "class means"]
    lines = [
        "**Not zero-shot**: no body here reads both images and names. The laboratory's generators, 5-way 1-shot, on sets that neither they nor "
        "their bodies saw:", "",
        "| from, to | " + " | ".join(kinds) + " | closed form that validation tasks choose | Lt-Di less it | Lt-Di less Lv-Di |", "|---" * (len(kinds) + 4) + "|",
    ]  # fmt: skip
    for name, row in found.items():
        cells = " | ".join(text(row["rows"][kind], 2) for kind in kinds)
        best = f"{row['closed_form']} {text(row['rows']['best closed form'], 2)}"
        lines.append(f"| {name} | {cells} | {best} | {text(row['difference'], 2, signed=True)} | {text(row['trajectory'], 2, signed=True)} |")
    return lines


def _whole(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "The project's whole generators of images, read from the tables of `ltdi evaluate --config omniglot --on digits` and so on; closed forms and "
        "settings are those of the source's validation classes:", "",
        "| from, to | tasks | generated | without the chain | closed form | difference, three seeds | closed form that sees views too | "
        "difference, seed 0 |", "|---" * 8 + "|",
    ]  # fmt: skip
    for row in found:
        closed, views = row["closed_form"], row["on_views"]
        lines.append(
            f"| {row['from']} to {row['to']} | {row['protocol']} | {row['generated']:.2f} | {row['no_chain']:.2f} | {closed['name']} {closed['accuracy']:.2f} | "
            f"{seeds_text(row['difference_by_seed'])} | {views['name']} {views['accuracy']:.2f} | "
            f"{seeds_text({'0': views['difference']})} |"
        )
    return lines


def _printed() -> list[str]:
    lines = ["| printed, zero-shot, ResNet-12 and ImageNet | " + " | ".join(ZERO_SHOT_SETS) + " |", "|---" * (1 + len(ZERO_SHOT_SETS)) + "|"]
    return lines + [f"| {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |" for name, row in ZERO_SHOT.items()]


def claims(values: dict[str, Any]) -> list[Claim]:
    """The one of section 4.2.1, by what there is: names, names and unlabelled texts, a few examples, and trajectories."""
    found = [_texts_claim(values["texts"][kind], kind) for kind in WITHOUT_LABELS]
    carried = {f"laboratory, {name}": sign(row["difference"]) for name, row in values["images"].items()}
    carried |= {f"{row['from']} to {row['to']}, {row['protocol']}": seeds_sign(row["difference_by_seed"]) for row in values["whole"]}
    says = "not zero-shot, from a few examples: generated heads are above closed forms on images of other sets"
    views = [seeds_sign({"0": row["on_views"]["difference"]}) for row in values["whole"]]
    beside = f"where closed forms see views too: above on {views.count(1)}, below on {views.count(-1)} of {len(views)}"
    found.append(Claim("4.2.1", says, counted(list(carried.values())), f"{_counts(carried)}; {beside}"))
    ways = {name: sign(row["trajectory"]) for name, row in values["images"].items()}
    apart = "; ".join(f"{name} {text(row['trajectory'], 2, signed=True)}" for name, row in values["images"].items())
    return [*found, Claim("4.2.1", "there Lt-Di is above Lv-Di", counted(list(ways.values())), f"laboratory: {apart}")]


def _texts_claim(rows: list[dict[str, Any]], kind: str) -> Claim:
    ways = {row["set"]: (row["difference"]["low"] > 0) - (row["difference"]["high"] < 0) for row in rows}
    return Claim("4.2.1", f"zero-shot, from {kind}: generated heads are ahead on sets of texts that nothing was trained on", counted(list(ways.values())), _counts(ways))


def _counts(ways: dict[str, int]) -> str:
    above, below = ([name for name, way in ways.items() if way == wanted] for wanted in (1, -1))
    return f"above on {'; '.join(above) or 'none'}; below on {'; '.join(below) or 'none'}; of {len(ways)}, intervals apart from 0"
