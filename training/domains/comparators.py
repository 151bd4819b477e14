"""Closed forms for tasks whose classes are known from other domains: what a generated head has to beat.

Three kinds: a head fitted on the training domains alone, the usual closed forms on the task's examples alone
(`training.comparators`), and mixtures of both. Each may correct the shift of domain for nothing: examples and queries
less the task's mean, the classes' means less those of their domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi import baselines
from training.comparators import BaseStatistics, comparators, comparators_with_views, shrunk_metric
from training.domains.episodes import Known, KnownEpisodes

Logits = Callable[[KnownEpisodes, Known], Tensor]
WEIGHTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
SHARES = (0.0, 0.5)
ITERATIONS = 150


@dataclass(frozen=True)
class KnownForm:
    """One closed form with one setting.

    Args:
        family, setting: as in tables.
        logits: `[B, N Q, N]` of tasks.
    """

    family: str
    setting: str
    logits: Logits

    @property
    def name(self) -> str:
        """Family and setting."""
        return f"{self.family} ({self.setting})" if self.setting else self.family


def shown(episodes: KnownEpisodes, share: float) -> Tensor:
    """The examples `[B, N, K, D]`, moved to the mean of their views by `share`."""
    if not share or episodes.views is None:
        return episodes.support
    return torch.lerp(episodes.support, episodes.views[..., 0, :], share)


def task_centre(examples: Tensor) -> Tensor:
    """The mean of the class means of `[B, N, K, D]`: `[B, 1, D]`."""
    return examples.mean(2).mean(1, keepdim=True)


def known_means(episodes: KnownEpisodes, known: Known) -> Tensor:
    """Means over domains of the task's classes, each domain less its mean over those classes: `[B, N, D]`."""
    own = known.means[:, episodes.classes]
    return (own - own.mean(2, keepdim=True)).mean(0)


def zero_shot(head: Tensor, share: float | None) -> Logits:
    """The rows of a head of all classes `[classes, D + 1]`; queries less the mean of the examples where `share` (of views) is given."""

    def logits(episodes: KnownEpisodes, known: Known) -> Tensor:
        queries = episodes.queries
        if share is not None:
            queries = queries - task_centre(shown(episodes, share))
        return baselines.logits(head[episodes.classes], queries)

    return logits


def moved_means(weight: float, metric: Tensor | None, share: float, correct: bool = True) -> Logits:
    """Class means moved towards the known ones by `weight`, nearest of them in a metric (`[D, D]`; LDA) or in L2.

    Without `correct` nothing is centred.
    """

    def logits(episodes: KnownEpisodes, known: Known) -> Tensor:
        examples = shown(episodes, share)
        centre = task_centre(examples) if correct else 0.0
        towards = known_means(episodes, known) if correct else known.means[:, episodes.classes].mean(0)
        means = torch.lerp(examples.mean(2) - centre, towards, weight)
        head = baselines.nearest_mean(means) if metric is None else baselines.nearest_mean_in_metric(means, metric)
        return baselines.logits(head, episodes.queries - centre)

    return logits


def together(count: int, weight: float, inverse: float, share: float) -> Logits:
    """One logistic regression on the examples, each counted `weight` times, and `count` images of each class in each domain."""

    def logits(episodes: KnownEpisodes, known: Known) -> Tensor:
        examples = shown(episodes, share)
        centre = task_centre(examples)
        ways, shots = examples.shape[1:3]
        images = known.images[:, :, :count]
        there = images[:, episodes.classes] - known.means[:, episodes.classes].mean(2)[:, :, None, None]
        there = there.permute(1, 2, 0, 3, 4).flatten(2, 3)
        features = torch.cat([examples - centre.unsqueeze(2), there], dim=2)
        each = torch.cat([torch.full((shots,), weight), torch.ones(there.shape[2])])
        head = fit_logistic(features, each, inverse, torch.zeros(1))
        return baselines.logits(head, episodes.queries - centre)

    return logits


def pulled(head: Tensor, scale: float, inverse: float, share: float, iterations: int = ITERATIONS) -> Logits:
    """Logistic regression on the examples, penalised for its distance from a head of all classes `[classes, D + 1]` times `scale`."""

    def logits(episodes: KnownEpisodes, known: Known) -> Tensor:
        examples = shown(episodes, share)
        centre = task_centre(examples)
        each = torch.ones(examples.shape[2])
        found = fit_logistic(examples - centre.unsqueeze(2), each, inverse, scale * head[episodes.classes], iterations)
        return baselines.logits(found, episodes.queries - centre)

    return logits


def summed(one: Logits, other: Logits, weight: float) -> Logits:
    """The first's scores times `weight`, plus the other's, each brought to a standard deviation of 1 over the task's queries."""

    def level(scores: Tensor) -> Tensor:
        scores = scores - scores.mean(-1, keepdim=True)
        return scores / scores.std((-2, -1), keepdim=True).clamp_min(1e-6)

    return lambda episodes, known: weight * level(one(episodes, known)) + level(other(episodes, known))


def fit_logistic(features: Tensor, each: Tensor, inverse: float, start: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Multinomial logistic regression whose penalty is the distance from `start`, by accelerated gradient with restarts.

    Args:
        features: `[B, N, M, D]`, by class.
        each: `[M]`, how much an item of a class counts.
        inverse: C, the inverse of the penalty; the bias is free.
        start: `[B, N, D + 1]`, or anything that spreads to it.

    Returns:
        `[B, N, D + 1]`.
    """
    batch, ways, items, size = features.shape
    x = F.pad(features.flatten(1, 2), (0, 1), value=1.0)
    target = torch.eye(ways).repeat_interleave(items, dim=0)
    weight = each.repeat(ways)[:, None]
    penalty = torch.full((size + 1,), 1 / inverse)
    penalty[-1] = 0
    start = start.expand(batch, ways, size + 1)
    weighted = x * weight.sqrt()
    small = weighted.transpose(1, 2) @ weighted if x.shape[1] > size else weighted @ weighted.transpose(1, 2)
    rate = (1 / (torch.linalg.matrix_norm(small, ord=2) / 2 + 1 / inverse)).reshape(-1, 1, 1)
    head, ahead, momentum = start, start, torch.ones_like(rate)
    for _ in range(iterations):
        error = (torch.softmax(x @ ahead.transpose(1, 2), dim=-1) - target) * weight
        moved = ahead - rate * (error.transpose(1, 2) @ x + penalty * (ahead - start))
        uphill = ((ahead - moved) * (moved - head)).sum((-2, -1), keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / following * (moved - head)
        head, momentum = moved, following
    return head


def known_heads(known: Known, inverse: float, correct: bool, iterations: int = 1000) -> Tensor:
    """The logistic regression of all classes on the training domains' images, `[classes, D + 1]`; each domain less its mean where `correct`."""
    images = known.images - known.means.mean(1)[:, None, None] if correct else known.images
    features = images.transpose(0, 1).flatten(1, 2)
    return fit_logistic(features.unsqueeze(0), torch.ones(features.shape[1]), inverse, torch.zeros(1), iterations)[0]
