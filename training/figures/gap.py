"""Ours: what the sampler brings the network against what it was trained on, and what closing that gap is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.objective import training_state
from training.figures import plots
from training.figures.models import Model, condition_of, noise_of
from training.figures.record import difference, interval, text
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
DRAWS, CLOSED, MOST_SEEDS = 4, (1, 3, 9), 3



def measure(setting: Setting) -> dict[str, Any]:
    """The gap by step for each schedule (seed 0), and what training on visited states is worth (three seeds)."""
    lab = setting.lab()
    steps: dict[str, Any] = {}
    for schedule, own in setting.some(list(SCHEDULES.items())):
        for name, m in KINDS.items():
            steps[f"{name}, {schedule}"] = by_step(lab, setting.model(lab, m, schedule=dict(own)), setting.part)
    closed = by_step(lab, setting.model(lab, 3, visited=0.5), setting.part)
    closing = {str(m): _closing(setting, m) for m in CLOSED}
    return {"by_step": steps | {"Lt-Di, cosine, half visited": closed}, "closing": closing}


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


def _closing(setting: Setting, segments: int) -> dict[str, Any]:
    """Error without and with visited states among those trained on."""
    found = {
        str(share): interval([setting.model(setting.lab(s), segments, visited=share).curve[-1]["error"] for s in setting.seeds[:MOST_SEEDS]])
        for share in (0.0, 0.5)
    }
    return found | {"difference": difference(found["0.5"], found["0.0"])}


def draw(values: dict[str, Any], path: Path) -> None:
    """Noise and errors by step for the cosine schedule; errors without and with visited states."""
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
    for share, colour, label in (("0.0", plots.VANILLA, "training states alone"), ("0.5", plots.OTHER, "half of them visited")):
        found = [row[share] for row in values["closing"].values()]
        plots.curve(last, [int(m) for m in values["closing"]], found, color=colour, label=label)
    last.set_xlabel("segments, m")
    last.set_ylabel("mean squared error of x_0")
    last.legend(fontsize=8)
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| seed 0 | noise left one step after the start, at t = 1, of what was trained on | squared error of the last answer on training states, visited |"]
    lines.append("|---|---|---|")
    for name, row in values["by_step"].items():
        lines.append(f"| {name} | {row['noise'][1]:.3f}, {row['noise'][-1]:.3f} | {row['trained'][-1]:.3f}, {row['visited'][-1]:.3f} |")
    lines += ["", "| m | error | with half of the training states visited | difference |", "|---|---|---|---|"]
    for m, row in values["closing"].items():
        lines.append(f"| {m} | {text(row['0.0'], 4)} | {text(row['0.5'], 4)} | {text(row['difference'], 4, signed=True)} |")
    return lines


def claims(values: dict[str, Any]) -> list[Any]:
    """None: the paper makes no claim of it."""
    return []
