"""Figure 3: how many waypoints, against the error of generated heads, at one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.record import Claim, counted, difference, interval, sign, text
from training.figures.references import references
from training.figures.setting import Setting

TITLE = "trajectory length against mean squared error"
PAPER = (
    "Under one budget every length above 2 (m = 1, vanilla diffusion) has a lower error, in 1-shot and 5-shot tasks; the best "
    "length depends on the task."
)
SEGMENTS = tuple(range(1, 10))


def measure(setting: Setting) -> dict[str, Any]:
    """Error and accuracy by shots and m, and what needs no chain beside them."""
    found: dict[str, Any] = {}
    for shots in (1, 5):
        rows = {}
        for m in setting.some(SEGMENTS, 3):
            ends = [setting.model(setting.lab(seed, shots=shots), m).curve[-1] for seed in setting.seeds]
            rows[str(m)] = {key: interval([end[key] for end in ends]) for key in ("error", "accuracy")}
        for row in rows.values():
            row["error_minus_vanilla"] = difference(row["error"], rows["1"]["error"])
        found[f"{shots}-shot"] = {"by_segments": rows, "references": references(setting, shots)}
    return found


def draw(values: dict[str, Any], path: Path) -> None:
    """A panel for each number of shots; intervals are those of differences, which share a seed's tasks."""
    figure, axes = plots.panels(len(values))
    for axis, (name, column) in zip(axes, values.items(), strict=True):
        rows = column["by_segments"]
        shown = [row["error"] | {"half": row["error_minus_vanilla"]["half"]} for row in rows.values()]
        plots.curve(axis, [int(m) + 1 for m in rows], shown, color=plots.TRAJECTORY, label="Lt-Di; bars: of the difference to Lv-Di")
        vanilla = rows["1"]["error"]
        axis.axhline(vanilla["mean"], color=plots.VANILLA, ls="--", lw=1.2, label="Lv-Di (length 2)")
        linear = column["references"]["linear map of the class means"]["error"]["mean"]
        axis.axhline(linear, color=plots.GREY, ls=":", lw=1.2, label="linear map of the class means")
        axis.set_title(f"5-way {name}", fontsize=10)
        axis.set_xlabel("trajectory length, m + 1 waypoints")
        axis.set_ylabel("mean squared error, 1 is the mean head's")
        axis.legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| m | " + " | ".join(f"{name}: error, accuracy" for name in values) + " |", "|---" * (1 + len(values)) + "|"]
    for m in next(iter(values.values()))["by_segments"]:
        cells = [column["by_segments"][m] for column in values.values()]
        lines.append(f"| {m} | " + " | ".join(f"{text(c['error'])}, {text(c['accuracy'], 2)}" for c in cells) + " |")
    for name in next(iter(values.values()))["references"]:
        cells = [column["references"][name] for column in values.values()]
        shown = [f"{'none' if c['error'] is None else text(c['error'], 3)}, {text(c['accuracy'], 2)}" for c in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def claims(values: dict[str, Any]) -> list[Claim]:
    """The two of section 3.2.1."""
    rows = {(name, m): row for name, column in values.items() for m, row in column["by_segments"].items() if m != "1"}
    signs = {key: sign(row["error_minus_vanilla"]) for key, row in rows.items()}
    lower, higher = (_named(signs, wanted) for wanted in (-1, 1))
    verdict = counted([-value for value in signs.values()])
    three = ", ".join(f"{name} {text(column['by_segments']['3']['error_minus_vanilla'], signed=True)}" for name, column in values.items())
    says = f"lower error than m = 1, intervals apart: {lower or 'nowhere'}; higher: {higher or 'nowhere'}; m = 3 minus m = 1: {three}"
    return [Claim("3.2.1", "all trajectory lengths above 2 have a lower error than vanilla diffusion at one budget", verdict, says)]


def _named(signs: dict[tuple[str, str], int], wanted: int) -> str:
    """`1-shot m = 2, 3; 5-shot m = 2`, of the columns that have any."""
    found: dict[str, list[str]] = {}
    for (column, m), value in signs.items():
        if value == wanted:
            found.setdefault(column, []).append(m)
    return "; ".join(f"{column} m = {', '.join(lengths)}" for column, lengths in found.items())
