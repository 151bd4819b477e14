"""Tasks of text sets: whole label sets as they are measured, and the mixture that the generator learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltdi.experts import TaskItems
from training.features import FeatureSet

SHOTS = (0, 1, 2, 5, 10)
INFORMATION = ("examples", "names", "pool", "all")
POOL_SIZE = 1000
MOST_QUERIES = 2000
MOST_WAYS = 150  # sets of more classes are never taken whole


@dataclass(frozen=True)
class Task:
    """A task with what answers it.

    Args:
        group: of data sets that are left out of training together.
        items: what is known of it.
        queries: `[Q, D]`, as `items.seen` gives them.
        targets: `[Q]`.
    """

    group: str
    items: TaskItems
    queries: Tensor
    targets: Tensor


def group_of(name: str) -> str:
    """The data sets of one source are left out together."""
    return name.split("_")[0] if name.startswith("hint3") else name


@dataclass(frozen=True)
class WholeTask:
    """All classes of a set, with a support drawn from its training part and its test part as queries.

    Args:
        examples, class_index: the support: as many examples a class as asked, where a class has fewer all but one.
        pool: `[U, D]`, of the training items that are not support.
        classes: which of the set's classes it holds; those without a training item are left out.
        queries, targets: the test items of those classes.
        dropped: test items of other labels.
        outside: `[O, D]`, test items that belong to no class.
    """

    examples: Tensor
    class_index: Tensor
    pool: Tensor
    classes: Tensor
    names: Tensor | None
    raw_names: Tensor | None
    queries: Tensor
    targets: Tensor
    dropped: int
    outside: Tensor

    def items(self, information: str, raw: bool = False, centre: bool = False) -> TaskItems:
        """What is known with `information` of it (`INFORMATION`), under written names or raw labels."""
        names = (self.raw_names if raw else self.names) if information in ("names", "all") else None
        pool = self.pool if information in ("pool", "all") else None
        return TaskItems.of(self.examples, self.class_index, len(self.classes), names, None, pool, centre)


def whole_task(
    data: FeatureSet, shots: int, seed: int, *, pool_size: int = POOL_SIZE, most_queries: int = MOST_QUERIES,
    classes: Sequence[int] | None = None,
) -> WholeTask | None:
    """A whole task; None where fewer than two classes have training items.

    Args:
        classes: which classes; all of the set where absent.
    """
    chance = np.random.default_rng((seed, shots))
    wanted = range(len(data.classes)) if classes is None else classes
    held = [row for row in wanted if len(data.train_rows[row])]
    if len(held) < 2:
        return None
    support, rest = [], []
    for row in held:
        order = chance.permutation(data.train_rows[row])
        count = min(shots, max(1, len(order) - 1))
        support.append(order[:count])
        rest.append(order[count:])
    place = torch.full((len(data.classes) + 2,), -1)
    place[torch.tensor(held)] = torch.arange(len(held))
    index = place[data.class_index]
    chosen = torch.from_numpy(np.concatenate(support)).long()
    pool = torch.from_numpy(chance.permutation(np.concatenate(rest))[:pool_size]).long()
    tested = (data.test & (index >= 0) & (data.class_index >= 0)).nonzero().squeeze(1)
    dropped = int((data.test & (data.class_index != -1)).sum()) - len(tested) if classes is None else 0
    if len(tested) > most_queries:
        tested = tested[torch.from_numpy(np.random.default_rng(0).permutation(len(tested))[:most_queries])]
    rows = torch.tensor(held)
    return WholeTask(
        data.features[chosen], index[chosen], data.features[pool], rows,
        None if data.names is None else data.names[rows], None if data.raw_names is None else data.raw_names[rows],
        data.features[tested], index[tested], dropped, data.features[data.test & (data.class_index == -1)],
    )


@dataclass(frozen=True)
class Mixture:
    """The tasks that a generator learns from.

    Args:
        shots: numbers of examples a class, drawn alike.
        whole: share of tasks with all classes of a set.
        most_ways: of the others.
        pools: smallest and largest pool, drawn in the logarithm.
        polluted: share of tasks whose pool holds items of other classes too, a third as many.
        uneven: share of tasks that lose 40 % of their examples at random.
        queries: of a task.
        centre: whether features are taken less a mean of the task (`TaskItems.of`).
    """

    shots: tuple[int, ...] = (0, 1, 1, 2, 3, 5, 5, 10)
    whole: float = 0.4
    most_ways: int = 80
    pools: tuple[int, int] = (30, 500)
    polluted: float = 0.2
    uneven: float = 0.3
    queries: int = 150
    centre: bool = False


def draw_task(data: FeatureSet, mixture: Mixture, chance: np.random.Generator) -> Task | None:
    """One training task of a set; None where the draw makes none."""
    shots = int(chance.choice(mixture.shots))
    named = data.names is not None and (shots == 0 or chance.random() < 0.5)
    if shots == 0 and not named:
        return None
    ways, classes = len(data.classes), None
    if ways > MOST_WAYS or (ways > 5 and chance.random() > mixture.whole):
        largest = min(ways, mixture.most_ways)
        classes = chance.permutation(ways)[: round(math.exp(chance.uniform(math.log(2), math.log(largest))))].tolist()
    pool_size = int(math.exp(chance.uniform(*np.log(mixture.pools)))) if chance.random() < 0.5 else 0
    task = whole_task(
        data, shots, int(chance.integers(2**31)), pool_size=pool_size, most_queries=mixture.queries, classes=classes
    )
    if task is None or len(task.targets) < 10:
        return None
    pool = task.pool
    if len(pool) and classes is not None and chance.random() < mixture.polluted:
        others = np.concatenate([[], *(data.train_rows[row] for row in range(ways) if row not in set(classes))])
        pool = torch.cat([pool, data.features[torch.from_numpy(chance.permutation(others)[: len(pool) // 3]).long()]])
    examples, index = task.examples, task.class_index
    if shots and chance.random() < mixture.uneven:
        kept = _some(index, len(task.classes), named, chance)
        examples, index = examples[kept], index[kept]
    names = (task.names if chance.random() < 0.5 else task.raw_names) if named else None
    items = TaskItems.of(
        examples, index, len(task.classes), names, None, pool if len(pool) else None, mixture.centre
    )
    return Task(group_of(data.name), items, items.seen(task.queries), task.targets)


def _some(index: Tensor, ways: int, named: bool, chance: np.random.Generator) -> Tensor:
    """Which examples stay; without names each class keeps its first."""
    kept = torch.from_numpy(chance.random(len(index)) < 0.6)
    if not named:
        first = torch.cat([torch.tensor([True]), index[1:] != index[:-1]])
        kept |= first
    return kept if bool(kept.any()) else torch.ones_like(kept)


def draw_bank(
    sets: Sequence[FeatureSet], weights: Sequence[float], count: int, mixture: Mixture, seed: int
) -> list[Task]:
    """`count` training tasks, the sets drawn by their weights."""
    chance = np.random.default_rng(seed)
    share = np.asarray(weights, dtype=float) / np.sum(weights)
    bank: list[Task] = []
    while len(bank) < count:
        task = draw_task(sets[chance.choice(len(sets), p=share)], mixture, chance)
        if task is not None:
            bank.append(task)
    return bank
