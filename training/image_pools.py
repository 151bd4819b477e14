"""Tasks of images with an unlabelled pool, and soft k-means on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.pool import answer, with_items
from training.comparators import BaseStatistics, shrunk_metric
from training.episodes import Protocol, random_classes

SHARES = (0.35, 0.5)  # of views in class means
SHARPNESS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)  # of answers on the pool, in logits
WEIGHTS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # of a pool item beside an example
SHRINKAGES = (None, 0.5, 0.7, 0.8, 0.9)  # of the base classes' covariance, whose metric it may run in; None is the plain distance
ROUNDS = 4


@dataclass(frozen=True)
class PoolKind:
    """How pools are drawn.

    Args:
        size: U, items.
        even: whether the classes have equal shares; else shares are drawn from all there are (Dirichlet, ones).
        polluted: share of items of other classes.
    """

    size: int = 100
    even: bool = False
    polluted: float = 0.25


POOL_KINDS = (PoolKind(even=True, polluted=0.0), PoolKind(polluted=0.0), PoolKind())


@dataclass(frozen=True)
class PoolTasks:
    """A batch of tasks.

    Args:
        support: `[B, N, K, D]`, `views` `[B, N, K, 2, D]` or None: as for `training.episodes.Episodes`.
        queries: `[B, N Q, D]`, class by class; `target` `[N Q]`.
        pool: `[B, U, D]`.
    """

    support: Tensor
    views: Tensor | None
    queries: Tensor
    target: Tensor
    pool: Tensor


def pool_protocol(bank: Tensor, shots: int, episodes: int, seed: int = 0) -> tuple[Protocol, int]:
    """5-way tasks that a bank has images for, and the size of their pools: 100, or half of what a task's classes have left."""
    ways = min(5, len(bank) - 1)
    queries = min(15, (bank.shape[1] - shots) // 2)
    size = min(100, ways * (bank.shape[1] - shots - queries) // 2)
    return Protocol(ways, shots, queries=queries, episodes=episodes, seed=seed), size


def draw_pool_tasks(bank: Tensor, protocol: Protocol, kind: PoolKind, batch: int = 100) -> Iterator[PoolTasks]:
    """Tasks over a bank `[classes, images, S, D]`; support, queries and pool share no image.

    Where a class has fewer images than the pool items, an image may stand in the pool twice.
    """
    chance = torch.Generator().manual_seed(protocol.seed)
    for start in range(0, protocol.episodes, batch):
        yield _tasks(bank, protocol, kind, min(batch, protocol.episodes - start), chance)


def _tasks(bank: Tensor, protocol: Protocol, kind: PoolKind, batch: int, chance: torch.Generator) -> PoolTasks:
    ways, shots, asked = protocol.ways, protocol.shots, protocol.shots + protocol.queries
    order = random_classes(len(bank), len(bank), batch, chance)
    images = torch.rand(batch, len(bank), bank.shape[1], generator=chance).argsort(2)
    own = order[:, :ways]
    rows = torch.arange(batch).unsqueeze(1)
    found = bank[own.unsqueeze(2), images[rows, own, :asked]]
    outside = round(kind.polluted * kind.size)
    even = torch.full((batch, ways), 1 / ways)
    shares = even if kind.even else _dirichlet(batch, ways, chance)
    label = torch.multinomial(shares, kind.size - outside, replacement=True, generator=chance)
    other = torch.randint(ways, len(bank), (batch, outside), generator=chance)
    classes = order.gather(1, torch.cat([label, other], dim=1))
    place = asked + torch.arange(kind.size) % (bank.shape[1] - asked)  # its own for each item: none twice while images last
    pool = bank[classes, images[rows, classes, place], 0]
    target = torch.arange(ways).repeat_interleave(protocol.queries)
    return PoolTasks(found[:, :, :shots, 0], found[:, :, :shots, 1:] if bank.shape[2] > 1 else None, found[:, :, shots:, 0].flatten(1, 2), target, pool)


def _dirichlet(batch: int, ways: int, chance: torch.Generator) -> Tensor:
    exponential = -torch.rand(batch, ways, generator=chance).clamp_min(1e-9).log()
    return exponential / exponential.sum(1, keepdim=True)


@dataclass(frozen=True)
class PoolSetting:
    """Settings of soft k-means.

    Args:
        share: of views in class means.
        sharpness: of answers on the pool.
        weight: of a pool item beside an example; 0 leaves the pool alone.
        shrink: of the base classes' covariance, in whose metric it runs; None for plain distances.
    """

    share: float
    sharpness: float
    weight: float
    shrink: float | None = None


def k_means_logits(tasks: PoolTasks, setting: PoolSetting, base: BaseStatistics) -> Tensor:
    """Logits `[B, N Q, N]` of soft k-means (Ren et al., 2018) from class means, views among the examples."""
    size, shots = tasks.support.shape[-1], tasks.support.shape[2]
    metric = 2 * torch.eye(size) if setting.shrink is None else shrunk_metric(base.within, setting.shrink)
    shown = tasks.support if tasks.views is None else torch.lerp(tasks.support, tasks.views[..., 0, :], setting.share)
    start = shown.mean(2)
    means, counts = start, torch.full(start.shape[:2], float(shots))
    for _ in range(ROUNDS):
        near = torch.softmax(answer(means, tasks.pool, metric) * setting.sharpness, dim=-1)
        means = with_items(start, counts, tasks.pool, near, torch.full((len(start),), setting.weight))
    return answer(means, tasks.queries, metric)


def settings(views: bool) -> list[PoolSetting]:
    """Every setting that validation chooses from; a weight of 0 leaves the pool alone."""
    shares = SHARES if views else (0.0,)
    found = [PoolSetting(*one) for one in itertools.product(shares, SHARPNESS, WEIGHTS, SHRINKAGES)]
    return found + [PoolSetting(share, 1, 0, shrink) for share, shrink in itertools.product(shares, SHRINKAGES)]
