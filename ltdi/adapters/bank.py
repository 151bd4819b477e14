"""Prepared adapters as a bank, and what a support set looks like under some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.support_heads import TINY, left_out

LIKENESS = 0.3  # what the likeness of texts adds to a candidate's score
NAMED = 0.5  # what like names of classes add to it
STRANGE = 0.4  # below it names of classes are not alike: two lists of unrelated words reach it
WATCHED = 64  # examples that the candidates are compared on, at most
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
        names: `[Q, D]`, the names of the stored tasks' classes on the frozen body, length one.
        named: `[Q]`, the stored task of each name.
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
    names: Tensor
    named: Tensor

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
    means: Tensor, names: Sequence[Tensor], components: int,
) -> Bank:  # fmt: skip
    """A bank of prepared adapters.

    Args:
        start: `[layers, 2, D, rank]`.
        waypoints: `[T - 1, m + 1, layers, 2, D, rank]`.
        default: `[layers, 2, D, rank]`.
        frozen, own: each task's classifiers `[N, D + 1]` on the frozen body and under its adapter.
        pairs: whether a task is on pairs.
        means: `[T - 1, D]`, of the tasks' texts on the frozen body.
        names: each task's names of classes on the frozen body, `[N, D]`.
        components: K at most.
    """
    still = torch.stack([default, *[start + (default - start) * (1 - i / 3) for i in range(1, waypoints.shape[1])]])
    moved = (torch.cat([waypoints, still[None]]) - start).flatten(4, 5).flatten(2, 3)  # [T, m + 1, W, P]
    _, _, right = torch.linalg.svd(moved[:, 0].transpose(0, 1), full_matrices=False)
    basis = right[:, :components]
    raw = torch.einsum("tmwp,wkp->tmwk", moved, basis)
    spread = raw[:, 0].square().mean((0, 2)).sqrt().clamp_min(TINY)
    rows = [directions(head) for head in own]
    owner, named = (torch.cat([torch.full((len(one),), i) for i, one in enumerate(parts)]) for parts in (rows, names))
    return Bank(
        start, basis, spread, raw / spread[:, None], torch.cat([directions(head) for head in frozen]), torch.cat(rows), owner,
        torch.tensor([*map(float, pairs), 0.5]),
        F.pad(F.normalize(means - means.mean(0), dim=1), (0, 0, 0, 1)), means.mean(0),
        F.normalize(torch.cat(list(names)), dim=1), named,
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


def called(bank: Bank, names: Tensor | None) -> Tensor:
    """How like a stored task's names of classes are to the task's, `[T]`, from 0 (strange) to 1; the default's is 0.

    Each name's best cosine among the others', both ways, in the mean.

    Args:
        names: `[N, D]`, on the frozen body; None where they say nothing.
    """
    found = torch.zeros(len(bank.pairs))
    if names is None:
        return found
    alike = F.normalize(names, dim=1) @ bank.names.T  # [N, Q]
    for task in range(len(found) - 1):
        own = alike[:, bank.named == task]
        found[task] = (own.amax(1).mean() + own.amax(0).mean()) / 2
    return ((found - STRANGE) / (1 - STRANGE)).clamp(0, 1)


@dataclass(frozen=True)
class Retrieval:
    """What is known of the stored tasks before the support is read under any of them, each `[T]`.

    Args:
        apart: how well their classifiers tell its classes apart, `retrieve`.
        alike: how like their texts are, `likeness`.
        called: how like the names of their classes are, `called`.
    """

    apart: Tensor
    alike: Tensor
    called: Tensor

    @property
    def score(self) -> Tensor:
        """What candidates are chosen by."""
        return self.apart + self.alike * LIKENESS + self.called * NAMED


def retrieval(bank: Bank, frozen: Tensor, labels: Tensor, ways: int, pair: bool, names: Tensor | None) -> Retrieval:
    """All of it; arguments as in `retrieve`, `likeness` and `called`."""
    return Retrieval(retrieve(bank, frozen, labels, ways, pair), likeness(bank, frozen), called(bank, names))


def watched(labels: Tensor, ways: int, most: int = WATCHED) -> Tensor:
    """The rows that candidates are compared on: the first ones of each class, equally many where there are enough."""
    rank = (F.one_hot(labels, ways).cumsum(0) - 1).gather(1, labels[:, None]).squeeze(1)
    return torch.argsort(rank, stable=True)[:most].sort().values


def candidates(bank: Bank, score: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The `count` stored tasks of the best scores among those allowed, and the default: `[count + 1]`."""
    told = score.masked_fill(allowed == 0, -9.0)
    told[-1] = -10.0
    best = told.topk(min(count, int(allowed[:-1].sum()))).indices
    return torch.cat([best, torch.tensor([len(told) - 1])])


def evidence(bank: Bank, chosen: Tensor, features: Tensor, known: Retrieval, labels: Tensor, ways: int) -> Tensor:
    """What the support looks like under each candidate, `[C, 10]`.

    By how much its leave-one-out squared error with the candidate's classifier as a prior lies below the default's, the
    same without the prior, both accuracies less the default's, the separation by the candidate's own classifier and by
    that on the frozen body, whether it is the default, log N, how like its texts and its names of classes are.

    Args:
        chosen: `[C]`, candidates, the default last.
        features: `[C, M, D]`, of the support under each.
    """
    told = []
    for task, z in zip(chosen.tolist(), features, strict=True):
        rows = bank.own[bank.owner == task]
        plain, prior = left_out(z, labels, ways, rows[:0], 1.0, 0.0), left_out(z, labels, ways, rows, 1.0, 10.0)
        own = float(separation(z @ rows.T, labels, ways).max()) if len(rows) else 0.0
        told.append([prior[1], plain[1], prior[0], plain[0], own, float(known.apart[task])])
    said = torch.tensor(told)
    default = said[-1]
    is_default = torch.zeros(len(said), 1)
    is_default[-1] = 1
    gains = (default[:2] - said[:, :2]) / default[:2].clamp_min(TINY)
    log_ways = torch.full((len(said), 1), float(torch.tensor(float(ways)).log()) / 2)
    like = torch.stack([known.alike[chosen], known.called[chosen]], dim=1)
    return torch.cat([gains, said[:, 2:4] - default[2:4], said[:, 4:], is_default, log_ways, like], dim=1)
