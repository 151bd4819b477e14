"""Ours: the comparison of vanilla and trajectory diffusion under other choices than the laboratory's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ltdi.denoisers.unet import UNetConfig
from training.figures import plots
from training.figures.gap import KINDS, SCHEDULES
from training.figures.record import CONDITION, HOLDS, NOT_HERE, Claim, difference, interval, sign, text
from training.figures.setting import Setting

TITLE = "Lt-Di against Lv-Di under other choices"
PAPER = "Trajectory weights improve the end of the chain."
MOST_SEEDS = 3
UNET = UNetConfig(channels=(16, 32), stride=8, embedding=512)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as elsewhere on this page": ({}, {}),
    "half of training states visited": ({}, {"visited": 0.5}),
    "linear to 0.5": ({}, {"schedule": SCHEDULES["linear to 0.5"]}),
    "linear to 0.99": ({}, {"schedule": SCHEDULES["linear to 0.99"]}),
    "linear to 0.99, half visited": ({}, {"schedule": SCHEDULES["linear to 0.99"], "visited": 0.5}),
    "one start shared by all tasks": ({"start": "shared"}, {}),
    "few-shot targets": ({"target": "few_shot"}, {}),
    "three times the budget": ({}, {"batches": 1800}),
    "REPTILE": ({}, {"inner_steps": 5}),
    "the paper's U-Net": ({}, {"denoiser": UNET}),
}


def measure(setting: Setting) -> dict[str, Any]:
    """Error and accuracy of both for each variant."""
    return {name: _variant(setting, *changes) for name, changes in setting.some(list(VARIANTS.items()), 3)}


def _variant(setting: Setting, of_lab: dict[str, Any], of_model: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, m in KINDS.items():
        ends = [setting.model(setting.lab(s, **of_lab), m, **_copied(of_model)).curve[-1] for s in setting.seeds[:MOST_SEEDS]]
        row[name] = {key: interval([end[key] for end in ends]) for key in ("error", "accuracy")}
    return row | {"error_difference": difference(row["Lt-Di"]["error"], row["Lv-Di"]["error"])}


def _copied(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in changes.items()}


def draw(values: dict[str, Any], path: Path) -> None:
    """The differences."""
    figure, (axis,) = plots.panels(1, width=7)
    names = list(values)
    found = [row["error_difference"] for row in values.values()]
    axis.errorbar([one["mean"] for one in found], range(len(names)), xerr=[one["half"] or 0 for one in found], fmt="o", color=plots.TRAJECTORY)
    axis.axvline(0, color=plots.GREY, lw=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("mean squared error, Lt-Di minus Lv-Di")
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| variant | Lv-Di: error, accuracy | Lt-Di | error, Lt-Di minus Lv-Di |", "|---|---|---|---|"]
    for name, row in values.items():
        cells = " | ".join(f"{text(row[k]['error'])}, {text(row[k]['accuracy'], 2)}" for k in KINDS)
        lines.append(f"| {name} | {cells} | {text(row['error_difference'], signed=True)} |")
    return lines


def claims(values: dict[str, Any]) -> list[Claim]:
    """The paper's main one, over all variants."""
    signs = {name: sign(row["error_difference"]) for name, row in values.items()}
    ahead, behind = ([n for n, v in signs.items() if v == wanted] for wanted in (-1, 1))
    verdict = HOLDS if len(ahead) == len(signs) else (CONDITION if ahead else NOT_HERE)
    why = f"lower error with intervals apart: {'; '.join(ahead) or 'in no variant'}. Higher: {'; '.join(behind) or 'in none'}"
    return [Claim("3.1", "trajectory weights improve the end of the chain, x_0", verdict, why)]
