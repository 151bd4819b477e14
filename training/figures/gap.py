"""Ours: what the sampler brings the network against what it was trained on, and what closing that gap is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.denoisers.unet import UNetConfig
from ltdi.objective import training_state
from training.figures import plots
from training.figures.models import Model, condition_of, noise_of
from training.figures.record import CONDITION, HOLDS, NOT_HERE, Claim, difference, interval, sign, text
from training.figures.setting import Setting
from training.figures.tasks import Lab

TITLE = "training states against visited states, and what closing the gap is worth"
PAPER = (
    "nothing; it takes for granted that the chain passes through the waypoints as the network was trained to. Each segment's "
    "network is trained on noised waypoints, but when sampling it gets what the segment above left, with hardly any noise."
)
KINDS = {"Lv-Di": 1, "Lt-Di": 3}
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {}, "linear to 0.5": {"shape": "linear"}, "linear to 0.99": {"shape": "linear", "beta_last": 0.99},
}  # fmt: skip
DRAWS, CLOSED = 4, (1, 3, 9)
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
    """The gap by step for each schedule (seed 0), and errors of the variants (three seeds)."""
    lab = setting.lab()
    steps: dict[str, Any] = {}
    for schedule, own in setting.some(list(SCHEDULES.items())):
        for name, m in KINDS.items():
            steps[f"{name}, {schedule}"] = by_step(lab, setting.model(lab, 0, m, schedule=dict(own)), setting.part)
    closed = by_step(lab, setting.model(lab, 0, 3, visited=0.5), setting.part)
    variants = {name: _variant(setting, *changes) for name, changes in setting.some(list(VARIANTS.items()), 3)}
    closing = {str(m): _closing(setting, lab, m) for m in CLOSED}
    return {"by_step": steps | {"Lt-Di, cosine, half visited": closed}, "variants": variants, "closing": closing}


def by_step(lab: Lab, model: Model, part: str) -> dict[str, list[float]]:
    """For t = T .. 1: the noise left in visited states, and the error of the waypoint answered on training and visited states.

    Noise is the standard deviation over four draws of x_T, in units of sqrt(1 - kept), what training states have.
    """
    tasks, schedule = lab.measured(part), model.schedule
    condition, trajectory = condition_of(tasks), lab.codec.encode(tasks.trajectory(schedule.segments)).flatten(2)
    draws = torch.stack([_states(model, condition, noise_of(tasks, draw)) for draw in range(DRAWS)])
    chance = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"t": [], "noise": [], "trained": [], "visited": []}
    for place, t in enumerate(range(schedule.steps, 0, -1)):
        steps = torch.full((len(trajectory),), t)
        state = training_state(schedule, trajectory, steps, torch.randn(trajectory[:, 0].shape, generator=chance))
        kept = float(schedule.alpha_bar_from(int(schedule.start_of_step[t]), t))
        found["t"].append(t)
        found["noise"].append(float((draws[:, place].var(0).mean() / (1 - kept)).sqrt()))
        for name, x in (("trained", state.x), ("visited", draws[0, place])):
            found[name].append(_waypoint_error(model, x, t, condition, state.waypoint))
    return found


def _states(model: Model, condition: Tensor, start: Tensor) -> Tensor:
    """x_T .. x_0, `[T + 1, B, P]`."""
    visited = [start]
    model.chain(condition, start, lambda t, x: visited.append(x))
    return torch.stack(visited)


def _waypoint_error(model: Model, x: Tensor, t: int, condition: Tensor, waypoint: Tensor) -> float:
    """Mean squared error of the waypoint that the network's eps_phi stands for."""
    from_x, from_waypoint = model.schedule.waypoint_factors[t]
    with torch.no_grad():
        answer = (x * from_x - model.denoiser(x, t, condition)) / from_waypoint
    return float((answer - waypoint).square().mean())


def _variant(setting: Setting, of_lab: dict[str, Any], of_model: dict[str, Any]) -> dict[str, Any]:
    lab, row = setting.lab(**of_lab), {}
    for name, m in KINDS.items():
        ends = [setting.model(lab, s, m, **_copied(of_model)).curve[-1] for s in setting.seeds[:3]]
        row[name] = {key: interval([end[key] for end in ends]) for key in ("error", "accuracy")}
    return row | {"error_difference": difference(row["Lt-Di"]["error"], row["Lv-Di"]["error"])}


def _closing(setting: Setting, lab: Lab, segments: int) -> dict[str, Any]:
    """Error without and with visited states among those trained on."""
    found = {
        str(share): interval([setting.model(lab, s, segments, visited=share).curve[-1]["error"] for s in setting.seeds[:3]])
        for share in (0.0, 0.5)
    }
    return found | {"difference": difference(found["0.5"], found["0.0"])}


def _copied(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in changes.items()}


def draw(values: dict[str, Any], path: Path) -> None:
    """Noise and errors by step for the cosine schedule; differences of the variants."""
    figure, (noise, error, last) = plots.panels(3)
    colours = {"Lv-Di, cosine": plots.VANILLA, "Lt-Di, cosine": plots.TRAJECTORY, "Lt-Di, cosine, half visited": plots.OTHER}
    for name, colour in colours.items():
        row = values["by_step"][name]
        noise.plot(row["t"], row["noise"], color=colour, marker="o", ms=3, label=name)
        error.plot(row["t"], row["visited"], color=colour, marker="o", ms=3, label=f"{name}: visited")
        error.plot(row["t"], row["trained"], color=colour, ls=":", label="on training states")
    noise.axhline(1, color=plots.GREY, lw=1)
    for axis in (noise, error):
        axis.invert_xaxis()
        axis.set_xlabel("step t, from the start of the chain")
        axis.legend(fontsize=7)
    noise.set_ylabel("noise left, in units of the noise trained on")
    noise.set_yscale("log")
    error.set_ylabel("squared error of the waypoint answered")
    names = list(values["variants"])
    found = [row["error_difference"] for row in values["variants"].values()]
    last.errorbar([one["mean"] for one in found], range(len(names)), xerr=[one["half"] or 0 for one in found], fmt="o", color=plots.TRAJECTORY)
    last.axvline(0, color=plots.GREY, lw=1)
    last.set_yticks(range(len(names)), names, fontsize=7)
    last.set_xlabel("error, Lt-Di minus Lv-Di")
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| | noise left one step after the start, at t = 1, of what was trained on | squared error of the last answer on training states, visited |"]
    lines.append("|---|---|---|")
    for name, row in values["by_step"].items():
        lines.append(f"| {name} | {row['noise'][1]:.3f}, {row['noise'][-1]:.3f} | {row['trained'][-1]:.3f}, {row['visited'][-1]:.3f} |")
    lines += ["", "| m | error | with half of the training states visited | difference |", "|---|---|---|---|"]
    for m, row in values["closing"].items():
        lines.append(f"| {m} | {text(row['0.0'], 4)} | {text(row['0.5'], 4)} | {text(row['difference'], 4, signed=True)} |")
    lines += ["", "| variant | Lv-Di: error, accuracy | Lt-Di | error, Lt-Di minus Lv-Di |", "|---|---|---|---|"]
    for name, row in values["variants"].items():
        cells = " | ".join(f"{text(row[k]['error'])}, {text(row[k]['accuracy'], 2)}" for k in KINDS)
        lines.append(f"| {name} | {cells} | {text(row['error_difference'], signed=True)} |")
    return lines


def claims(values: dict[str, Any]) -> list[Claim]:
    """The paper's explanation of figure 1, and ours of the gap."""
    signs = {name: sign(row["error_difference"]) for name, row in values["variants"].items()}
    ahead, behind = ([n for n, v in signs.items() if v == wanted] for wanted in (-1, 1))
    verdict = HOLDS if len(ahead) == len(signs) else (CONDITION if ahead else NOT_HERE)
    why = f"lower error with intervals apart: {'; '.join(ahead) or 'in no variant'}. Higher: {'; '.join(behind) or 'in none'}"
    return [Claim("3.1", "trajectory weights improve the end of the chain, x_0", verdict, why)]
