"""What costs nothing, with its settings: the closed forms that a generated head has to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi import baselines
from training.episodes import Episodes

SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)


@dataclass(frozen=True)
class BaseStatistics:
    """What the training classes tell every comparator.

    Args:
        mean: `[D]`, of features.
        within: `[D, D]`, covariance of features around their class means.
    """

    mean: Tensor
    within: Tensor

    @classmethod
    def of(cls, features: Tensor) -> BaseStatistics:
        """From features `[classes, drawings, D]`."""
        around = (features - features.mean(1, keepdim=True)).flatten(0, 1)
        return cls(features.mean((0, 1)), around.T @ around / (len(around) - len(features)))


def shrunk_metric(within: Tensor, shrink: float) -> Tensor:
    """Twice the inverse of a covariance `[D, D]` that is shrunk towards the sphere of its mean variance, in units of that.

    With it `baselines.nearest_mean_in_metric` is LDA; at a shrinkage of 1 it gives the class means.
    """
    spread = within.diagonal().mean()
    covariance = (1 - shrink) * within + shrink * spread * torch.eye(len(within))
    return 2 * spread * torch.linalg.inv(covariance.double()).float()


@dataclass(frozen=True)
class Comparator:
    """One closed form with one setting.

    Args:
        family: its name without the setting.
        setting: as written in tables.
        normalise: what is done to features first.
        head: `[B, N, K, D]` to `[B, N, D + 1]`.
        views: the share that the mean of its views has in each example; 0 does without.
    """

    family: str
    setting: str
    normalise: str
    head: Callable[[Tensor], Tensor]
    views: float = 0.0

    @property
    def name(self) -> str:
        """Family and setting."""
        return f"{self.family} ({self.setting})" if self.setting else self.family

    def logits(self, episodes: Episodes, base: BaseStatistics) -> Tensor:
        """`[B, N Q, N]`."""
        prepare = baselines.NORMALISERS[self.normalise]
        support = episodes.support
        if self.views:
            support = torch.lerp(support, episodes.views[..., 0, :], self.views)
        return baselines.logits(self.head(prepare(support, base.mean)), prepare(episodes.queries, base.mean))


def comparators(base: BaseStatistics) -> list[Comparator]:
    """Every closed form at every setting that validation may choose from."""
    found = [
        Comparator("class means, L2", "", "none", baselines.class_means),
        Comparator("class means, cosine", "", "l2", baselines.class_means),
        Comparator("class means, centred", "", "center_l2", baselines.class_means),
    ]
    for normalise in ("none", "l2"):
        for strength in (0.01, 0.1, 1.0, 10.0):
            found.append(Comparator("ridge", f"{normalise}, {strength:g}", normalise, _ridge(strength)))
        for inverse in (0.01, 0.1, 1.0, 10.0, 100.0):
            found.append(
                Comparator("logistic regression", f"{normalise}, C={inverse:g}", normalise, _logistic(inverse))
            )
    for shrink in (0.3, 0.5, 0.7, 0.9):
        found.append(Comparator("LDA", f"shrunk {shrink:g}", "none", _lda(base.within, shrink)))
    return found


def comparators_with_views(base: BaseStatistics) -> list[Comparator]:
    """The closed forms on examples averaged with their views; a user would have to make the views.

    Class means and LDA at several shares of the views, those that iterate or solve at one half.
    """
    return [
        replace(c, family=f"{c.family}, views", setting=", ".join(filter(None, [c.setting, f"share {share:g}"])), views=share)
        for c in comparators(base)
        for share in (SHARES if c.family.startswith(("class means", "LDA")) else (0.5,))
    ]


def _ridge(strength: float) -> Callable[[Tensor], Tensor]:
    return lambda support: baselines.ridge(support, strength)


def _logistic(inverse: float) -> Callable[[Tensor], Tensor]:
    return lambda support: baselines.logistic_regression(support, inverse, iterations=100)


def _lda(within: Tensor, shrink: float) -> Callable[[Tensor], Tensor]:
    sphere = torch.eye(len(within)) * within.diagonal().mean()
    covariance = (1 - shrink) * within + shrink * sphere
    return lambda support: baselines.lda(support, covariance)


def by_family(found: Iterable[Comparator]) -> dict[str, list[Comparator]]:
    """Comparators grouped by family, in order."""
    grouped: dict[str, list[Comparator]] = {}
    for comparator in found:
        grouped.setdefault(comparator.family, []).append(comparator)
    return grouped
