"""Closed forms over frozen features: comparators, the base of the residual, and the fallback.

All take a batch of tasks of the same shape and return heads as `[B, N, D + 1]`: the weights of each
class and, last, its bias. Logits are `features @ weights.T + bias`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_ROWS = 4


def logits(head: Tensor, features: Tensor) -> Tensor:
    """Logits `[B, Q, N]` of features `[B, Q, D]` under heads `[B, N, D + 1]`."""
    return torch.baddbmm(head[..., -1].unsqueeze(-2), features, head[..., :-1].transpose(-1, -2))


def nearest_mean(means: Tensor) -> Tensor:
    """The head whose logits are minus squared distances to `means` `[B, N, D]`, up to a constant per query."""
    return torch.cat([2 * means, -means.square().sum(-1, keepdim=True)], dim=-1)


def nearest_mean_in_metric(means: Tensor, metric: Tensor) -> Tensor:
    """The head of linear discriminant analysis whose within-class precision is half of `metric` `[D, D]`.

    Twice the identity gives `nearest_mean`.
    """
    weights = rowwise_product(means, metric)
    return torch.cat([weights, -(means * weights).sum(-1, keepdim=True) / 2], dim=-1)


def rowwise_product(items: Tensor, matrix: Tensor) -> Tensor:
    """`items @ matrix` for `[..., D]`; a row has the same bytes in every batch (`DECISIONS.md`: four rows)."""
    rows = items.flatten(0, -2)
    missing = LEAST_ROWS - len(rows)
    filled = rows if missing <= 0 else torch.cat([rows, rows[:1].expand(missing, -1)])
    return (filled @ matrix)[: len(rows)].view(*items.shape[:-1], -1)


def class_means(support: Tensor) -> Tensor:
    """Nearest class mean (Snell et al., 2017).

    Args:
        support: `[B, N, K, D]`.
    """
    return nearest_mean(support.mean(-2))


def ridge(support: Tensor, strength: float) -> Tensor:
    """Ridge regression on one-hot targets with a bias that is not penalised.

    Args:
        support: `[B, N, K, D]`.
        strength: lambda, added to the Gram matrix of the centred features.
    """
    batch, ways, shots, size = support.shape
    targets = torch.eye(ways, dtype=support.dtype).repeat_interleave(shots, dim=0).expand(batch, -1, -1)
    return ridge_on(support.reshape(batch, ways * shots, size), targets, strength)


def ridge_on(
    features: Tensor, targets: Tensor, strength: float, *, bias: bool = True, kept: Tensor | None = None
) -> Tensor:
    """`ridge` for any number of examples of a class.

    Args:
        features: `[B, M, D]`.
        targets: `[B, M, N]`, one-hot.
        bias: without it the head goes through the origin, and its last column is 0.
        kept: `[B, M]`, 1 for the examples that count, else 0; all of them where absent.
    """
    rows = torch.ones_like(features[..., :1]) if kept is None else kept.unsqueeze(-1).to(features)
    middle, centre = _mean(targets, rows), _mean(features, rows) if bias else torch.zeros_like(features[..., :1, :])
    x, y = (features - centre) * rows, (targets - middle) * rows
    gram = x @ x.transpose(-1, -2) + strength * torch.eye(features.shape[-2], dtype=features.dtype)
    weights = torch.linalg.solve(gram, y).transpose(-1, -2) @ x
    shift = middle.transpose(-1, -2) - weights @ centre.transpose(-1, -2)
    return torch.cat([weights, shift if bias else torch.zeros_like(shift)], dim=-1)


def lda(support: Tensor, covariance: Tensor) -> Tensor:
    """Linear discriminant analysis with a within-class covariance known beforehand.

    Args:
        support: `[B, N, K, D]`.
        covariance: `[D, D]`, of base classes, already shrunk.
    """
    means = support.mean(-2)
    solved = torch.linalg.solve(covariance, means.reshape(-1, means.shape[-1]).T).T.reshape(means.shape)
    return torch.cat([solved, -(means * solved).sum(-1, keepdim=True) / 2], dim=-1)


def logistic_regression(support: Tensor, inverse_strength: float, iterations: int = 300) -> Tensor:
    """Multinomial logistic regression with an L2 penalty, by Nesterov's accelerated gradient with restarts.

    Minimises the summed cross entropy + |W|^2 / (2 inverse_strength), the bias free, as scikit-learn does.
    Features are centred first: the free bias makes that the same problem, much better conditioned where
    features have a large mean. Momentum restarts where it points uphill (O'Donoghue and Candes, 2015).

    Args:
        support: `[B, N, K, D]`.
        inverse_strength: C.
    """
    batch, ways, shots, size = support.shape
    target = torch.eye(ways, dtype=support.dtype).repeat_interleave(shots, dim=0)
    return logistic_regression_on(support.reshape(batch, ways * shots, size), target, inverse_strength, iterations)


def logistic_regression_on(
    features: Tensor, target: Tensor, inverse_strength: float, iterations: int = 300, *, bias: bool = True,
    kept: Tensor | None = None,
) -> Tensor:
    """`logistic_regression` for any number of examples of a class.

    Args:
        features: `[B, M, D]`.
        target: `[M, N]` or `[B, M, N]`, one-hot.
        bias: without it the head goes through the origin, and its last column is 0.
        kept: `[B, M]`, 1 for the examples that count, else 0; all of them where absent.
    """
    batch, _, size = features.shape
    ways = target.shape[-1]
    rows = torch.ones_like(features[..., :1]) if kept is None else kept.unsqueeze(-1).to(features)
    centre = _mean(features, rows) if bias else torch.zeros_like(features[..., :1, :])
    features = F.pad(features - centre, (0, 1), value=1.0 if bias else 0.0) * rows
    penalty = torch.full((size + 1,), 1 / inverse_strength, dtype=features.dtype)
    penalty[-1] = 0
    largest = torch.linalg.matrix_norm(features @ features.transpose(-1, -2), ord=2)
    rate = (1 / (largest / 2 + 1 / inverse_strength)).reshape(-1, 1, 1)
    head = torch.zeros(batch, ways, size + 1, dtype=features.dtype)
    ahead, momentum = head, torch.ones_like(rate)
    for _ in range(iterations):
        error = torch.softmax(features @ ahead.transpose(-1, -2), dim=-1) - target
        moved = ahead - rate * (error.transpose(-1, -2) @ features + penalty * ahead)
        uphill = ((ahead - moved) * (moved - head)).sum((-2, -1), keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / following * (moved - head)
        head, momentum = moved, following
    weights, shift = head[..., :-1], head[..., -1:]
    return torch.cat([weights, shift - weights @ centre.transpose(-1, -2)], dim=-1)


def _mean(items: Tensor, rows: Tensor) -> Tensor:
    """Mean `[B, 1, D]` of the items `[B, M, D]` whose row `[B, M, 1]` is 1."""
    return (items * rows).sum(-2, keepdim=True) / rows.sum(-2, keepdim=True)


NORMALISERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda features, mean: features,
    "l2": lambda features, mean: F.normalize(features, dim=-1),
    "center_l2": lambda features, mean: F.normalize(features - mean, dim=-1),
}
