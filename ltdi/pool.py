"""What an unlabelled pool tells of the classes of a task, for the `default` recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi import baselines
from ltdi.errors import InvalidConfig

SMALL, ENOUGH = 2, 5  # pool items for each class: up to the one a pool is left alone, from the other on it counts in full
NODES = (1, 5)  # examples a class; between them in the logarithm, constant beyond
ROUNDS = 4


@dataclass(frozen=True)
class PoolConfig:
    """What validation said of pools, each for one and for five examples a class.

    Args:
        rounds: of reading the pool.
        sharpness, weight: of soft k-means, the baseline of tasks with a pool: factor of its logits, and what a pool item counts
            beside an example.
        item_weight, item_worth: what a pool item counts in the class means that the generator is asked with again, and how
            many examples it is said to be.
        share: of the head that is generated again in the sum of both.
        temperature, baseline_temperature: divisors of logits for probabilities, of heads that are generated with a pool and of their
            baselines.
    """

    rounds: int = ROUNDS
    sharpness: tuple[float, ...] = (0.8, 0.8)
    weight: tuple[float, ...] = (0.4, 0.4)
    item_weight: tuple[float, ...] = (0.3, 0.3)
    item_worth: tuple[float, ...] = (0.4, 0.4)
    share: tuple[float, ...] = (0.3, 0.4)
    temperature: tuple[float, ...] = (1.0, 1.0)
    baseline_temperature: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        temperatures = (self.temperature, self.baseline_temperature)
        fitted = (self.sharpness, self.weight, self.item_weight, self.item_worth, self.share, *temperatures)
        if not 1 <= self.rounds <= 100 or any(len(values) != len(NODES) for values in fitted):
            raise InvalidConfig(f"pool needs 1 to 100 rounds and {len(NODES)} values of each setting", field="pool")
        if any(not 0 <= value <= 1e3 for values in fitted for value in values):
            raise InvalidConfig("pool holds a setting outside 0..1000", field="pool")
        if any(value == 0 for values in temperatures for value in values):
            raise InvalidConfig("pool holds a temperature of 0", field="pool")

    def at(self, shots: float, name: str) -> float:
        """A setting for a mean number of examples a class."""
        return float(between(torch.tensor(getattr(self, name)), torch.tensor([shots]))[0])


def between(values: Tensor, shots: Tensor) -> Tensor:
    """Values for `NODES` `[..., 2]` at mean examples a class `[B]`: `[B, ...]`."""
    place = shots.float().clamp(*NODES).log() / math.log(NODES[1])
    return torch.lerp(values[..., 0], values[..., 1], place.view(-1, *[1] * (values.ndim - 1)))


def counted(items: int, ways: int) -> float:
    """How much a pool of `items` for `ways` classes counts: 0 to 1. Means of a few items only mislead (`DECISIONS.md`)."""
    return min(max((items / ways - SMALL) / (ENOUGH - SMALL), 0.0), 1.0)


class PoolReader(nn.Module):
    """Soft k-means in the metric of the base classes, led by the answers of a head that was generated without the pool.

    In each round items are answered for, by the head of the class means so far and by the one that leads, and class means are taken
    anew from examples and items. How sharp, how heavy and how much led, by round and number of examples, is learned from tasks
    with pools of many kinds; nothing of it is a direction of the space, so that it carries over to other classes.

    Args:
        rounds: of reading.
    """

    def __init__(self, rounds: int = ROUNDS) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((rounds, 2), math.log(0.8)))
        self.weight = nn.Parameter(torch.full((rounds, 2), math.log(0.4)))
        self.lead = nn.Parameter(torch.zeros(rounds, 2))

    def forward(self, means: Tensor, counts: Tensor, pool: Tensor, metric: Tensor, leading: Tensor) -> tuple[Tensor, Tensor]:
        """The pool as it is answered for in the end, and the class means from it.

        Args:
            means: `[B, N, D]`, of the examples; `counts` `[B, N]`, how many these are.
            pool: `[B, U, D]`.
            metric: `[D, D]`, as for `baselines.nearest_mean_in_metric`.
            leading: `[B, U, N]`, logits of the pool under the head that leads.

        Returns:
            Answers `[B, U, N]`, which sum to one, and means `[B, N, D]`.
        """
        shots = counts.float().mean(1)
        sharpness, weight, lead = (between(own, shots).unbind(1) for own in (self.sharpness, self.weight, self.lead))
        found, answers = means, leading
        for sharp, heavy, led in zip(sharpness, weight, lead, strict=True):
            logits = sharp.exp().view(-1, 1, 1) * answer(found, pool, metric) + led.view(-1, 1, 1) * leading
            answers = torch.softmax(logits, -1)
            found = with_items(means, counts, pool, answers, heavy.exp())
        return answers, found


def soft_k_means(means: Tensor, counts: Tensor, pool: Tensor, metric: Tensor, config: PoolConfig) -> Tensor:
    """Class means `[B, N, D]` of soft k-means (Ren et al., 2018) in a metric: the baseline of tasks with a pool.

    Args:
        means, counts, pool, metric: as for `PoolReader`.
    """
    shots = counts.float().mean(1)
    sharp, weight = (between(means.new_tensor(values), shots) for values in (config.sharpness, config.weight))
    found = means
    for _ in range(config.rounds):
        answers = torch.softmax(sharp.view(-1, 1, 1) * answer(found, pool, metric), -1)
        found = with_items(means, counts, pool, answers, weight)
    return found


def answer(means: Tensor, items: Tensor, metric: Tensor) -> Tensor:
    """Logits `[B, U, N]` of items `[B, U, D]` by their distances to means `[B, N, D]` in a metric."""
    return baselines.logits(baselines.nearest_mean_in_metric(means, metric), items)


def with_items(means: Tensor, counts: Tensor, pool: Tensor, answers: Tensor, weight: Tensor) -> Tensor:
    """Means `[B, N, D]` of examples and of pool items, each by its answer times `weight` `[B]`."""
    shares = weight.view(-1, 1, 1) * answers
    total = counts.unsqueeze(-1) * means + shares.transpose(1, 2) @ pool
    return total / (counts + shares.sum(1)).unsqueeze(-1)
