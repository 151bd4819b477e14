"""Closed forms for tasks whose classes are known from other domains: what a generated head has to beat.

Three kinds: a head fitted on the training domains alone, the usual closed forms on the task's examples alone
(`training.comparators`), and mixtures of both. Each may correct the shift of domain for nothing: examples and queries
less the task's mean, the classes' means less those of their domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ltdi import baselines
from training.comparators import BaseStatistics, Comparator, shrunk_metric
from training.domains.episodes import KnownEpisodes, Problem, known_means, shown, task_centre
from training.domains.logistic import fit_logistic
from training.domains.modes import centred, common, fitted

FITTED_MODES = {"length": 0.12, "domains": 0.5}  # standard deviations


class Rivals:
    """A problem as closed forms see it, each of their heads and metrics made once."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.known = problem, problem.known
        self.base = BaseStatistics(problem.known.means.mean((0, 1)), problem.known.within)
        self._heads: dict[tuple, Tensor] = {}
        self._metrics: dict[tuple, Tensor] = {}

    def head(self, inverse: float, correct: bool) -> Tensor:
        """The logistic regression of all classes on the training domains' images, `[classes, D + 1]`; each domain less its mean where `correct`."""
        if (inverse, correct) not in self._heads:
            images, means = self.known.images, self.known.means
            images = images - means.mean(1)[:, None, None] if correct else images
            features = images.transpose(0, 1).flatten(1, 2)
            each = torch.ones(features.shape[1])
            self._heads[inverse, correct] = fit_logistic(features.unsqueeze(0), each, inverse, torch.zeros(1), 300)[0]
        return self._heads[inverse, correct]

    def metric(self, across: bool, shrink: float) -> Tensor:
        """LDA's, `[D, D]`, with what differs between domains or without."""
        if (across, shrink) not in self._metrics:
            covariance = self.known.across if across else self.known.within
            self._metrics[across, shrink] = shrunk_metric(covariance, shrink)
        return self._metrics[across, shrink]

    @cached_property
    def modes(self) -> Tensor:
        """The length of the known means, and how each domain's differ from all domains': `[R, classes, D]`."""
        own = common(self.known)
        apart = centred(self.known.means) - own
        return torch.cat([FITTED_MODES["length"] * own.unsqueeze(0), FITTED_MODES["domains"] * apart])

    @cached_property
    def weighed(self) -> Tensor:
        """The same times the precision of an example about its class's mean."""
        return self.modes @ shrunk_metric(self.known.within, 0.7) / (2 * self.known.within.diagonal().mean())


Logits = Callable[[KnownEpisodes, Rivals], Tensor]


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


def of_examples(comparator: Comparator) -> Logits:
    """A usual closed form on the task's examples alone."""
    return lambda episodes, rivals: comparator.logits(episodes, rivals.base)


def zero_shot(head: Callable[[Rivals], Tensor], share: float | None) -> Logits:
    """The rows of a head of all classes `[classes, D + 1]`; queries less the mean of the examples where `share` (of views) is given."""

    def logits(episodes: KnownEpisodes, rivals: Rivals) -> Tensor:
        queries = episodes.queries
        if share is not None:
            queries = queries - task_centre(shown(episodes, share))
        return baselines.logits(head(rivals)[episodes.classes], queries)

    return logits


def moved_means(weight: float, metric: tuple[bool, float] | None, share: float, correct: bool = True, fit: bool = False) -> Logits:
    """Class means moved towards the known ones by `weight`, nearest of them in a metric (LDA, as `Rivals.metric`) or in L2.

    Without `correct` nothing is centred. With `fit` the known means are first scaled, and their domains weighed, as the
    examples say (`training.domains.modes.fitted`).
    """

    def logits(episodes: KnownEpisodes, rivals: Rivals) -> Tensor:
        known, examples = rivals.known, shown(episodes, share)
        centre = task_centre(examples) if correct else 0.0
        here = examples.mean(2) - centre
        there = known_means(episodes, known) if correct else known.means[:, episodes.classes].mean(0)
        if fit:
            modes, weighed = (own[:, episodes.classes].transpose(0, 1) for own in (rivals.modes, rivals.weighed))
            there = fitted(there, here, modes, weighed, examples.shape[2])
        means = torch.lerp(here, there, weight)
        if metric is None:
            head = baselines.nearest_mean(means)
        else:
            head = baselines.nearest_mean_in_metric(means, rivals.metric(*metric))
        return baselines.logits(head, episodes.queries - centre)

    return logits


def together(count: int, weight: float, inverse: float, share: float) -> Logits:
    """One logistic regression on the examples, each counted `weight` times, and `count` images of each class in each domain."""

    def logits(episodes: KnownEpisodes, rivals: Rivals) -> Tensor:
        known, examples = rivals.known, shown(episodes, share)
        centre, shots = task_centre(examples), examples.shape[2]
        images = known.images[:, :, :count]
        there = images[:, episodes.classes] - known.means[:, episodes.classes].mean(2)[:, :, None, None]
        there = there.permute(1, 2, 0, 3, 4).flatten(2, 3)
        features = torch.cat([examples - centre.unsqueeze(2), there], dim=2)
        each = torch.cat([torch.full((shots,), weight), torch.ones(there.shape[2])])
        return baselines.logits(fit_logistic(features, each, inverse, torch.zeros(1), 40), episodes.queries - centre)

    return logits


def pulled(head: Callable[[Rivals], Tensor], inverse: float, share: float) -> Logits:
    """Logistic regression on the examples, penalised for its distance from a head of all classes `[classes, D + 1]`."""

    def logits(episodes: KnownEpisodes, rivals: Rivals) -> Tensor:
        examples = shown(episodes, share)
        centre, each = task_centre(examples), torch.ones(examples.shape[2])
        found = fit_logistic(examples - centre.unsqueeze(2), each, inverse, head(rivals)[episodes.classes], 50)
        return baselines.logits(found, episodes.queries - centre)

    return logits


def summed(one: Logits, other: Logits, weight: float) -> Logits:
    """The first's scores times `weight`, plus the other's, each brought to a standard deviation of 1 over the task's queries."""

    def level(scores: Tensor) -> Tensor:
        scores = scores - scores.mean(-1, keepdim=True)
        return scores / scores.std((-2, -1), keepdim=True).clamp_min(1e-6)

    return lambda episodes, rivals: weight * level(one(episodes, rivals)) + level(other(episodes, rivals))
