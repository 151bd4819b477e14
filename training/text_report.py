"""The table of whole label sets as Markdown and as a plot, and the card of a text bundle."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from training.cards import WHY_DEFAULTS
from training.configs.text import TextExperiment

TITLES = {"examples": "examples", "names": "+ names", "pool": "+ pool", "all": "names and pool"}


def markdown_report(result: dict[str, Any]) -> str:
    """The whole table, percent, with paired 95 % intervals over supports and items."""
    lines = [
        f"# Whole label sets: `{result['config']}`",
        "",
        f"{result['seeds']} supports a cell; every set is answered by generators that never saw its group, in "
        f"{len(next(iter(result['cells']))['by_training_seed'])} training seeds. The closed form is the one, with its "
        "settings, that is best in the same column on the sets of other groups.",
        "",
        *summary(result),
        "",
    ]
    for raw in (False, True):
        cells = [cell for cell in result["cells"] if cell["raw_labels"] == raw]
        if cells:
            lines += ["## " + ("Names: the raw labels" if raw else "Names: written for people"), "", *_cells(cells), ""]
    if result["own_history"]:
        lines += ["## Own history: 100 intents of CLINC150 are the past, 50 are new", ""]
        lines += ["| knows | generated | closed form | difference |", "|---|---|---|---|"]
        lines += [f"| {name} | {row['generated']:.1f} | {row['closed_form']:.1f} | {_signed(row['difference'])} |"
                  for name, row in result["own_history"].items()]  # fmt: skip
        lines.append("")
    lines += ["## Controls, one example a class with names and pool", "", *_mapping_table(result["controls_one_shot_all"])]
    if result["none_of_these_auroc"]:
        lines += ["", "## None of these: area under the ROC curve, five examples a class", ""]
        lines += _mapping_table(result["none_of_these_auroc"], transposed=True)
    return "\n".join(lines) + "\n"


def summary(result: dict[str, Any]) -> list[str]:
    """The rows that a reader looks for first."""
    count = len(result["cells"])
    one = ", ".join(f"{name} {_signed(value)}" for name, value in result["any_one_closed_form"].items())
    rows = [
        ("mean over cells, against the best closed form of each", _signed(result["mean_difference"])),
        ("the same, where that may be self-training too", _signed(result["mean_difference_strict"])),
        ("cells whose interval lies wholly below -0.3", f"{result['cells_wholly_below']} of {count}"),
        ("the same, with self-training", f"{result['cells_wholly_below_strict']} of {count}"),
        ("against one closed form everywhere", one),
        ("one example a class: names and pool of 1 000, against logistic regression on the example", today(result)),
        ("expected calibration error, 5 examples, no temperature in either: generated, logistic regression", calibration(result)),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def today(result: dict[str, Any]) -> str:
    """Mean over sets of what names and a pool are worth at one example a class."""
    generated = {c["set"]: c["generated"] for c in _cells_of(result, 1, "all")}
    plain = {c["set"]: c["logistic_regression"] for c in _cells_of(result, 1, "examples")}
    gains = {name: generated[name] - plain[name] for name in generated if name in plain}
    if not gains:
        return "not measured"
    each = ", ".join(f"{name} {gain:+.1f}" for name, gain in gains.items())
    return f"{sum(gains.values()) / len(gains):+.1f} ({each})"


def calibration(result: dict[str, Any]) -> str:
    """Mean over sets at five examples a class."""
    cells = [c for c in _cells_of(result, 5, "examples") if "ece logistic" in c]
    if not cells:
        return "not measured"
    own = [sum(v for k, v in c.items() if k.startswith("ece ") and k != "ece logistic") /
           sum(k.startswith("ece ") and k != "ece logistic" for k in c) for c in cells]  # fmt: skip
    return f"{sum(own) / len(own):.3f}, {sum(c['ece logistic'] for c in cells) / len(cells):.3f}"


def _cells_of(result: dict[str, Any], shots: int, information: str) -> list[dict[str, Any]]:
    return [
        c for c in result["cells"]
        if c["shots"] == shots and c["information"] == information and not c["raw_labels"]
    ]  # fmt: skip


def _cells(cells: list[dict[str, Any]]) -> list[str]:
    rows = [
        "| set (classes) | knows | examples a class | generated | closed form | which | difference | strict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        rows.append(
            f"| {c['set']} ({c['ways']}) | {TITLES[c['information']]} | {c['shots']} ({c['examples']} in all) "
            f"| {c['generated']:.1f} | {c['closed_form']['accuracy']:.1f} | {c['closed_form']['name']} "
            f"| {_signed(c['difference_closed_form'])} | {_signed(c['difference_strict'])} |"
        )
    return rows


def _mapping_table(values: dict[str, dict[str, float]], transposed: bool = False) -> list[str]:
    if transposed:
        flipped: dict[str, dict[str, float]] = defaultdict(dict)
        for name, row in values.items():
            for key, value in row.items():
                flipped[key][name] = value
        values = flipped
    columns = list(next(iter(values.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(f"{row.get(c, float('nan')):g}" for c in columns) + " |"
                    for name, row in values.items()]  # fmt: skip


def _signed(value: dict[str, float]) -> str:
    return f"{value['mean']:+.2f} ({value['low']:+.2f} to {value['high']:+.2f})"


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy by examples a class, a panel a set: generated heads, and the closed form given the same."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = list(dict.fromkeys(c["set"] for c in result["cells"]))
    figure, panels = pyplot.subplots(2, -(-len(sets) // 2), figsize=(3.2 * -(-len(sets) // 2), 6), squeeze=False)
    colours = dict(zip(TITLES, ("#888888", "#1b7837", "#2166ac", "#b2182b"), strict=True))
    for panel, name in zip(panels.flat, sets, strict=False):
        for information, colour in colours.items():
            cells = sorted(
                (c for c in result["cells"] if c["set"] == name and c["information"] == information and not c["raw_labels"]),
                key=lambda c: c["shots"],
            )
            shots = [c["shots"] for c in cells]
            panel.plot(shots, [c["generated"] for c in cells], color=colour, marker="o", ms=3, label=TITLES[information])
            panel.plot(shots, [c["closed_form"]["accuracy"] for c in cells], color=colour, ls=":", lw=1.2)
        panel.set_title(name, fontsize=9)
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xticks([0, 1, 2, 5, 10], ["0", "1", "2", "5", "10"])
        panel.grid(alpha=0.3)
    for empty in list(panels.flat)[len(sets) :]:
        empty.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", fontsize=8, title="solid: generated; dotted: closed form")
    figure.supxlabel("examples a class", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def card_of_text(experiment: TextExperiment, digest: str, result: dict[str, Any]) -> dict[str, Any]:
    """What a user should know of a text bundle."""
    accuracy = {}
    for c in result["cells"]:
        if not c["raw_labels"] and (c["information"], c["shots"]) in (("names", 0), ("all", 1), ("all", 5), ("examples", 5)):
            accuracy[f"{c['set']}, {c['shots']} examples, {TITLES[c['information']]}"] = {
                "generated": {"mean": c["generated"]},
                "closed_form": {"mean": c["closed_form"]["accuracy"], "name": c["closed_form"]["name"]},
                "difference": c["difference_closed_form"],
            }
    return {
        "bundle_digest": digest,
        "config": experiment.name,
        "recipe": experiment.recipe,
        "terms": experiment.terms,
        "commit": result["commit"],
        "accuracy": accuracy,
        "mean_difference": result["mean_difference"],
        "text": f"{_text(experiment, result)}\n\n{WHY_DEFAULTS}",
    }


def _text(experiment: TextExperiment, result: dict[str, Any]) -> str:
    reads = "short English texts, by all-MiniLM-L6-v2" if experiment.body else "features of any encoder, of any size"
    return "\n".join([
        f"# Bundle `{experiment.name}`",
        "",
        f"Recipe `geometry`: takes {reads}, from 2 classes on, with names, examples, a pool, or any mix of them. It sees "
        "similarities alone. What ships was trained on all sets of the table and some smaller ones; the table was made by "
        "generators that never saw the set they answer, nor its source, so it speaks of sets that are new.",
        f"Terms of the training data: {experiment.terms}.",
        "",
        *summary(result),
        "",
        "Weak where classes are no topics (sentiment, style, emotion): there a pool misleads, and names help less.",
    ])  # fmt: skip
