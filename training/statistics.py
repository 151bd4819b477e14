"""Class statistics of tasks in a batch, as training and evaluation hold them."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.embedding import ClassStatistics


def statistics_of_episodes(support: Tensor, views: Tensor | None = None) -> ClassStatistics:
    """Class statistics of examples `[B, N, K, D]` and, where there are any, their views `[B, N, K, 2, D]`."""
    batch, ways, shots, size = support.shape
    index = torch.arange(batch * ways).repeat_interleave(shots)
    views = None if views is None else views.reshape(-1, 2, size)
    return ClassStatistics(support.reshape(-1, size), index, batch, ways, views)
