"""Tasks of images with an unlabelled pool: the generator asked again with what its own head finds in the pool."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi import baselines
from ltdi.embedding import ClassStatistics
from ltdi.generator import ResidualGenerator, generate_weights
from training.episodes import Protocol, random_classes
from training.evaluate import Estimate
from training.statistics import statistics_of_episodes

SHARES = (0.0, 0.35, 0.5)  # of views in class means
SHARPNESS = (0.2, 0.4, 0.8, 1.6)  # of answers on the pool, in logits
WEIGHTS = (0.05, 0.1, 0.2, 0.4)  # of a pool item beside an example
ROUNDS = 3


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
        support: `[B, N, K, D]`, `views` `[B, N, K, 2, D]`: as for `training.episodes.Episodes`.
        queries: `[B, N Q, D]`, class by class; `target` `[N Q]`.
        pool: `[B, U, D]`.
    """

    support: Tensor
    views: Tensor
    queries: Tensor
    target: Tensor
    pool: Tensor


def draw_pool_tasks(bank: Tensor, protocol: Protocol, kind: PoolKind, batch: int = 100) -> Iterator[PoolTasks]:
    """Tasks over a bank `[classes, images, 3, D]`; support, queries and pool share no image."""
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
    place = asked + torch.arange(kind.size)  # a place of its own for each item: none is drawn twice
    pool = bank[classes, images[rows, classes, place], 0]
    target = torch.arange(ways).repeat_interleave(protocol.queries)
    return PoolTasks(found[:, :, :shots, 0], found[:, :, :shots, 1:], found[:, :, shots:, 0].flatten(1, 2), target, pool)


def _dirichlet(batch: int, ways: int, chance: torch.Generator) -> Tensor:
    exponential = -torch.rand(batch, ways, generator=chance).clamp_min(1e-9).log()
    return exponential / exponential.sum(1, keepdim=True)


@dataclass(frozen=True)
class PoolSetting:
    """How much is made of the pool.

    Args:
        share: of views in class means; a generator has its own.
        sharpness: of answers on the pool.
        weight: of a pool item beside an example.
    """

    share: float
    sharpness: float
    weight: float


def soft_k_means(tasks: PoolTasks, setting: PoolSetting) -> Tensor:
    """Heads `[B, N, D + 1]` of soft k-means (Ren et al., 2018) from class means, views among the examples."""
    start = torch.lerp(tasks.support, tasks.views[..., 0, :], setting.share).mean(2)
    means = start
    for _ in range(ROUNDS):
        means, _ = _with_pool(start, baselines.nearest_mean(means), tasks, setting)
    return baselines.nearest_mean(means)


def generated_with_pool(generator: ResidualGenerator, tasks: PoolTasks, setting: PoolSetting) -> Tensor:
    """Heads `[B, N, D + 1]`: generated, and again from examples moved to what the head before finds in the pool."""
    batch, ways = tasks.support.shape[:2]
    noise = torch.randn(batch, 1, *generator.noise_shape(ways), generator=torch.Generator().manual_seed(0))
    plain = statistics_of_episodes(tasks.support, tasks.views)
    head = generate_weights(generator, generator.describe(plain), noise)
    for _ in range(ROUNDS - 1):
        described = generator.describe(_moved(plain, *_with_pool(plain.means, head, tasks, setting)))
        head = generate_weights(generator, described, noise)
    return head


def _moved(plain: ClassStatistics, means: Tensor, counts: Tensor) -> ClassStatistics:
    """The statistics with other class means, those of views moved alike, and as many examples as the pool made of them."""
    moved = object.__new__(ClassStatistics)
    moved.__dict__.update(plain.__dict__)
    moved.view_means = plain.view_means + (means - plain.means)
    moved.means, moved.counts = means, counts
    return moved


def _with_pool(start: Tensor, head: Tensor, tasks: PoolTasks, setting: PoolSetting) -> tuple[Tensor, Tensor]:
    """Means `[B, N, D]` of examples and pool items, these by the head's answers on them, and their weights `[B, N]`."""
    shots = tasks.support.shape[2]
    near = torch.softmax(baselines.logits(head, tasks.pool) * setting.sharpness, dim=-1)
    total = shots * start + setting.weight * near.transpose(1, 2) @ tasks.pool
    count = shots + setting.weight * near.sum(1)
    return total / count.unsqueeze(-1), count


def settings(shares: tuple[float, ...]) -> list[PoolSetting]:
    """Every setting that validation chooses from; a weight of 0 leaves the pool alone."""
    return [PoolSetting(*one) for one in itertools.product(shares, SHARPNESS, WEIGHTS)] + [PoolSetting(shares[-1], 1, 0)]


@torch.inference_mode()
def pool_row(
    generators: dict[int, ResidualGenerator], validation: Tensor, test: Tensor, protocol: Protocol, kind: PoolKind,
    validation_episodes: int = 200,
) -> dict:
    """Generated heads and soft k-means on the same tasks with pools, settings of both chosen on validation; for JSON."""
    chosen = replace(protocol, episodes=validation_episodes, seed=1)
    first = next(iter(generators.values()))
    own = _best(lambda t, s: generated_with_pool(first, t, s), validation, chosen, kind, settings((0.0,)))
    closed = _best(soft_k_means, validation, chosen, kind, settings(SHARES))
    methods = {f"seed {n}": (lambda t, g=g: generated_with_pool(g, t, own)) for n, g in generators.items()}
    methods["soft k-means"] = lambda t: soft_k_means(t, closed)
    methods["generated, no pool"] = lambda t: generated_with_pool(first, t, replace(own, weight=0.0))
    right: dict[str, list[Tensor]] = {name: [] for name in methods}
    for tasks in draw_pool_tasks(test, protocol, kind):
        for name, method in methods.items():
            right[name].append(_right(method(tasks), tasks))
    measured = {name: torch.cat(values) for name, values in right.items()}
    return {
        "protocol": protocol.name, "pool": vars(kind), "settings": {"generated": vars(own), "soft k-means": vars(closed)},
        "accuracy": {name: vars(Estimate.of(values)) for name, values in measured.items()},
        "difference_by_seed": {
            str(n): vars(Estimate.of(measured[f"seed {n}"] - measured["soft k-means"])) for n in generators
        },
    }


def _best(method, bank: Tensor, protocol: Protocol, kind: PoolKind, found: list[PoolSetting]) -> PoolSetting:
    tasks = list(draw_pool_tasks(bank, protocol, kind))
    return max(found, key=lambda one: float(torch.cat([_right(method(t, one), t) for t in tasks]).mean()))


def _right(heads: Tensor, tasks: PoolTasks) -> Tensor:
    return (baselines.logits(heads, tasks.queries).argmax(-1) == tasks.target).float().mean(-1)
