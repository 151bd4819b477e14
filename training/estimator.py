"""Fits the estimator of class means on the base classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdi.estimator import MeanEstimator


@torch.no_grad()
def fit_mean_estimator(bank: Tensor, views: bool, ridge: float) -> MeanEstimator:
    """Ridge regression from one example, each in turn, to the mean of the others of its class.

    Args:
        bank: `[classes, drawings, S, D]`, S = 3 where `views`.
        views: whether the mean of the example's views is seen too.
        ridge: penalty, in units of the mean variance of what is seen.
    """
    features = bank[:, :, 0]
    others = (features.sum(1, keepdim=True) - features) / (features.shape[1] - 1)
    seen = bank[:, :, :2].flatten(2) if views else features
    seen, way = seen.flatten(0, 1), (others - features).flatten(0, 1)
    centre, middle = seen.mean(0), way.mean(0)
    moments, products = _moments(seen - centre, way - middle)
    penalty = ridge * moments.diagonal().mean()
    solved = torch.linalg.solve(moments + penalty * torch.eye(len(moments), dtype=torch.float64), products).float()
    estimator = MeanEstimator(features.shape[-1], views)
    estimator.weight.copy_(solved.T)
    estimator.bias.copy_(middle - centre @ solved)
    return estimator


def _moments(seen: Tensor, way: Tensor, rows: int = 8192) -> tuple[Tensor, Tensor]:
    """`seen.T @ seen` and `seen.T @ way`, float64, a block of rows at a time."""
    pairs = [(a.double(), b.double()) for a, b in zip(seen.split(rows), way.split(rows), strict=True)]
    return sum(a.T @ a for a, _ in pairs), sum(a.T @ b for a, b in pairs)
