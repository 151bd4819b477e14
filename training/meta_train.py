"""Meta-trains the `default` recipe: the task loss of the finished head through the sampler, plus Eq. 2."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi import baselines
from ltdi.codec import Standardiser
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.embedding import ClassStatistics
from ltdi.generator import ResidualGenerator, TaskBatch, describe, generate_weights
from ltdi.objective import training_state, trajectory_loss
from ltdi.schedule import ScheduleConfig
from training.body import class_mean_loss, draw_batch, update_average
from training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from training.data.dataset import ClassImages
from training.episodes import COLUMNS, Protocol, draw
from training.progress import RunLog
from training.trajectories import Trajectories

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
        lr: peak learning rate of AdamW for the generator, cosine to zero.
        body_lr: the same for the body; 0 freezes it.
        class_mean_weight: weight of the class-mean loss, where the body is trained too.
        new_classes: whether classes are changed as wholes too (`new_class_matrices`), so that there are classes
            which a frozen body has not seen, or cannot learn by heart.
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
    body_lr: float = 0.0
    class_mean_weight: float = 0.0
    new_classes: bool = False
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
    """

    support: Tensor
    queries: Tensor
    target: Tensor


def cut_tasks(features: Tensor, ways: int, shots: int, generator: torch.Generator) -> Split:
    """Tasks of `ways` classes from `[classes, drawings, D]`: every class in one task, every drawing used."""
    classes, drawings, size = features.shape
    tasks = classes // ways
    chosen = torch.randperm(classes, generator=generator)[: tasks * ways]
    order = torch.rand(tasks * ways, drawings, generator=generator).argsort(1)
    mixed = features[chosen.unsqueeze(1), order].view(tasks, ways, drawings, size)
    target = torch.arange(ways).repeat_interleave(drawings - shots)
    return Split(mixed[:, :, :shots], mixed[:, :, shots:].flatten(1, 2), target)


def statistics(support: Tensor) -> ClassStatistics:
    """Class statistics of `[B, N, K, D]`."""
    batch, ways, shots, size = support.shape
    index = torch.arange(batch * ways).repeat_interleave(shots)
    return ClassStatistics(support.reshape(-1, size), index, batch, ways)


def generate_batch(generator: ResidualGenerator, support: Tensor, noise: Tensor) -> Tensor:
    """Heads `[B, N, D + 1]` of support sets `[B, N, K, D]`, noise `[B, draws, N, D + 1]`; differentiable."""
    stats = statistics(support)
    embedding, base = describe(generator, stats)
    return generate_weights(generator, TaskBatch(embedding, base, stats.counts, noise))


def task_loss(
    generator: ResidualGenerator, features: Tensor, ways: int, shots: list[int], chance: torch.Generator
) -> Tensor:
    """Mean cross entropy of queries under generated heads, one split of the batch for each of `shots`."""
    losses = []
    for k in shots:
        split = cut_tasks(features, ways, k, chance)
        noise = torch.randn(len(split.support), 1, *generator.noise_shape(ways), generator=chance)
        logits = baselines.logits(generate_batch(generator, split.support, noise), split.queries)
        losses.append(F.cross_entropy(logits.flatten(0, 1), split.target.repeat(len(logits))))
    return torch.stack(losses).mean()


def eq2_loss(generator: ResidualGenerator, store: Trajectories, tasks: int, chance: torch.Generator) -> Tensor:
    """Eq. 2 on prepared trajectories, as residuals to their baseline, at one random step."""
    indices = torch.randint(len(store), (tasks,), generator=chance)
    stored = store.batch(indices)
    stats = statistics(stored.support)
    embedding, base = describe(generator, stats)
    residuals = generator.codec.encode(stored.trajectory - base.unsqueeze(1))
    t = int(torch.randint(1, generator.schedule.steps + 1, (1,), generator=chance))
    noise = torch.randn(base.shape, generator=chance)
    state = training_state(generator.schedule, residuals, torch.full((tasks,), t), noise)
    predicted = generator.denoiser(state.x, t, generator.denoiser.condition(embedding))
    return trajectory_loss(generator.schedule, state, predicted)


def initial_generator(config: MetaTrainConfig, features: Tensor) -> ResidualGenerator:
    """A generator whose statistics come from training features `[classes, drawings, D]`.

    Residuals are standardised by those between one-shot and many-shot class means.
    """
    with torch.no_grad():
        many = baselines.nearest_mean(features.mean(1, keepdim=True).expand_as(features))
        residuals = many - baselines.nearest_mean(features)
        codec = Standardiser(torch.zeros(residuals.shape[-1]), residuals.flatten(0, 1).std(0).clamp_min(1e-4))
        flat = features.flatten(0, 1)
        centre, scale = flat.mean(0), flat.std(0).clamp_min(1e-4)
    torch.manual_seed(config.seed)
    return ResidualGenerator(features.shape[-1], config.schedule, config.denoiser, codec, centre.clone(), scale.clone())


@torch.inference_mode()
def validation_gain(generator: ResidualGenerator, features: Tensor, episodes: int = 300) -> dict[str, float]:
    """Accuracy of generated heads and of class means on validation features, percent, by column."""
    result = {}
    for ways, shots in COLUMNS:
        right, base_right = [], []
        chance = torch.Generator().manual_seed(1)
        for batch in draw(features, Protocol(ways, shots, episodes=episodes, seed=1)):
            noise = torch.randn(len(batch.support), 1, *generator.noise_shape(ways), generator=chance)
            for heads, kept in (
                (generate_batch(generator, batch.support, noise), right),
                (baselines.class_means(batch.support), base_right),
            ):
                kept.append((baselines.logits(heads, batch.queries).argmax(-1) == batch.target).float().mean(1))
        result[f"{ways}w{shots}s"] = 100 * float(torch.cat(right).mean())
        result[f"{ways}w{shots}s_baseline"] = 100 * float(torch.cat(base_right).mean())
    return result


class Run:
    """A training run: modules, their averages, the optimiser, and their checkpoint."""

    def __init__(self, config: MetaTrainConfig, body: nn.Module, generator: ResidualGenerator, out: Path) -> None:
        self.config, self.out = config, out
        self.modules = nn.ModuleDict({"body": body, "generator": generator})
        self.average = copy.deepcopy(self.modules).eval()
        groups = [{"params": list(generator.parameters()), "peak": config.lr}]
        if config.body_lr:
            groups.append({"params": list(body.parameters()), "peak": config.body_lr})
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        self.first = self._resume()

    def set_learning_rate(self, step: int) -> None:
        """Warm-up over 50 steps, then cosine to zero."""
        factor = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / self.config.steps)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def save(self, step: int) -> None:
        """Write the checkpoint; a kill at any moment leaves the old one or this one."""
        tensors = with_prefix("modules.", self.modules.state_dict())
        tensors |= with_prefix("average.", self.average.state_dict()) | optimizer_tensors(self.optimizer)
        save_checkpoint(self.out / CHECKPOINT, tensors, {"step": step})

    def _resume(self) -> int:
        if not (self.out / CHECKPOINT).exists():
            return 0
        tensors, state = load_checkpoint(self.out / CHECKPOINT)
        self.modules.load_state_dict(without_prefix("modules.", tensors))
        self.average.load_state_dict(without_prefix("average.", tensors))
        restore_optimizer(self.optimizer, tensors)
        return state["step"]


def meta_train(
    config: MetaTrainConfig,
    body: nn.Module,
    images: ClassImages | None,
    features: Tensor | None,
    out: Path,
    *,
    store: Trajectories | None = None,
    start: ResidualGenerator | None = None,
    validate: Callable[[nn.Module, ResidualGenerator], dict[str, float]] | None = None,
) -> tuple[nn.Module, ResidualGenerator]:
    """Train a generator, with the body where `body_lr` is above 0, and go on from a checkpoint under `out`.

    Args:
        images: training images, for a body that is trained too.
        features: `[classes, drawings, D]`, training features under the body at the start.
        store: prepared trajectories, where `eq2_weight` is above 0.
        start: a generator to go on from.
        validate: called on the averaged body and generator every `validate_every` steps.

    Returns:
        The averaged body and generator, in evaluation mode.
    """
    run = Run(config, body, start or initial_generator(config, features), out)
    generator = run.modules["generator"]
    log = RunLog(out / "generator.log.jsonl", "generator", total=config.steps, first=run.first)
    for step in range(run.first, config.steps):
        chance = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        torch.manual_seed(config.seed * 1_000_003 + step)
        run.set_learning_rate(step)
        run.modules.train()
        loss, parts = _loss(config, run, images, features, store, chance)
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        run.optimizer.step()
        update_average(run.average, run.modules, config.ema, step)
        log.step(step + 1, **parts)
        done = step + 1
        if validate is not None and config.validate_every and done % config.validate_every == 0:
            log.note(done, **validate(run.average["body"], run.average["generator"]))
        if done % config.checkpoint_every == 0 or done == config.steps:
            run.save(done)
    log.close()
    return run.average["body"], run.average["generator"]


def _loss(
    config: MetaTrainConfig,
    run: Run,
    images: ClassImages | None,
    features: Tensor | None,
    store: Trajectories | None,
    chance: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The step's loss, and its parts for the curve."""
    if config.body_lr:
        drawn = run.modules["body"](draw_batch(images, config.classes, config.drawings, chance, config.new_classes))
        batch = drawn.view(config.classes, config.drawings, -1)
    else:
        batch = random_features(features, config.classes, config.drawings, chance)
    ways = config.ways[int(torch.randint(len(config.ways), (1,), generator=chance))]
    more = torch.randint(2, config.drawings, (config.many_shot_splits,), generator=chance).tolist()
    task = task_loss(run.modules["generator"], batch, ways, [1] * config.one_shot_splits + more, chance)
    loss, parts = task, {"task": task.item()}
    if config.body_lr and config.class_mean_weight:
        means = class_mean_loss(batch.transpose(0, 1))
        loss, parts["class_mean"] = loss + config.class_mean_weight * means, means.item()
    if config.eq2_weight:
        eq2 = eq2_loss(run.modules["generator"], store, config.trajectory_tasks, chance)
        loss, parts["eq2"] = loss + config.eq2_weight * eq2, eq2.item()
    return loss, parts


def random_features(features: Tensor, classes: int, drawings: int, chance: torch.Generator) -> Tensor:
    """`[classes, drawings, D]` of random classes and drawings."""
    chosen = torch.randperm(len(features), generator=chance)[:classes]
    which = torch.rand(classes, features.shape[1], generator=chance).argsort(1)[:, :drawings]
    return features[chosen.unsqueeze(1), which]
