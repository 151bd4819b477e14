"""Meta-trains the `default` recipe: the task loss of the finished head through the sampler, plus Eq. 2."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi import baselines
from ltdi.codec import Standardiser
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.generator import ResidualGenerator, generate_weights
from ltdi.objective import training_state, trajectory_loss
from ltdi.schedule import ScheduleConfig
from training.body import update_average
from training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from training.comparators import BaseStatistics, shrunk_metric
from training.episodes import COLUMNS, Protocol, draw
from training.estimator import fit_mean_estimator
from training.progress import RunLog
from training.statistics import statistics_of_episodes
from training.trajectories import Trajectories
from training.virtual import around_their_means, mix_classes

CHECKPOINT = "generator.ckpt.safetensors"


@dataclass(frozen=True)
class MetaTrainConfig:
    """How the default recipe is trained.

    Args:
        steps: optimiser steps.
        classes, drawings: a batch holds features of `drawings` images of each of `classes` classes.
        ways: the batch is cut into tasks of one of these numbers of classes, a different one each step.
        one_shot_splits, many_shot_splits: how many times each batch is split into support and queries,
            with one example a class and with two or more.
        lr: peak learning rate of AdamW, cosine to zero.
        temperatures: divisors of logits in the loss, for one example a class and for more; those with the least cross
            entropy of the baseline, or the generator learns a scale before anything else.
        blind: share of splits whose examples have no views, as a caller's features have none.
        mixed: share of the classes of a batch that take up to half of their channels from another class (`mix_classes`).
        plain: share of batches of the training classes as they are, where there are virtual ones too.
        estimate_lr: learning rate of the estimators of class means, in units of `lr`; 0 leaves them as they were fitted.
        ridge_features, ridge_views: penalties of the estimators of class means, in units of the variance of
            what they see.
        metric_shrink: the baseline is LDA with the training classes' covariance, shrunk so much, from two examples on; fitted at
            export, after training on class means, where absent.
        eq2_weight: weight of the trajectory loss on prepared trajectories.
        trajectory_tasks: trajectories in a step.
    """

    steps: int = 2000
    classes: int = 120
    drawings: int = 6
    ways: tuple[int, ...] = (5, 20, 40)
    one_shot_splits: int = 2
    many_shot_splits: int = 1
    lr: float = 1e-3
    temperatures: tuple[float, float] = (1.0, 1.0)
    blind: float = 0.5
    mixed: float = 0.0
    plain: float = 0.15
    estimate_lr: float = 0.0
    ridge_features: float = 0.3
    ridge_views: float = 0.01
    metric_shrink: float | None = None
    eq2_weight: float = 0.0
    trajectory_tasks: int = 32
    weight_decay: float = 0.01
    ema: float = 0.99
    schedule: ScheduleConfig = ScheduleConfig()
    denoiser: ClassTokensConfig = ClassTokensConfig()
    checkpoint_every: int = 200
    validate_every: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """Tasks cut from one batch of features.

    Args:
        support: `[B, N, K, D]`.
        queries: `[B, N Q, D]`, class by class.
        target: `[N Q]`.
        views: `[B, N, K, 2, D]`, where the batch has them.
    """

    support: Tensor
    queries: Tensor
    target: Tensor
    views: Tensor | None = None


def cut_tasks(batch: Tensor, ways: int, shots: int, generator: torch.Generator) -> Split:
    """Tasks of `ways` classes from `[classes, drawings, S, D]`: every class in one task, every drawing used.

    Args:
        batch: S is 1, or 3 where mean and spread of views stand beside the features.
    """
    classes, drawings = batch.shape[:2]
    tasks = classes // ways
    chosen = torch.randperm(classes, generator=generator)[: tasks * ways]
    order = torch.rand(tasks * ways, drawings, generator=generator).argsort(1)
    mixed = batch[chosen.unsqueeze(1), order].unflatten(0, (tasks, ways))
    target = torch.arange(ways).repeat_interleave(drawings - shots)
    examples, queries = mixed[:, :, :shots], mixed[:, :, shots:, 0].flatten(1, 2)
    return Split(examples[..., 0, :], queries, target, examples[..., 1:, :] if batch.shape[2] > 1 else None)


def generate_batch(generator: ResidualGenerator, support: Tensor, noise: Tensor, views: Tensor | None = None) -> Tensor:
    """Heads `[B, N, D + 1]` of support sets `[B, N, K, D]`, noise `[B, draws, N, D + 1]`; differentiable."""
    return generate_weights(generator, generator.describe(statistics_of_episodes(support, views)), noise)


def task_loss(
    generator: ResidualGenerator, batch: Tensor, ways: int, shots: list[int], chance: torch.Generator, blind: float = 0,
    temperatures: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Mean cross entropy of queries under generated heads, one split of the batch for each of `shots`.

    Args:
        batch: `[classes, drawings, S, D]`.
        blind: share of splits whose views are hidden.
        temperatures: as in `MetaTrainConfig`.
    """
    losses = []
    for k in shots:
        hidden = batch.shape[2] > 1 and float(torch.rand((), generator=chance)) < blind
        split = cut_tasks(batch[:, :, :1] if hidden else batch, ways, k, chance)
        noise = torch.randn(len(split.support), 1, *generator.noise_shape(ways), generator=chance)
        logits = baselines.logits(generate_batch(generator, split.support, noise, split.views), split.queries)
        logits = logits / temperatures[k > 1]
        losses.append(F.cross_entropy(logits.flatten(0, 1), split.target.repeat(len(logits))))
    return torch.stack(losses).mean()


def eq2_loss(generator: ResidualGenerator, store: Trajectories, tasks: int, chance: torch.Generator) -> Tensor:
    """Eq. 2 on prepared trajectories, as residuals to their baseline, at one random step."""
    indices = torch.randint(len(store), (tasks,), generator=chance)
    stored = store.batch(indices)
    described = generator.describe(statistics_of_episodes(stored.support))
    residuals = generator.codec.encode(stored.trajectory - described.base.unsqueeze(1))
    t = int(torch.randint(1, generator.schedule.steps + 1, (1,), generator=chance))
    noise = torch.randn(described.base.shape, generator=chance)
    state = training_state(generator.schedule, residuals, torch.full((tasks,), t), noise)
    predicted = generator.denoiser(state.x, t, generator.denoiser.condition(described.embedding))
    return trajectory_loss(generator.schedule, state, predicted)


def initial_generator(
    config: MetaTrainConfig, bank: Tensor, view_maps: Tensor | None = None, *, view_share: float = 0.0,
    virtual: Sequence[Tensor] = (),
) -> ResidualGenerator:
    """A generator whose statistics come from a training bank `[classes, drawings, S, D]`.

    Residuals are standardised by those between one-shot and many-shot class means.

    Args:
        virtual: banks of further classes; with them the estimators are fitted on all banks, each less its mean.
    """
    features = bank[:, :, 0]
    with torch.no_grad():
        many = baselines.nearest_mean(features.mean(1, keepdim=True).expand_as(features))
        residuals = many - baselines.nearest_mean(features)
        codec = Standardiser(torch.zeros(residuals.shape[-1]), residuals.flatten(0, 1).std(0).clamp_min(1e-4))
        flat = features.flatten(0, 1)
        centre, scale = flat.mean(0), flat.std(0).clamp_min(1e-4)
    torch.manual_seed(config.seed)
    generator = ResidualGenerator(
        features.shape[-1], config.schedule, config.denoiser, codec, centre.clone(), scale.clone(), view_maps=view_maps,
        view_share=view_share,
    )
    if config.metric_shrink is not None:
        generator.metric = shrunk_metric(BaseStatistics.of(features).within, config.metric_shrink)
    seen = around_their_means([bank, *virtual]) if virtual else bank
    generator.from_features = fit_mean_estimator(seen, views=False, ridge=config.ridge_features)
    if generator.has_views:
        generator.from_views = fit_mean_estimator(seen, views=True, ridge=config.ridge_views)
    return generator


@torch.inference_mode()
def validation_gain(generator: ResidualGenerator, bank: Tensor, episodes: int = 300) -> dict[str, float]:
    """Accuracy of generated heads and of class means on validation features, percent, by column."""
    result = {}
    for ways, shots in COLUMNS:
        right, base_right = [], []
        chance = torch.Generator().manual_seed(1)
        for batch in draw(bank, Protocol(ways, shots, episodes=episodes, seed=1)):
            noise = torch.randn(len(batch.support), 1, *generator.noise_shape(ways), generator=chance)
            for heads, kept in (
                (generate_batch(generator, batch.support, noise, batch.views), right),
                (baselines.class_means(batch.support), base_right),
            ):
                kept.append((baselines.logits(heads, batch.queries).argmax(-1) == batch.target).float().mean(1))
        result[f"{ways}w{shots}s"] = 100 * float(torch.cat(right).mean())
        result[f"{ways}w{shots}s_baseline"] = 100 * float(torch.cat(base_right).mean())
    return result


class Run:
    """A training run: the generator, its average, the optimiser, and their checkpoint."""

    def __init__(self, config: MetaTrainConfig, generator: ResidualGenerator, out: Path) -> None:
        self.config, self.out, self.generator = config, out, generator
        self.average = copy.deepcopy(generator).eval()
        self.optimizer = _optimizer(config, generator)
        self.first = self._resume()

    def set_learning_rate(self, step: int) -> None:
        """Warm-up over 50 steps, then cosine to zero."""
        factor = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / self.config.steps)) / 2
        for group, own in zip(self.optimizer.param_groups, (1, self.config.estimate_lr), strict=True):
            group["lr"] = self.config.lr * factor * own

    def save(self, step: int) -> None:
        """Write the checkpoint; a kill at any moment leaves the old one or this one."""
        tensors = with_prefix("generator.", self.generator.state_dict())
        tensors |= with_prefix("average.", self.average.state_dict()) | optimizer_tensors(self.optimizer)
        save_checkpoint(self.out / CHECKPOINT, tensors, {"step": step})

    def _resume(self) -> int:
        if not (self.out / CHECKPOINT).exists():
            return 0
        tensors, state = load_checkpoint(self.out / CHECKPOINT)
        self.generator.load_state_dict(without_prefix("generator.", tensors))
        self.average.load_state_dict(without_prefix("average.", tensors))
        restore_optimizer(self.optimizer, tensors)
        return state["step"]


def _optimizer(config: MetaTrainConfig, generator: ResidualGenerator) -> torch.optim.Optimizer:
    """AdamW over the denoiser and, where they learn on, the estimators of class means, without decay."""
    estimators = [e for e in (generator.from_features, generator.from_views) if e is not None]
    estimated = [p.requires_grad_(config.estimate_lr > 0) for e in estimators for p in e.parameters()]
    groups = [
        {"params": list(generator.denoiser.parameters()), "weight_decay": config.weight_decay},
        {"params": estimated, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def meta_train(
    config: MetaTrainConfig,
    bank: Tensor,
    out: Path,
    *,
    store: Trajectories | None = None,
    view_maps: Tensor | None = None,
    view_share: float = 0.0,
    virtual: Sequence[Tensor] = (),
    validate: Callable[[ResidualGenerator], dict[str, float]] | None = None,
) -> ResidualGenerator:
    """Train a generator on a frozen body's features, going on from a checkpoint under `out`.

    Args:
        bank: `[classes, drawings, S, D]`, features of training classes, S = 3 where views stand beside them.
        store: prepared trajectories, where `eq2_weight` is above 0.
        view_maps: `[V, 2, 3]`, the maps of the views.
        view_share: as for `ResidualGenerator`.
        virtual: banks of further classes; a batch comes from one bank.
        validate: called on the averaged generator every `validate_every` steps.

    Returns:
        The averaged generator, in evaluation mode.
    """
    run = Run(config, initial_generator(config, bank, view_maps, view_share=view_share, virtual=virtual), out)
    log = RunLog(out / "generator.log.jsonl", "generator", total=config.steps, first=run.first)
    for step in range(run.first, config.steps):
        chance = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        torch.manual_seed(config.seed * 1_000_003 + step)
        run.set_learning_rate(step)
        run.generator.train()
        loss, parts = _loss(config, run.generator, [bank, *virtual], store, chance)
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(run.generator.parameters(), 1.0)
        run.optimizer.step()
        update_average(run.average, run.generator, config.ema, step)
        log.step(step + 1, **parts)
        done = step + 1
        if validate is not None and config.validate_every and done % config.validate_every == 0:
            log.note(done, **validate(run.average))
        if done % config.checkpoint_every == 0 or done == config.steps:
            run.save(done)
    log.close()
    return run.average


def _loss(
    config: MetaTrainConfig, generator: ResidualGenerator, banks: Sequence[Tensor], store: Trajectories | None,
    chance: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The step's loss, and its parts for the curve."""
    bank = banks[0]
    if len(banks) > 1 and float(torch.rand((), generator=chance)) >= config.plain:
        bank = banks[int(torch.randint(1, len(banks), (1,), generator=chance))]
    batch = random_batch(bank, config.classes, config.drawings, chance)
    if config.mixed:
        other = random_batch(bank, config.classes, config.drawings, chance)
        batch = mix_classes(batch, other, config.mixed, chance)
    ways = config.ways[int(torch.randint(len(config.ways), (1,), generator=chance))]
    more = torch.randint(2, config.drawings, (config.many_shot_splits,), generator=chance).tolist()
    shots = [1] * config.one_shot_splits + more
    task = task_loss(generator, batch, ways, shots, chance, config.blind, config.temperatures)
    loss, parts = task, {"task": task.item()}
    if config.eq2_weight:
        eq2 = eq2_loss(generator, store, config.trajectory_tasks, chance)
        loss, parts["eq2"] = loss + config.eq2_weight * eq2, eq2.item()
    return loss, parts


def random_batch(bank: Tensor, classes: int, drawings: int, chance: torch.Generator) -> Tensor:
    """`[classes, drawings, S, D]` of random classes and drawings."""
    chosen = torch.randperm(len(bank), generator=chance)[:classes]
    which = torch.rand(classes, bank.shape[1], generator=chance).argsort(1)[:, :drawings]
    return bank[chosen.unsqueeze(1), which]
