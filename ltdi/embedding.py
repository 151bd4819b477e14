"""The task embedding: a token per class, made from its support features."""

from __future__ import annotations

import copy

import torch
from torch import Tensor


class ClassStatistics:
    """Per-class statistics of the support sets of a batch of tasks of equal ways.

    Args:
        features: `[M, D]`, the examples of all tasks, those of a class together.
        class_index: `[M]`, integer, ascending: b N + n for class n of task b.
        batch, ways: B and N.
        views: `[M, 2, D]`, mean and spread of each example's views, where it has any.
    """

    def __init__(
        self, features: Tensor, class_index: Tensor, batch: int, ways: int, views: Tensor | None = None
    ) -> None:
        self._index = class_index
        counts = torch.bincount(class_index, minlength=batch * ways)
        self._divisor = counts.clamp_min(1).to(features).unsqueeze(1)
        self._one_each = len(features) == batch * ways and len(counts) == len(features) and bool((counts == 1).all())
        means = self._mean(features)
        self.counts = counts.reshape(batch, ways)
        self.means = means.reshape(batch, ways, -1)
        deviation = torch.zeros_like(features) if self._one_each else features - means[class_index]
        self.variances = self._mean(deviation.square()).reshape(batch, ways, -1)
        self.view_means = self.view_spreads = None
        if views is not None:
            self.view_means, self.view_spreads = (
                self._mean(part).reshape(batch, ways, -1) for part in views.unbind(1)
            )

    def with_pool(self, pool: Tensor, answers: Tensor, weight: Tensor, worth: Tensor) -> ClassStatistics:
        """The same with pool items among the examples.

        Args:
            pool: `[B, U, D]`, without views.
            answers: `[B, U, N]`, how much of each item belongs to each class.
            weight: `[B]`, of an item in the means, beside an example.
            worth: `[B]`, how many examples it is counted as.
        """
        items = answers.sum(1)
        share = self.counts / (self.counts + weight.unsqueeze(1) * items)  # of the examples in the means
        found = (answers.transpose(1, 2) @ pool) / items.clamp_min(1e-9).unsqueeze(-1)
        moved = copy.copy(self)
        moved.means = torch.lerp(found, self.means, share.unsqueeze(-1))
        if self.view_means is not None:
            moved.view_means = moved.means + share.unsqueeze(-1) * (self.view_means - self.means)
        moved.counts = self.counts + worth.unsqueeze(1) * items
        return moved

    def _mean(self, items: Tensor) -> Tensor:
        """Means over the examples of each class, `[B N, ...]`; the same bytes whatever shares the batch."""
        if self._one_each:
            return items + 0.0  # as below, where -0.0 becomes 0.0
        zeros = items.new_zeros(len(self._divisor), *items.shape[1:])
        return zeros.index_add(0, self._index, items) / self._divisor


TOKEN_EXTRAS = 3


def token_size(feature_size: int, views: bool = False) -> int:
    """C for features of size D."""
    return (4 if views else 2) * feature_size + TOKEN_EXTRAS + views


def embed_task(statistics: ClassStatistics, centre: Tensor, scale: Tensor, views: bool = False) -> Tensor:
    """A token per class: its mean and spread in units of the base classes, and how many examples it has.

    Args:
        statistics: of the support features.
        centre, scale: `[D]`, mean and standard deviation of features over the base classes.
        views: whether tokens have room for views.

    Returns:
        `[B, N, 2 D + 3]`: standardised mean, spread (0 for one example), 1 / count, log(count) / 3, and a
        flag for a description, 0 where there is none. With `views` `[B, N, 4 D + 4]`: then, all 0 where the task
        has no views, a flag for them, how far their mean is from the examples', and their spread.
    """
    counts = statistics.counts.clamp_min(1).to(centre).unsqueeze(-1)
    parts = [
        (statistics.means - centre) / scale,
        statistics.variances.clamp_min(1e-12).sqrt() / scale,
        1 / counts,
        counts.log() / 3,
        torch.zeros_like(counts),
    ]
    if views:
        parts += _view_parts(statistics, scale)
    return torch.cat(parts, dim=-1)


def _view_parts(statistics: ClassStatistics, scale: Tensor) -> list[Tensor]:
    batch, ways, size = statistics.means.shape
    if statistics.view_means is None:
        return [statistics.means.new_zeros(batch, ways, 2 * size + 1)]
    offset = statistics.view_means - statistics.means
    return [offset.new_ones(batch, ways, 1), offset / scale, statistics.view_spreads / scale]
