"""The closed forms that a text table compares with: every way to use what a task holds, each with its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.experts import LogisticRegression, SelfTraining, from_means, soft_means, unit
from training.tasks import WholeTask

NEEDS = {"examples": frozenset(), "names": frozenset({"names"}), "pool": frozenset({"pool"}),
         "all": frozenset({"names", "pool"})}  # fmt: skip
STRENGTHS = (3.0, 10.0, 30.0)
NAME_WEIGHTS = (0.5, 1.0, 2.0)
POOLS = ((20.0, 0.3), (20.0, 1.0), (10.0, 0.3), (10.0, 1.0))
SELF_TRAINING = "self-training"  # classical too, but not among those of the bar; reported beside it
LOGISTIC = "logistic C=10"


@dataclass(frozen=True)
class BaseStatistics:
    """What a comparator may know of an encoder beforehand, from data sets other than the one measured.

    Args:
        mean: `[D]`, of features.
        covariance: `[D, D]`, within classes.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Comparator:
    """A closed form on one task.

    Args:
        name: with its settings.
        needs: what it uses beside examples, of `names` and `pool`.
        head: `[N, D + 1]`, on features of unit length; for `centred` on features less the base mean, at unit length.
    """

    name: str
    needs: frozenset[str]
    head: Tensor
    centred: bool = False


def comparators(task: WholeTask, base: BaseStatistics | None, raw: bool = False) -> Iterator[Comparator]:
    """All closed forms for what a task holds, each once.

    Args:
        base: for centred class means and linear discriminant analysis; these are left out where it is absent.
        raw: the labels in place of written names.
    """
    ways, size = len(task.classes), task.queries.shape[-1]
    x, index = unit(task.examples), task.class_index
    targets = F.one_hot(index, ways).to(x)
    counts = targets.sum(0)
    named = task.raw_names if raw else task.names
    all_held = bool((counts > 0).all())
    if len(x) and all_held:
        yield from _from_examples(task, x, targets, counts, base)
    if named is None:
        return
    names = unit(named)
    together, both = torch.cat([x, names]), torch.cat([targets, torch.eye(ways)])
    needs = frozenset({"names"})
    for weight in NAME_WEIGHTS if len(x) else (1.0,):
        means = (targets.T @ x + weight * names) / (counts + weight)[:, None]
        yield Comparator(f"name-means {weight:g}", needs, from_means(means))
        if weight == 1.0:
            yield Comparator("name-means, cosine", needs, from_means(unit(means)))
        for sharpness, share in POOLS:
            yield Comparator(
                f"soft k-means from name-means {weight:g}, {sharpness:g}, {share:g}", needs | {"pool"},
                from_means(soft_means(means, counts + weight, task.pool, sharpness, share)),
            )
    for strength in STRENGTHS:
        head = LogisticRegression(together, torch.ones(len(together)), ways, strength).fit(both, 30)
        yield Comparator(f"logistic with names C={strength:g}", needs, head)
        if strength == 10.0 and len(task.pool):
            trained = SelfTraining(task.items("all", raw)).fit(head, (8, 4, 4))
            yield Comparator(f"{SELF_TRAINING} with names", needs | {"pool"}, trained)
    assert size == names.shape[1]


def _from_examples(
    task: WholeTask, x: Tensor, targets: Tensor, counts: Tensor, base: BaseStatistics | None
) -> Iterator[Comparator]:
    nothing, pool = frozenset[str](), frozenset({"pool"})
    means = targets.T @ x / counts[:, None]
    yield Comparator("class means", nothing, from_means(means))
    yield Comparator("class means, cosine", nothing, from_means(unit(means)))
    if base is not None:
        moved = targets.T @ unit(x - base.mean) / counts[:, None]
        yield Comparator("class means, centred", nothing, from_means(moved), centred=True)
        for shrinkage in (0.5, 0.9):
            spread = base.covariance.diagonal().mean() * torch.eye(len(base.mean))
            covariance = (1 - shrinkage) * base.covariance + shrinkage * spread
            solved = torch.linalg.solve(covariance, means.T).T
            head = torch.cat([solved, -(means * solved).sum(1, keepdim=True) / 2], dim=1)
            yield Comparator(f"LDA, shrunk {shrinkage:g}", nothing, head)
    for strength in (0.1, 1.0):
        yield Comparator(f"ridge {strength:g}", nothing, ridge(x, targets, strength))
    for strength in STRENGTHS:
        head = LogisticRegression(x, torch.ones(len(x)), len(task.classes), strength).fit(targets, 30)
        yield Comparator(f"logistic C={strength:g}", nothing, head)
        if strength == 10.0 and len(task.pool):
            yield Comparator(SELF_TRAINING, pool, SelfTraining(task.items("pool")).fit(head, (8, 4, 4)))
    for sharpness, share in POOLS if len(task.pool) else ():
        yield Comparator(
            f"soft k-means, {sharpness:g}, {share:g}", pool,
            from_means(soft_means(means, counts, task.pool, sharpness, share)),
        )


def ridge(x: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Ridge regression on one-hot targets, with a bias that is not penalised: `[N, D + 1]`."""
    mean, middle = x.mean(0), targets.mean(0)
    inputs, outputs = x - mean, targets - middle
    if len(x) <= x.shape[1]:
        weights = torch.linalg.solve(inputs @ inputs.T + strength * torch.eye(len(x)), outputs).T @ inputs
    else:
        weights = torch.linalg.solve(inputs.T @ inputs + strength * torch.eye(x.shape[1]), inputs.T @ outputs).T
    return torch.cat([weights, (middle - weights @ mean)[:, None]], dim=1)
