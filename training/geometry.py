"""Meta-training of the geometry generator: the mixture of closed forms first, then the chain through its sampler."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.denoisers.geometry import GeometryConfig, GeometryTask, describe
from ltdi.experts import EXPERTS, logits
from ltdi.generator import GeometryGenerator
from ltdi.schedule import ScheduleConfig
from training.progress import RunLog
from training.tasks import Task

HARDEST = 4.0  # cross entropies, in units of a guess, beyond which an item no longer counts
FLOOR = 0.05  # added to the reference loss of a task


@dataclass(frozen=True)
class GeometryTraining:
    """How a geometry generator is trained.

    Args:
        tasks: in the bank.
        mixing_steps, mixing_batch, mixing_lr: of the first stage, which mixes closed forms without a chain.
        chain_steps, chain_batch, chain_lr: of the second, through the 20 steps.
        pull: of the first stage, back to the preferences that it begins with.
        seed: of tasks and noise.
    """

    tasks: int = 1500
    mixing_steps: int = 400
    mixing_batch: int = 32
    mixing_lr: float = 0.02
    chain_steps: int = 100
    chain_batch: int = 8
    chain_lr: float = 0.001
    pull: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Described:
    """A training task, prepared: what the chain sees, and what answers it."""

    group: str
    task: GeometryTask
    queries: Tensor
    targets: Tensor
    reference: float


@torch.no_grad()
def describe_bank(bank: Sequence[Task]) -> list[Described]:
    """Prepare all tasks; the reference of each is the loss of plain logistic regression."""
    return [describe_task(one) for one in bank]


def describe_task(one: Task, directions: Tensor | None = None) -> Described:
    """Prepare a task, with the directions of a domain where there are some."""
    task = describe(one.items, directions)
    head = task.experts[EXPERTS.index("logistic")] / 2
    reference = float(task_loss(logits(head, one.queries), one.targets)) + FLOOR
    return Described(one.group, task, one.queries, one.targets, reference)


def task_loss(answers: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in units of a guess among all classes, items beyond `HARDEST` cut."""
    loss = F.cross_entropy(answers, targets, reduction="none") / math.log(answers.shape[-1])
    return loss.clamp_max(HARDEST).mean()


def train_geometry(
    bank: Sequence[Described], config: GeometryConfig, schedule: ScheduleConfig, training: GeometryTraining,
    log: Path | None = None,
) -> GeometryGenerator:
    """A trained generator.

    Tasks of a group are drawn with the root of their number, so that no large group drowns the others.
    """
    torch.manual_seed(training.seed)
    generator = GeometryGenerator(schedule, config)
    chance = np.random.default_rng(training.seed)
    share = _shares(bank)
    total = training.mixing_steps + training.chain_steps
    progress = None if log is None else RunLog(log, "geometry", total=total)
    _train_mixing(generator, bank, share, chance, training, progress)
    _train_chain(generator, bank, share, chance, training, progress)
    if progress is not None:
        progress.close()
    return generator.eval()


def continue_mixing(generator: GeometryGenerator, bank: Sequence[Described], training: GeometryTraining) -> None:
    """The first stage alone, from where a generator stands, as `ltdi fit` does."""
    _train_mixing(generator, bank, _shares(bank), np.random.default_rng(training.seed), training, None)


def _shares(bank: Sequence[Described]) -> np.ndarray:
    """How often each task is drawn."""
    sizes = Counter(task.group for task in bank)
    share = np.array([sizes[task.group] ** -0.5 for task in bank])
    return share / share.sum()


def _train_mixing(
    generator: GeometryGenerator, bank: Sequence[Described], share: np.ndarray, chance: np.random.Generator,
    training: GeometryTraining, progress: RunLog | None,
) -> None:
    layer, count = generator.denoiser.by_task, len(EXPERTS)
    answers = [logits(one.task.experts, one.queries).detach() for one in bank]
    optimizer, schedule = _optimizer(list(layer.parameters()), training.mixing_lr, training.mixing_steps)
    start = [parameter.detach().clone() for parameter in layer.parameters()]
    for step in range(training.mixing_steps):
        losses = []
        for i in chance.choice(len(bank), training.mixing_batch, p=share):
            chosen = layer(bank[i].task.facts)
            mixing = torch.softmax(chosen[:count].masked_fill(~bank[i].task.allowed, -torch.inf), dim=0)
            mixed = torch.tensordot(mixing, answers[i], dims=1) * torch.exp(chosen[-1])
            losses.append(task_loss(mixed, bank[i].targets) / bank[i].reference)
        away = sum((now - then).square().sum() for now, then in zip(layer.parameters(), start, strict=True))
        _step(torch.stack(losses).mean() + training.pull * away, optimizer, schedule)
        if progress is not None:
            progress.step(step + 1, mixing_loss=float(torch.stack(losses).mean().detach()))


def _train_chain(
    generator: GeometryGenerator, bank: Sequence[Described], share: np.ndarray, chance: np.random.Generator,
    training: GeometryTraining, progress: RunLog | None,
) -> None:
    parameters = list(generator.parameters())
    optimizer, schedule = _optimizer(parameters, training.chain_lr, training.chain_steps)
    for step in range(training.chain_steps):
        total = 0.0
        for i in chance.choice(len(bank), training.chain_batch, p=share):
            one = bank[i]
            head = generator.generate_one(one.task, torch.randn(1, *one.task.base.shape))
            loss = task_loss(logits(head, one.queries), one.targets) / one.reference / training.chain_batch
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress.step(training.mixing_steps + step + 1, chain_loss=total)


def _optimizer(
    parameters: list[Tensor], lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.Adam(parameters, lr=lr)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))


def _step(
    loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
