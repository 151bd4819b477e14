"""The task embedding: a token per class, made from its support features."""

from __future__ import annotations

import torch
from torch import Tensor


class ClassStatistics:
    """Per-class statistics of the support sets of a batch of tasks of equal ways.

    Args:
        features: `[M, D]`, the examples of all tasks, those of a class together.
        class_index: `[M]`, integer, ascending: b N + n for class n of task b.
        batch, ways: B and N.
    """

    def __init__(self, features: Tensor, class_index: Tensor, batch: int, ways: int) -> None:
        counts = torch.bincount(class_index, minlength=batch * ways)
        at_least_one = counts.clamp_min(1).to(features).unsqueeze(1)
        if len(features) == batch * ways and len(counts) == len(features) and bool((counts == 1).all()):
            means, squares = features + 0.0, torch.zeros_like(features)  # as below, where -0.0 becomes 0.0
        else:
            zeros = features.new_zeros(batch * ways, features.shape[1])
            means = zeros.index_add(0, class_index, features) / at_least_one
            deviation = features - means[class_index]
            squares = zeros.index_add(0, class_index, deviation.square()) / at_least_one
        self.counts = counts.reshape(batch, ways)
        self.means = means.reshape(batch, ways, -1)
        self.variances = squares.reshape(batch, ways, -1)


TOKEN_EXTRAS = 3


def token_size(feature_size: int) -> int:
    """C for features of size D."""
    return 2 * feature_size + TOKEN_EXTRAS


def embed_task(statistics: ClassStatistics, centre: Tensor, scale: Tensor) -> Tensor:
    """A token per class: its mean and spread in units of the base classes, and how many examples it has.

    Args:
        statistics: of the support features.
        centre, scale: `[D]`, mean and standard deviation of features over the base classes.

    Returns:
        `[B, N, 2 D + 3]`: standardised mean, spread (0 for one example), 1 / count, log(count) / 3, and a
        flag for a description, 0 where there is none.
    """
    counts = statistics.counts.clamp_min(1).to(centre).unsqueeze(-1)
    return torch.cat(
        [
            (statistics.means - centre) / scale,
            statistics.variances.clamp_min(1e-12).sqrt() / scale,
            1 / counts,
            counts.log() / 3,
            torch.zeros_like(counts),
        ],
        dim=-1,
    )
