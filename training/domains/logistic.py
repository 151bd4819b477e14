"""Logistic regression that starts from, and is pulled back to, a head that is given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_logistic(features: Tensor, each: Tensor, inverse: float, start: Tensor, iterations: int = 150) -> Tensor:
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
