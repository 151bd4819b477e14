"""Learning the generator by the task loss of the finished adapter with its head, on queries.

The loss of an episode is the cross entropy of the candidates' answers, each with its head, averaged under the weights that
the denoiser gives them: a stand-in for the adapter of these weights, under which an episode's features need to be read
only once. (The expected loss instead is least at a single candidate, and a wrong one is chosen as surely as a right one.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.bank import Bank, candidates, evidence, retrieval
from ltdi.adapters.generator import CANDIDATES, AdapterGenerator
from training.adapters.encoded import EncodedTask, FastBert, Part, hidden_features

ROWS, TRIED = 64, 7  # rows of an episode, support and queries; candidates that its features are read under


@dataclass(frozen=True)
class LearnConfig:
    """`steps` of Adam at `rate`, `group` episodes each."""

    steps: int = 75
    group: int = 16
    rate: float = 0.03
    seed: int = 0


@dataclass(frozen=True)
class Episode:
    """A drawn task under its candidates.

    Args:
        chosen: `[C]`, the default last.
        evidence: `[C, F]`.
        support, queries: `[C, M, D]`, features under each.
        labels, wanted: `[M]`, classes of support and queries.
    """

    chosen: Tensor
    evidence: Tensor
    support: Tensor
    queries: Tensor
    labels: Tensor
    wanted: Tensor
    ways: int
    fold: int


def draw_rows(task: EncodedTask, draw: torch.Generator, subset: float = 0.5) -> tuple[Part, int, Tensor]:
    """Support then queries of a task or, of a task of many classes, of some of its classes; rows of support; the classes `[N]`."""
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
    return Part(part.tokens, labels), ways * shots, classes


def read_episode(
    encoder: FastBert, bank: Bank, adapters: Tensor, task: EncodedTask, allowed: Tensor, draw: torch.Generator,
    names: Tensor | None,
) -> Episode:  # fmt: skip
    """An episode with its features under its candidates.

    Args:
        adapters: `[T, layers, 2, D, rank]`, of the bank's tasks, the default last.
        allowed: `[T]`, 0 for the task's own source.
        names: `[N, D]`, of the task's classes on the frozen body; None hides them.
    """
    part, count, classes = draw_rows(task, draw)
    ways = len(classes)
    support = part.take(torch.arange(count))
    frozen = hidden_features(encoder, support.tokens)["mean"]
    known = retrieval(bank, frozen, support.labels, ways, task.pairs, None if names is None else names[classes])
    chosen = candidates(bank, known.score, allowed, TRIED)
    features = torch.stack([hidden_features(encoder, part.tokens, adapters[i])["pooler"] for i in chosen])
    told = evidence(bank, chosen, features[:, :count], known, support.labels, ways)
    return Episode(
        chosen, told, features[:, :count], features[:, count:], support.labels, part.labels[count:], ways, task.fold
    )


def episode_loss(generator: AdapterGenerator, bank: Bank, episode: Episode, folds: Tensor, outer: int) -> tuple[Tensor, float]:
    """Cross entropy over log N of the weighed answers on the queries, and their accuracy.

    Args:
        folds: `[T]`, of the stored tasks; of those that are not of `outer` the first `CANDIDATES` are used, and the default.
    """
    allowed = (folds[episode.chosen] != outer).float()
    allowed[:-1] *= (allowed[:-1].cumsum(0) <= CANDIDATES).float()
    weights = torch.softmax(generator.denoiser.told(episode.evidence[None], allowed[None])[0], dim=0)
    mixed = torch.zeros(len(episode.wanted), episode.ways)
    for c in allowed.nonzero().flatten().tolist():
        rows = bank.own[bank.owner == episode.chosen[c]]
        head = generator.head(episode.support[c], episode.labels, episode.ways, rows, weights[c].expand(len(rows)))
        answers = F.linear(episode.queries[c], head[:, :-1], head[:, -1])
        mixed = mixed + weights[c] * torch.softmax(answers, dim=1)
    loss = F.nll_loss(mixed.clamp_min(1e-6).log(), episode.wanted) / torch.tensor(float(episode.ways)).log()
    return loss, float((mixed.argmax(1) == episode.wanted).float().mean())


def learn(
    generator: AdapterGenerator, bank: Bank, episodes: Sequence[Episode], folds: Tensor, outer: int, config: LearnConfig,
    log: Callable = print,
) -> None:  # fmt: skip
    """Train the generator in place on the episodes of the other folds."""
    draw = torch.Generator().manual_seed(config.seed)
    own = [episode for episode in episodes if episode.fold != outer]
    optimiser = torch.optim.Adam(generator.parameters(), lr=config.rate)
    began, losses, right = time.monotonic(), [], []
    for step in range(1, config.steps + 1):
        total = torch.zeros(())
        for i in torch.randperm(len(own), generator=draw)[: config.group]:
            loss, accuracy = episode_loss(generator, bank, own[i], folds, outer)
            total = total + loss / config.group
            right.append(accuracy)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        losses.append(total.item())
        if step % 25 == 0:
            log(
                f"generator: step {step}, loss {sum(losses[-25:]) / 25:.3f}, accuracy "
                f"{sum(right[-400:]) / len(right[-400:]):.3f}, {time.monotonic() - began:.0f} s"
            )
