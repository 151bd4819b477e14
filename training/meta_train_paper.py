"""Training of the `paper` recipe (Lt-Di, Algorithm 2): a U-Net learns Eq. 2, by REPTILE or in plain batches.

Inner loops are shared: each goes over a batch of `tasks` trajectories, the same ones at
each of its steps, rather than over one trajectory.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ltdi.codec import Layout, Standardiser
from ltdi.config import to_json
from ltdi.denoisers.unet import UNetConfig
from ltdi.errors import InvalidConfig, LtDiError
from ltdi.generator import FlatGenerator
from ltdi.objective import TrainingState, training_state, trajectory_loss
from ltdi.schedule import Schedule, ScheduleConfig
from training.body import update_average
from training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from training.progress import RunLog
from training.reptile import reptile_step
from training.trajectories import Trajectories

CHECKPOINT, CURVE = "paper.ckpt.safetensors", "paper.log.jsonl"
CODEC_SCALES = ("layer", "weight")

Validate = Callable[[FlatGenerator], dict[str, float]]


class TrainingDiverged(LtDiError):
    """The loss is no number any more, or far above where it started."""

    code = "training-diverged"


@dataclass(frozen=True)
class PaperConfig:
    """How the `paper` recipe is trained.

    Args:
        steps: outer steps, or batches without REPTILE.
        tasks: trajectories in a batch; all of an inner loop work on the same ones.
        loops: inner loops of an outer step.
        reptile: false trains with plain Adam at `outer_lr`.
        inner_lr, outer_lr, inner_steps: eta, zeta, K. The paper has 0.05 and 0.001.
        decay_lr: whether `outer_lr` falls to zero as a cosine.
        schedule: `segments` must be the store's m, or 1 (Lv-Di), which imitates theta_0 alone.
        denoiser: of the U-Net; its `time` says whether it is told `t` or `t-k`.
        codec_scale: a standard deviation for each `weight`, or one for each `layer`.
        segment_weights: gamma_i; ones where empty.
        ema: decay of the average of parameters that becomes the generator.
        diverged: the run stops when a loss is this many times that of the answer 0.
        checkpoint_every, validate_every, log_every: steps.
        seed: of initialisation, batches and noise.
    """

    steps: int = 4000
    tasks: int = 32
    loops: int = 1
    reptile: bool = True
    inner_lr: float = 0.001
    outer_lr: float = 0.001
    inner_steps: int = 5
    decay_lr: bool = True
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    denoiser: UNetConfig = field(default_factory=UNetConfig)
    codec_scale: str = "layer"
    segment_weights: tuple[float, ...] = ()
    ema: float = 0.99
    diverged: float = 10.0
    checkpoint_every: int = 200
    validate_every: int = 500
    log_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.codec_scale not in CODEC_SCALES:
            known = ", ".join(CODEC_SCALES)
            raise InvalidConfig(f"codec_scale {self.codec_scale!r} is unknown; known: {known}", field="codec_scale")
        if self.segment_weights and len(self.segment_weights) != self.schedule.segments:
            raise InvalidConfig(
                f"segment_weights has {len(self.segment_weights)} entries; there are {self.schedule.segments} segments"
            )


def train_paper(
    config: PaperConfig,
    store: Trajectories,
    statistics: tuple[Tensor, Tensor],
    out: Path,
    validate: Validate | None = None,
) -> FlatGenerator:
    """Train on the trajectories of a store, writing a checkpoint and the curve under `out`.

    Goes on from the checkpoint where there is one; on a complete store the result is the same to the bit.
    A store that is still growing is looked at again every `log_every` steps.

    Args:
        store: of `few_shot` trajectories.
        statistics: centre and scale of features over the base classes, each `[D]`.
        validate: called with the averaged generator; what it returns is put on the curve.

    Returns:
        The averaged generator, in evaluation mode.

    Raises:
        InvalidConfig: the store or the checkpoint does not go with `config`.
        TrainingDiverged: with the losses; the curve up to there is kept.
    """
    torch.manual_seed(config.seed)
    model = new_generator(config, store, statistics)
    run = _Run(config, store, model, out)
    run.resume()
    log = RunLog(out / CURVE, "paper", total=config.steps, first=run.step, every=config.log_every)
    try:
        while run.step < config.steps:
            values = run.advance()
            log.step(run.step, **values)
            run.refuse_divergence(values, log)
            if validate is not None and run.due(config.validate_every):
                log.note(run.step, **validate(run.average.eval()))
            if run.due(config.checkpoint_every):
                run.save()
    finally:
        log.close()
    return run.average.eval()


def new_generator(config: PaperConfig, store: Trajectories, statistics: tuple[Tensor, Tensor]) -> FlatGenerator:
    """An untrained generator for the heads of `store`, with the codec of its waypoints."""
    if store.settings["kind"] != "few_shot":
        raise InvalidConfig(f"the store holds {store.settings['kind']} heads; the paper recipe needs few_shot ones")
    if not len(store):
        raise InvalidConfig(f"the store at {store.path} is empty so far; start when its first shard is written")
    choose_waypoints(config, store)
    size = store.batch([0]).support.shape[-1]
    layout = Layout((size, store.settings["hidden"], store.settings["ways"]))
    codec = fit_codec(store, layout, config.codec_scale)
    centre, scale = statistics
    return FlatGenerator(layout, config.schedule, config.denoiser, codec, centre, scale.clamp_min(1e-3))


def choose_waypoints(config: PaperConfig, store: Trajectories) -> list[int]:
    """Which waypoints of the store the schedule takes: all, or for m = 1 the two ends."""
    if config.schedule.segments == 1:
        return [0, store.waypoints]
    if config.schedule.segments != store.waypoints:
        raise InvalidConfig(
            f"the schedule has {config.schedule.segments} segments, the store's trajectories {store.waypoints}; "
            "they must be equal, or the schedule's 1"
        )
    return list(range(store.waypoints + 1))


def fit_codec(store: Trajectories, layout: Layout, scale: str, most: int = 2000) -> Standardiser:
    """Mean of each weight over all waypoints, and its standard deviation or the root mean square of its layer's.

    All tasks start near one initialisation and its scale is that of the way they go from there, so x_T ~ N(0, I)
    is a Gaussian initialisation about a shared one, as wide as what is to be learned.
    """
    waypoints = store.batch(range(min(most, len(store)))).trajectory
    codec = Standardiser.fit(waypoints)
    if scale == "weight":
        return codec
    parts = [
        (weight.square().mean().sqrt().expand_as(weight), bias.square().mean().sqrt().expand_as(bias))
        for weight, bias in layout.split(codec.scale)
    ]
    return Standardiser(codec.mean, layout.join(parts))


def segment_losses(schedule: Schedule, state: TrainingState, predicted: Tensor) -> dict[str, float]:
    """L_i of Eq. 2 on the states of each segment that has one (figure 4 of the paper): `segment_0` and so on."""
    segments, losses = schedule.segment_of_step[state.t], {}
    for i in range(schedule.segments):
        rows = segments == i
        if rows.any():
            part = TrainingState(state.x[rows], state.t[rows], state.waypoint[rows], state.noise[rows])
            losses[f"segment_{i}"] = float(trajectory_loss(schedule, part, predicted[rows]))
    return losses


def answer_zero(schedule: Schedule) -> float:
    """Eq. 2 of a denoiser that answers 0 everywhere: the mean of 1 - alpha_bar_t."""
    return float((1 - schedule.alpha_bar[1:]).mean())


class _Run:
    """The moving parts of a run: everything that a checkpoint holds."""

    def __init__(self, config: PaperConfig, store: Trajectories, model: FlatGenerator, out: Path) -> None:
        self.config, self.store, self.model, self.step = config, store, model, 0
        self.average, self.learner = copy.deepcopy(model), copy.deepcopy(model.denoiser)
        self.outer = torch.optim.Adam(model.denoiser.parameters(), lr=config.outer_lr)
        self.chosen = choose_waypoints(config, store)
        self.weights = torch.tensor(config.segment_weights) if config.segment_weights else None
        self.seen: dict[str, list[float]] = {}
        self.path = out / CHECKPOINT

    def advance(self) -> dict[str, float]:
        """One outer step; means of what was seen since the last line of the curve."""
        config = self.config
        if self.due(config.log_every) or self.step == 0:
            self.seen = {}
            if not self.store.complete:
                self.store.refresh()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        self._set_rate()
        values = self._reptile(generator) if config.reptile else self._plain(generator)
        self.step += 1
        update_average(self.average.denoiser, self.model.denoiser, config.ema, self.step)
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value)
        return {name: sum(found) / len(found) for name, found in self.seen.items()}

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step % every == 0 or self.step == self.config.steps

    def refuse_divergence(self, values: dict[str, float], log: RunLog) -> None:
        """Stop a run that has no number, or a far too large one, for a loss."""
        limit = self.config.diverged * answer_zero(self.model.schedule)
        losses = {name: value for name, value in values.items() if name.endswith("loss")}
        if all(math.isfinite(value) and value <= limit for value in losses.values()):
            return
        log.note(self.step, **{name: value for name, value in values.items() if math.isfinite(value)})
        raise TrainingDiverged(
            f"the loss left the rails at step {self.step} ({losses}; the answer 0 has "
            f"{answer_zero(self.model.schedule):.3g}); lower inner_lr ({self.config.inner_lr}) "
            f"or outer_lr ({self.config.outer_lr})"
        )

    def save(self) -> None:
        """Replace the checkpoint."""
        tensors = with_prefix("model.", self.model.state_dict()) | with_prefix("average.", self.average.state_dict())
        state = {"step": self.step, "config": to_json(self.config), "store": self.store.settings}
        save_checkpoint(self.path, tensors | optimizer_tensors(self.outer), state)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if not self.path.exists():
            return
        tensors, state = load_checkpoint(self.path)
        _refuse_other(self.path, state["config"], json.loads(json.dumps(to_json(self.config))))
        self.model.load_state_dict(without_prefix("model.", tensors))
        self.average.load_state_dict(without_prefix("average.", tensors))
        restore_optimizer(self.outer, tensors)
        self.step = state["step"]

    def _set_rate(self) -> None:
        share = self.step / self.config.steps if self.config.decay_lr else 0.0
        for group in self.outer.param_groups:
            group["lr"] = self.config.outer_lr * (1 + math.cos(math.pi * share)) / 2

    def _plain(self, generator: torch.Generator) -> dict[str, float]:
        trajectory, condition = self._draw(generator)
        loss, segments = self._loss(self.model.denoiser, trajectory, condition, generator)
        self.outer.zero_grad()
        loss.backward()
        self.outer.step()
        return {"loss": loss.item(), **segments}

    def _reptile(self, generator: torch.Generator) -> dict[str, float]:
        segments: dict[str, float] = {}
        losses = [self._task_loss(generator, segments) for _ in range(self.config.loops)]
        result = reptile_step(
            self.model.denoiser,
            self.learner,
            self.outer,
            losses,
            inner_steps=self.config.inner_steps,
            inner_lr=self.config.inner_lr,
        )
        return {"loss": result.first_loss, "inner_loss": result.last_loss, "moved": result.moved, **segments}

    def _task_loss(self, generator: torch.Generator, segments: dict[str, float]) -> Callable[[nn.Module], Tensor]:
        """The loss of one inner loop: the same tasks throughout, steps and noise drawn anew for each inner step."""
        trajectory, condition = self._draw(generator)
        first = True

        def loss(denoiser: nn.Module) -> Tensor:
            nonlocal first
            value, found = self._loss(denoiser, trajectory, condition, generator)
            if first:
                segments.update(found)
            first = False
            return value

        return loss

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Standardised trajectories `[B, m + 1, P]` of random tasks, and their condition `[B, N D]`."""
        indices = torch.randint(len(self.store), (self.config.tasks,), generator=generator)
        batch = self.store.batch(indices)
        task = (batch.support.mean(2) - self.model.centre) / self.model.scale
        return self.model.codec.encode(batch.trajectory[:, self.chosen]), task.flatten(1)

    def _loss(
        self, denoiser: nn.Module, trajectory: Tensor, condition: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Eq. 2 at one random step of each trajectory, and its parts by segment."""
        schedule = self.model.schedule
        t = torch.randint(1, schedule.steps + 1, (len(trajectory),), generator=generator)
        noise = torch.randn(trajectory[:, 0].shape, generator=generator)
        state = training_state(schedule, trajectory, t, noise)
        predicted = denoiser(state.x, t, condition)
        loss = trajectory_loss(schedule, state, predicted, self.weights)
        return loss, segment_losses(schedule, state, predicted.detach())


def _refuse_other(path: Path, there: dict, wanted: dict) -> None:
    """Raises InvalidConfig where a checkpoint's configuration is another one."""
    keys = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
    if keys:
        raise InvalidConfig(
            f"the checkpoint {path.name} in {path.parent} was made with another {', '.join(keys)}; "
            "give another folder, or remove it"
        )
