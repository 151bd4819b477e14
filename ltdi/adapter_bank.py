"""Prepared adapters as a bank, and what a support set looks like under some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-6
LIKENESS = 0.3  # what the likeness of texts adds to a candidate's score
LUCK = 0.05  # by which the best of R shares of 32 examples grows by chance with log R


@dataclass(frozen=True)
class Bank:
    """Stored tasks around the shared start; the last one is no task but the default, which needs no relative.

    Args:
        start: `[layers, 2, D, rank]`.
        basis: `[W, K, D * rank]`, orthonormal for each weight token.
        spread: `[W]`, the unit of a token's coordinates.
        trajectories: `[T, m + 1, W, K]`, waypoints less the start, in these coordinates.
        frozen: `[R, D]`, directions of the stored tasks' classifiers on the frozen body's mean-pooled features.
        own: `[R, D]`, directions of their classifiers on the pooler's output under their own adapters.
        owner: `[R]`, the stored task of each direction.
        pairs: `[T]`, 1 for tasks on pairs of texts.
        topics: `[T, D]`, the mean of their texts on the frozen body, less the mean over tasks, length one; 0 for the default.
        centre: `[D]`, the mean over tasks.
    """

    start: Tensor
    basis: Tensor
    spread: Tensor
    trajectories: Tensor
    frozen: Tensor
    own: Tensor
    owner: Tensor
    pairs: Tensor
    topics: Tensor
    centre: Tensor

    def decode(self, x: Tensor) -> Tensor:
        """B `[B, layers, 2, D, rank]` from coordinates `[B, W, K]`."""
        moved = torch.einsum("bwk,wkp->bwp", x * self.spread[:, None], self.basis)
        return self.start + moved.reshape(len(x), *self.start.shape)

    def adapters(self, tasks: Tensor) -> Tensor:
        """The final adapters of stored tasks `[C]`: `[C, layers, 2, D, rank]`."""
        return self.decode(self.trajectories[tasks, 0])

    @property
    def shape(self) -> tuple[int, int]:
        """W, K."""
        return self.basis.shape[0], self.basis.shape[1]


def make_bank(
    start: Tensor, waypoints: Tensor, default: Tensor, frozen: Sequence[Tensor], own: Sequence[Tensor], pairs: Sequence[bool],
    means: Tensor, components: int,
) -> Bank:  # fmt: skip
    """A bank of prepared adapters.

    Args:
        start: `[layers, 2, D, rank]`.
        waypoints: `[T - 1, m + 1, layers, 2, D, rank]`.
        default: `[layers, 2, D, rank]`.
        frozen, own: each task's classifiers `[N, D + 1]` on the frozen body and under its adapter.
        pairs: whether a task is on pairs.
        means: `[T - 1, D]`, of the tasks' texts on the frozen body.
        components: K at most.
    """
    still = torch.stack([default, *[start + (default - start) * (1 - i / 3) for i in range(1, waypoints.shape[1])]])
    moved = (torch.cat([waypoints, still[None]]) - start).flatten(4, 5).flatten(2, 3)  # [T, m + 1, W, P]
    _, _, right = torch.linalg.svd(moved[:, 0].transpose(0, 1), full_matrices=False)
    basis = right[:, :components]
    raw = torch.einsum("tmwp,wkp->tmwk", moved, basis)
    spread = raw[:, 0].square().mean((0, 2)).sqrt().clamp_min(TINY)
    rows = [directions(head) for head in own]
    owner = torch.cat([torch.full((len(one),), i) for i, one in enumerate(rows)])
    return Bank(
        start, basis, spread, raw / spread[:, None], torch.cat([directions(head) for head in frozen]), torch.cat(rows), owner,
        torch.tensor([*map(float, pairs), 0.5]),
        F.pad(F.normalize(means - means.mean(0), dim=1), (0, 0, 0, 1)), means.mean(0),
    )  # fmt: skip


def directions(head: Tensor) -> Tensor:
    """Rows of a classifier `[N, D + 1]` less their mean, length one: `[N, D]`; two classes have one direction."""
    rows = head[:, :-1] - head[:, :-1].mean(0)
    rows = rows[:1] if len(rows) == 2 else rows
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(TINY)


def separation(values: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Share of the variance of each column's ranks that lies between classes, less what chance gives: `[R]`, at most 1.

    Args:
        values: `[M, R]`.
        labels: `[M]`, 0 to `ways` - 1.
    """
    ranks = values.argsort(0).argsort(0).float()
    centred = ranks - ranks.mean(0)
    one_hot = F.one_hot(labels, ways).to(centred)
    counts = one_hot.sum(0).clamp_min(1)
    means = one_hot.T @ centred / counts[:, None]
    share = (means.square() * counts[:, None]).sum(0) / centred.square().sum(0).clamp_min(TINY)
    chance = (ways - 1) / max(len(values) - 1, 1)
    return (share - chance) / max(1 - chance, TINY)


def likeness(bank: Bank, frozen: Tensor) -> Tensor:
    """Cosine of the support's mean text and each stored task's, both less the mean over tasks: `[T]`; the default's is 0.

    Args:
        frozen: `[M, D]`, mean-pooled features of the support under the frozen body.
    """
    return bank.topics @ F.normalize(F.normalize(frozen, dim=1).mean(0) - bank.centre, dim=0)


def retrieve(bank: Bank, frozen: Tensor, labels: Tensor, ways: int, pair: bool) -> Tensor:
    """How well each stored task's classifier on the frozen body tells the support's classes apart, `[T]`; the default 0.

    It is the best of a classifier's rows, less what the best of several reaches by luck. Tasks on pairs and on single
    texts are no candidates for each other.

    Args:
        frozen: `[M, D]`, mean-pooled features of the support under the frozen body.
    """
    rows = separation(F.normalize(frozen, dim=1) @ bank.frozen.T, labels, ways)
    counts = torch.bincount(bank.owner, minlength=len(bank.pairs)).clamp_min(1)
    best = torch.zeros(len(bank.pairs)).scatter_reduce(0, bank.owner, rows, "amax", include_self=False) - LUCK * counts.log()
    best[-1] = 0
    return torch.where((bank.pairs - float(pair)).abs() > 0.75, best - 1, best)


def candidates(bank: Bank, score: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The `count` stored tasks of the best scores among those allowed, and the default: `[count + 1]`."""
    told = score.masked_fill(allowed == 0, -9.0)
    told[-1] = -10.0
    best = told.topk(min(count, int(allowed[:-1].sum()))).indices
    return torch.cat([best, torch.tensor([len(told) - 1])])


@dataclass(frozen=True)
class RidgeHead:
    """Ridge regression whose penalty is lighter along the classifiers of related tasks.

    Weights minimise |Y - Z w|^2 + lambda w' (I + gamma sum_r d_r d_r')^-1 w, Z the support's features centred and divided by
    their mean length. With no direction it is ridge regression.

    Args:
        strength: lambda.
        gamma: how much lighter.
        scale: of the logits.
    """

    strength: Tensor
    gamma: Tensor
    scale: Tensor

    def __call__(self, features: Tensor, labels: Tensor, ways: int, rows: Tensor, weights: Tensor) -> Tensor:
        """The classifier `[N, D + 1]` from features `[M, D]`, labels `[M]`, directions `[R, D]` and their weights `[R]`."""
        centre = features.mean(0)
        length = (features - centre).norm(dim=1).mean().clamp_min(TINY)
        z = (features - centre) / length
        y = F.one_hot(labels, ways).to(z)
        middle = y.mean(0)
        metric = rows * (self.gamma * weights).clamp_min(TINY**2).sqrt().unsqueeze(1)
        seen = z @ metric.T
        gram = z @ z.T + seen @ seen.T + self.strength * torch.eye(len(z))
        solved = torch.linalg.solve(gram, y - middle)
        weight = (solved.T @ z + (solved.T @ seen) @ metric) * self.scale / length
        return torch.cat([weight, (middle - weight @ centre).unsqueeze(1)], dim=1)


def left_out(features: Tensor, labels: Tensor, ways: int, rows: Tensor, strength: float, gamma: float) -> tuple[float, float]:
    """Leave-one-out accuracy and mean squared error of `RidgeHead`, in closed form.

    Args:
        features: `[M, D]`.
        rows: `[R, D]`, directions with the weight one; none for plain ridge regression.
    """
    z = features - features.mean(0)
    z = z / z.norm(dim=1).mean().clamp_min(TINY)
    y = F.one_hot(labels, ways).to(z)
    y = y - y.mean(0)
    gram = z @ z.T + gamma * (z @ rows.T) @ (z @ rows.T).T
    hat = torch.linalg.solve(gram + strength * torch.eye(len(z)), gram)
    leverage = (hat.diagonal() + 1 / len(z)).clamp_max(0.999)
    predicted = y - (y - hat @ y) / (1 - leverage)[:, None]
    return float((predicted.argmax(1) == labels).float().mean()), float((predicted - y).square().mean())


def evidence(
    bank: Bank, chosen: Tensor, features: Tensor, score: Tensor, alike: Tensor, labels: Tensor, ways: int
) -> Tensor:
    """What the support looks like under each candidate, `[C, 9]`.

    By how much its leave-one-out squared error with the candidate's classifier as a prior lies below the default's, the
    same without the prior, both accuracies less the default's, the separation by the candidate's own classifier, the
    score of its retrieval, whether it is the default, log N, and the likeness of its texts.

    Args:
        chosen: `[C]`, candidates, the default last.
        features: `[C, M, D]`, of the support under each.
    """
    told = []
    for task, z in zip(chosen.tolist(), features, strict=True):
        rows = bank.own[bank.owner == task]
        plain, prior = left_out(z, labels, ways, rows[:0], 1.0, 0.0), left_out(z, labels, ways, rows, 1.0, 10.0)
        own = float(separation(z @ rows.T, labels, ways).max()) if len(rows) else 0.0
        told.append([prior[1], plain[1], prior[0], plain[0], own, float(score[task])])
    said = torch.tensor(told)
    default = said[-1]
    is_default = torch.zeros(len(said), 1)
    is_default[-1] = 1
    gains = (default[:2] - said[:, :2]) / default[:2].clamp_min(TINY)
    log_ways = torch.full((len(said), 1), float(torch.tensor(float(ways)).log()) / 2)
    return torch.cat([gains, said[:, 2:4] - default[2:4], said[:, 4:], is_default, log_ways, alike[chosen].unsqueeze(1)], dim=1)
