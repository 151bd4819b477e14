"""Learning the generator of adapters end to end: by the loss of the finished adapter with its head, on queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapter_bank import AdapterGenerator, Bank, relations
from ltdi.bodies.adapted import AdaptedBert, Tokens
from ltdi.denoisers.adapter_tokens import AdapterCondition
from ltdi.objective import training_state, trajectory_loss
from training.adapters.encoded import EncodedTask

ROWS = 64  # of an episode, support and queries


@dataclass(frozen=True)
class LearnConfig:
    """How the generator is learned.

    Args:
        episodes: in all.
        group: episodes a step.
        rate: of Adam, for the denoiser and the head.
        shift_rate: of Adam, for what every adapter has beside the anchor; 0 keeps it at nothing.
        trajectory_weight: of Eq. 2 beside the task loss.
        subset: share of the episodes of a task of many classes that take a few of its classes.
    """

    episodes: int = 160
    group: int = 4
    rate: float = 0.05
    shift_rate: float = 1e-3
    trajectory_weight: float = 0.1
    subset: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Episode:
    """A task of some classes: tokens `[64]`, labels `[64]`, the first `support` rows its support set."""

    tokens: Tokens
    labels: Tensor
    support: int
    ways: int
    whole: bool


@dataclass(frozen=True)
class Field:
    """Where episodes of a fold come from: its tasks, the bank that was made without them, and the stored tasks allowed.

    Args:
        own: waypoints of each task in the bank's coordinates, `[tasks, m + 1, W, K]`; for Eq. 2.
    """

    tasks: Sequence[EncodedTask]
    bank: Bank
    allowed: Tensor
    own: Tensor


def draw_episode(task: EncodedTask, draw: torch.Generator, subset: float) -> Episode:
    """Support and queries of a task or, of a task of many classes, of some of its classes."""
    classes = torch.arange(task.ways)
    if task.ways > 2 and torch.rand((), generator=draw) < subset:
        count = int(torch.randint(2, min(task.ways, 5), (1,), generator=draw))
        classes = torch.randperm(task.ways, generator=draw)[:count]
    ways = len(classes)
    shots = max(1, min(16, ROWS // 2 // ways))
    support, rest = [], []
    for c in classes:
        rows = (task.train.labels == c).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=draw)]
        support.append(rows[:shots])
        rest.append(rows[shots : shots + ROWS])
    queries = torch.cat(rest)
    queries = queries[torch.randperm(len(queries), generator=draw)][: ROWS - ways * shots]
    part = task.train.take(torch.cat([*support, queries]))
    labels = (part.labels[:, None] == classes).int().argmax(1)
    return Episode(part.tokens, labels, ways * shots, ways, ways == task.ways)


def pooled(encoder: AdaptedBert, tokens: Tokens, lora_b: Tensor, chunk: int = 32) -> Tensor:
    """Pooler features `[M, D]` under one adapter, with a gradient; rows are read by length."""
    order = tokens.mask.sum(1).argsort()
    out = []
    for start in range(0, len(order), chunk):
        out.append(encoder.pooler(encoder.hidden(tokens.take(order[start : start + chunk]), lora_b[None])[:, 0]))
    return torch.cat(out)[order.argsort()]


def episode_loss(
    generator: AdapterGenerator, encoder: AdaptedBert, field: Field, episode: Episode, noise: Tensor
) -> tuple[Tensor, float, AdapterCondition]:
    """Cross entropy over log N of the queries under the generated adapter and head, their accuracy, the condition."""
    bank, own = field.bank, episode.labels[: episode.support]
    support = episode.tokens.take(torch.arange(episode.support))
    with torch.no_grad():
        seen = pooled(encoder, support, bank.anchor)
        told = relations(bank, seen, own, episode.ways, bool(support.kinds.any()))[None]
    condition = AdapterCondition(told, bank.trajectories, field.allowed[None])
    x, weights = generator.coordinates(noise, condition)
    features = pooled(encoder, episode.tokens, generator.decode(bank, x)[0])
    head = generator.head(features[: episode.support], own, episode.ways, bank, weights[0])
    answers = F.linear(features[episode.support :], head[:, :-1], head[:, -1])
    wanted = episode.labels[episode.support :]
    loss = F.cross_entropy(answers, wanted) / torch.tensor(float(episode.ways)).log()
    return loss, float((answers.argmax(1) == wanted).float().mean()), condition


def learn(
    generator: AdapterGenerator, encoder: AdaptedBert, fields: Sequence[Field], config: LearnConfig, log: Callable = print
) -> None:
    """Train the generator in place on episodes of the fields' tasks."""
    draw = torch.Generator().manual_seed(config.seed)
    schedule = generator.denoiser.schedule
    small = [*generator.denoiser.parameters(), *generator.head.parameters()]
    optimiser = torch.optim.Adam([{"params": small}, {"params": [generator.shift]}], lr=config.rate)
    total = config.episodes // config.group + 1
    most = [config.rate, max(config.shift_rate, 1e-12)]
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, most, total_steps=total, pct_start=0.1)
    places = [(field, i) for field in fields for i in range(len(field.tasks))]
    order: list[int] = []
    began, losses, right = time.monotonic(), [], []
    for count in range(1, config.episodes + 1):
        order = order or torch.randperm(len(places), generator=draw).tolist()
        field, i = places[order.pop()]
        episode = draw_episode(field.tasks[i], draw, config.subset)
        noise = torch.randn(1, *field.bank.shape, generator=draw)
        loss, accuracy, condition = episode_loss(generator, encoder, field, episode, noise)
        losses.append(loss.item())
        right.append(accuracy)
        if config.trajectory_weight and episode.whole:
            t = int(torch.randint(1, schedule.steps + 1, (1,), generator=draw))
            state = training_state(schedule, field.own[i : i + 1], torch.tensor([t]), torch.randn(noise.shape, generator=draw))
            imitated = trajectory_loss(schedule, state, generator.denoiser(state.x, t, condition))
            loss = loss + config.trajectory_weight * imitated
        (loss / config.group).backward()
        if count % config.group == 0:
            optimiser.step()
            optimiser.zero_grad()
            rates.step()
        if count % 40 == 0:
            log(
                f"generator: {count} episodes, loss {sum(losses[-40:]) / 40:.3f}, accuracy {sum(right[-40:]) / 40:.3f}, "
                f"{time.monotonic() - began:.0f} s"
            )
