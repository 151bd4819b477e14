"""Figure 1: inference chains in a plane through the loss landscape of one task's head, from the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.figures import plots
from training.figures.models import Model, condition_of, noise_of
from training.figures.record import HOLDS, NOT_HERE, Claim, difference, interval, sign, text
from training.figures.setting import Setting
from training.figures.tasks import Lab, Tasks, loss_of

TITLE = "inference chains in a plane of the loss landscape"
PAPER = (
    "From the same noise, trajectory weights keep the chain on its way and it ends close to the optimum; without them it deviates."
)
KINDS = {"Lv-Di": 1, "Lt-Di": 3}
CHAINS, GRID, SHOWN = 4, 41, 0


def measure(setting: Setting) -> dict[str, Any]:
    """Chains of one task in the plane of most of their movement, the loss on it, and over all tasks how near chains end."""
    lab = setting.lab()
    tasks = lab.measured(setting.part)
    models = {name: setting.model(lab, m) for name, m in KINDS.items()}
    chains = {name: _chains(model, tasks) for name, model in models.items()}
    optimum = lab.codec.encode(tasks.optimum)[SHOWN].flatten()
    plane = _plane(torch.cat([chain.flatten(0, 1) for chain in chains.values()]), optimum)
    flat = {name: ((chain - optimum) @ plane).tolist() for name, chain in chains.items()}
    path = ((lab.codec.encode(tasks.path[:, SHOWN]).flatten(1) - optimum) @ plane).tolist()
    return {
        "chains": flat, "descent": path, "landscape": _landscape(lab, tasks, plane, [*flat.values(), [path]], optimum),
        "deviation": {name: _deviation(setting, m) for name, m in KINDS.items()},
    }  # fmt: skip


def _chains(model: Model, tasks: Tasks) -> Tensor:
    """x_T .. x_0 of several draws for the task that is shown, `[T + 1, draws, P]`."""
    condition = condition_of(tasks)[SHOWN].expand(CHAINS, -1)
    states = [torch.cat([noise_of(tasks, draw)[SHOWN : SHOWN + 1] for draw in range(CHAINS)])]
    model.chain(condition, states[0], lambda t, x: states.append(x))
    return torch.stack(states)


def _plane(states: Tensor, optimum: Tensor) -> Tensor:
    """The two leading principal directions of all states about the optimum, `[P, 2]`."""
    return torch.linalg.svd(states - optimum, full_matrices=False).Vh[:2].T


def _landscape(lab: Lab, tasks: Tasks, plane: Tensor, drawn: list[Any], optimum: Tensor) -> dict[str, Any]:
    points = torch.tensor([point for chain in drawn for step in chain for point in step])
    low, high = points.amin(0), points.amax(0)
    x, y = (torch.linspace(float(a - 0.1 * (b - a)), float(b + 0.1 * (b - a)), GRID) for a, b in zip(low, high, strict=True))
    at = torch.cartesian_prod(x, y)
    heads = lab.codec.decode((optimum + at @ plane.T).unflatten(1, tasks.optimum.shape[1:]))
    one = Tasks(*(part[SHOWN : SHOWN + 1].expand(len(at), *[-1] * (part.ndim - 1)) for part in (tasks.support, tasks.query, tasks.items)),
                tasks.path, tasks.classes)  # fmt: skip
    return {"x": x.tolist(), "y": y.tolist(), "loss": loss_of(lab.config, one)(heads).view(GRID, GRID).tolist()}


def _deviation(setting: Setting, segments: int) -> dict[str, Any]:
    """Over all tasks and seeds: distance to the optimum and the loss above it at the end, and the spread of four draws."""
    found: dict[str, list[float]] = {"error": [], "loss": [], "spread": []}
    for seed in setting.seeds:
        lab = setting.lab(seed)
        tasks, losses = lab.measured(setting.part), loss_of(lab.config, lab.measured(setting.part))
        model = setting.model(lab, segments)
        draws = [model.generate(lab, tasks, draw) for draw in range(CHAINS)]
        heads = torch.stack([lab.codec.encode(one.heads) for one in draws])
        found["error"].append(float(draws[0].error.mean()))
        found["loss"].append(float((losses(draws[0].heads) - losses(tasks.optimum)).mean()))
        found["spread"].append(float(heads.var(0).mean()))
    return {name: interval(values) for name, values in found.items()}


def draw(values: dict[str, Any], path: Path) -> None:
    """A panel each, on the same plane."""
    figure, axes = plots.panels(2)
    land = values["landscape"]
    for axis, (name, chain), colour in zip(axes, values["chains"].items(), (plots.VANILLA, plots.TRAJECTORY), strict=True):
        loss = torch.tensor(land["loss"]).T
        drawn = axis.contourf(land["x"], land["y"], loss.log(), levels=18, cmap="Greys_r")
        for run in range(len(chain[0])):
            axis.plot([step[run][0] for step in chain], [step[run][1] for step in chain], color=colour, marker=".", ms=4, lw=0.8)
        axis.plot(*zip(*values["descent"], strict=True), color=plots.OTHER, lw=1.2, ls="--", label="gradient descent")
        axis.plot(0, 0, marker="*", ms=12, color="#ffb000", label="optimum", ls="")
        axis.set_title(f"{name}: {len(chain[0])} draws of x_T", fontsize=10)
        axis.set_xlim(land["x"][0], land["x"][-1])
        axis.set_ylim(land["y"][0], land["y"][-1])
        axis.set_xlabel("first principal direction, standardised")
        axis.set_ylabel("second")
    axes[0].legend(fontsize=8)
    figure.colorbar(drawn, ax=axes, label="log of the loss", shrink=0.8)
    figure.savefig(path, dpi=110, metadata={"Software": None}, bbox_inches="tight")


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = ["| all tasks | squared distance to the optimum at the end | loss above the optimum's | variance over draws |", "|---|---|---|---|"]
    return lines + [f"| {name} | {text(row['error'])} | {text(row['loss'], 4)} | {row['spread']['mean']:.1e} |" for name, row in values["deviation"].items()] + [
        "", "Drawn: one task of seed 0."
    ]  # fmt: skip


def claims(values: dict[str, Any]) -> list[Claim]:
    """The one of figure 1."""
    rows = values["deviation"]
    apart = difference(rows["Lt-Di"]["error"], rows["Lv-Di"]["error"])
    why = f"squared distance at the end {text(rows['Lt-Di']['error'])} with, {text(rows['Lv-Di']['error'])} without; difference {text(apart, signed=True)}"
    return [Claim("3.1", "chains trained with trajectory weights end nearer to the optimum from the same noise", HOLDS if sign(apart) < 0 else NOT_HERE, why)]
