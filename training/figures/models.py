"""Generators of the laboratory: trained by Eq. 2, sampled by Eq. 1, kept once trained."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ltdi.config import to_json
from ltdi.denoisers.unet import UNet, UNetConfig
from ltdi.files import digest
from ltdi.objective import TrainingState, training_state, trajectory_loss
from ltdi.sampler import sample
from ltdi.schedule import Schedule, ScheduleConfig
from training.body import update_average
from training.checkpoint import load_checkpoint, save_checkpoint
from training.figures.rows import Rows, RowsConfig
from training.figures.tasks import Lab, LabConfig, Tasks
from training.meta_train_paper import segment_losses
from training.reptile import reptile_step

ROLL_EVERY = 10
INNER_LR = 0.001  # of both loops of REPTILE: the paper's 0.05 inside diverges (`DECISIONS.md`)


@dataclass(frozen=True)
class ModelConfig:
    """A generator and how it is trained: plain Adam on batches of tasks.

    Args:
        schedule: T, m (1 is Lv-Di) and the shape.
        denoiser: which network, and its sizes: the laboratory's own, or the paper's U-Net.
        batches, tasks: the budget.
        lr: falls to 0 as a cosine.
        ema: decay of the average of parameters that is measured.
        visited: share of training states that the sampler itself visited, rolled out every ten batches.
        inner_steps: K; where it is not 0, REPTILE with Adam in both loops at 0.001, K batches an outer step, in place of plain Adam.
        snapshots: how often the generator is measured on the way, at the end, half of it, a quarter and so on.
        seed: of parameters, batches and noise.
    """

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    denoiser: RowsConfig | UNetConfig = field(default_factory=RowsConfig)
    batches: int = 600
    tasks: int = 64
    lr: float = 3e-3
    ema: float = 0.99
    visited: float = 0.0
    inner_steps: int = 0
    snapshots: int = 7
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """What a generator made of tasks.

    Args:
        heads: `[B, N, D + 1]`.
        error: `[B]`, mean squared error to the optimum, standardised.
        accuracy: `[B]`, percent.
    """

    heads: Tensor
    error: Tensor
    accuracy: Tensor


class Model:
    """A denoiser with its schedule, in the laboratory's units.

    Args:
        curve: what was seen during training, a dictionary for each snapshot.
    """

    def __init__(self, config: ModelConfig, lab: LabConfig, curve: list[dict[str, float]] | None = None) -> None:
        self.config, self.lab, self.curve = config, lab, curve or []
        self.schedule = Schedule(config.schedule)
        if isinstance(config.denoiser, UNetConfig):
            self.denoiser = UNet(config.denoiser, self.schedule, lab.ways * lab.size, lab.length)
        else:
            self.denoiser = Rows(config.denoiser, self.schedule, lab.ways, lab.size, lab.size + 1)

    @torch.no_grad()
    def chain(self, condition: Tensor, x: Tensor, observer: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """x_0 `[B, P]` from x_T and the condition `[B, N D]`."""
        return sample(lambda state, t: self.denoiser(state, t, condition), x, self.schedule, observer)

    def generate(self, lab: Lab, tasks: Tasks, seed: int = 0) -> Generated:
        """Heads for tasks, one draw of x_T each."""
        x = self.chain(condition_of(tasks), noise_of(tasks, seed)).view_as(tasks.optimum)
        error = (x - lab.codec.encode(tasks.optimum)).square().flatten(1).mean(1)
        heads = lab.codec.decode(x)
        return Generated(heads, error, tasks.accuracy(heads))


def condition_of(tasks: Tasks) -> Tensor:
    """The task embedding: class means of the examples, to about unit variance, `[B, N D]`."""
    means = tasks.support.mean(2)
    return means.flatten(1) * means.shape[-1] ** 0.5


def noise_of(tasks: Tasks, seed: int) -> Tensor:
    """x_T, the same for every generator, `[B, P]`."""
    generator = torch.Generator().manual_seed(7_919 + seed)
    return torch.randn(tasks.optimum.flatten(1).shape, generator=generator)


def trained(config: ModelConfig, lab: Lab, folder: Path, part: str) -> Model:
    """The generator of a config, trained where that has not been done, measured on tasks of `part` on the way."""
    own = {name: value for name, value in to_json(config).items() if value or name != "inner_steps"}
    whole = {"model": own, "lab": to_json(lab.config), "part": part} | lab.stands_on
    path = folder / f"{digest(json.dumps(whole, sort_keys=True).encode())[:16]}.safetensors"
    if path.exists():
        tensors, state = load_checkpoint(path)
        model = Model(config, lab.config, state["curve"])
        model.denoiser.load_state_dict(tensors)
    else:
        model = train(config, lab, part)
        save_checkpoint(path, dict(model.denoiser.state_dict()), whole | {"curve": model.curve})
    model.denoiser.eval().requires_grad_(False)
    return model


def train(config: ModelConfig, lab: Lab, part: str) -> Model:
    """Train by Eq. 2; the average of parameters is what comes out."""
    torch.manual_seed(config.seed)
    model = Model(config, lab.config)
    run = _Run(config, lab, model)
    stops, stride = {config.batches >> halved for halved in range(config.snapshots)}, config.inner_steps or 1
    spent = 0.0
    for batch in range(0, config.batches, stride):
        started = time.process_time()
        run.advance(batch)
        spent += time.process_time() - started
        if stops & set(range(batch + 1, batch + stride + 1)):
            made = model.generate(lab, lab.measured(part))
            measured = {"error": float(made.error.mean()), "accuracy": float(made.accuracy.mean())}
            model.curve.append({"batch": batch + stride, "seconds": round(spent, 3), **measured, **run.seen()})
    return model


class _Run:
    """The moving parts of a training."""

    def __init__(self, config: ModelConfig, lab: Lab, model: Model) -> None:
        self.config, self.model = config, model
        self.learner = copy.deepcopy(model.denoiser).train()
        self.inner = copy.deepcopy(self.learner)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=config.lr)
        self.feed = _Feed(config, lab, model.schedule)
        self._seen: dict[str, list[float]] = {}

    def advance(self, batch: int) -> None:
        """One batch, or one outer step of REPTILE."""
        highest = INNER_LR if self.config.inner_steps else self.config.lr
        for group in self.optimizer.param_groups:
            group["lr"] = highest * (1 + math.cos(math.pi * batch / self.config.batches)) / 2
        if self.config.inner_steps:
            own = {"inner_steps": self.config.inner_steps, "inner_lr": INNER_LR}
            reptile_step(self.learner, self.inner, self.optimizer, [self._loss], **own)
        else:
            loss = self._loss(self.learner)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        update_average(self.model.denoiser, self.learner, self.config.ema, batch // (self.config.inner_steps or 1) + 1)

    def seen(self) -> dict[str, float]:
        """Means of the loss and its parts since the last call."""
        means = {name: sum(values) / len(values) for name, values in self._seen.items()}
        self._seen = {}
        return means

    def _loss(self, denoiser: nn.Module) -> Tensor:
        state, condition = self.feed.next(denoiser)
        predicted = denoiser(state.x, state.t, condition)
        loss = trajectory_loss(self.model.schedule, state, predicted)
        found = {"loss": loss.item(), **segment_losses(self.model.schedule, state, predicted.detach())}
        for name, value in found.items():
            self._seen.setdefault(name, []).append(value)
        return loss


class _Feed:
    """Training states: noised waypoints of random tasks, classes in a random order, and visited states where wanted."""

    def __init__(self, config: ModelConfig, lab: Lab, schedule: Schedule) -> None:
        self.config, self.schedule = config, schedule
        self.chance = torch.Generator().manual_seed(config.seed)
        self.trajectory = lab.codec.encode(lab.train.trajectory(config.schedule.segments))
        self.condition = condition_of(lab.train).unflatten(1, (lab.config.ways, -1))
        self.rolled: tuple[Tensor, Tensor, Tensor] | None = None
        self.count = 0

    def next(self, denoiser: nn.Module) -> tuple[TrainingState, Tensor]:
        """The next batch's states, and their condition."""
        trajectory, condition = self._draw()
        if self.config.visited and self.count % ROLL_EVERY == 0:
            self.rolled = self._roll(denoiser, trajectory, condition)
        self.count += 1
        own = round(self.config.visited * len(trajectory)) if self.rolled else 0
        t = torch.randint(1, self.schedule.steps + 1, (len(trajectory),), generator=self.chance)
        noise = torch.randn(trajectory[:, 0].shape, generator=self.chance)
        if own:
            states, trajectories, conditions = self.rolled
            trajectory, condition = torch.cat([trajectories[:own], trajectory[own:]]), torch.cat([conditions[:own], condition[own:]])
        state = training_state(self.schedule, trajectory, t, noise)
        if own:
            visited = visited_state(self.schedule, trajectory[:own], states[t[:own], torch.arange(own)], t[:own])
            state = TrainingState(*(torch.cat([getattr(visited, n), getattr(state, n)[own:]]) for n in ("x", "t", "waypoint", "noise")))
        return state, condition

    def _draw(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.trajectory), (self.config.tasks,), generator=self.chance)
        ways = self.condition.shape[1]
        order = torch.rand(len(rows), ways, generator=self.chance).argsort(1)
        condition = self.condition[rows].gather(1, order[:, :, None].expand(-1, -1, self.condition.shape[2]))
        picked = self.trajectory[rows]
        picked = picked.gather(2, order[:, None, :, None].expand(-1, picked.shape[1], -1, picked.shape[3]))
        return picked.flatten(2), condition.flatten(1)

    @torch.no_grad()
    def _roll(self, denoiser: nn.Module, trajectory: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The chain's states for a batch of tasks, `[T + 1, B, P]`, with trajectories and condition."""
        start = torch.randn(trajectory[:, 0].shape, generator=self.chance)
        states = [start]
        sample(lambda x, t: denoiser(x, t, condition), start, self.schedule, lambda t, x: states.append(x))
        return torch.stack(states[::-1]), trajectory, condition


def visited_state(schedule: Schedule, trajectory: Tensor, x: Tensor, t: Tensor) -> TrainingState:
    """A state that the sampler visited, with the noise that would have led there from the waypoint."""
    waypoint = trajectory[torch.arange(len(t)), schedule.segment_of_step[t]]
    kept = schedule.alpha_bar_from(schedule.start_of_step[t], t).to(x).unsqueeze(1)
    return TrainingState(x, t, waypoint, (x - kept.sqrt() * waypoint) / (1 - kept).sqrt())
