"""Gradient steps from generated weights, for who has a second more."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_STEPS = 1000
PULL = 0.1  # back to the generated weights, beside the summed cross entropy


def refine(weights: Tensor, features: Tensor, class_index: Tensor, steps: int) -> Tensor:
    """A head after `steps` steps down the cross entropy of the examples, held by a quadratic pull to where it began.

    Each step solves the quadratic that Böhning (1992) puts above that loss, so none of them goes uphill.

    Args:
        weights: `[N, D + 1]`, the generated head.
        features: `[M, D]`, as the head's first layer sees them.
        class_index: `[M]`.
    """
    if not steps or not len(features):
        return weights
    inputs = F.pad(features, (0, 1), value=1.0)
    targets = F.one_hot(class_index, len(weights)).to(inputs)
    solve = torch.linalg.inv(0.5 * inputs.T @ inputs + PULL * torch.eye(inputs.shape[1]).to(inputs))
    refined = weights
    for _ in range(steps):
        error = torch.softmax(inputs @ refined.T, dim=1) - targets
        refined = refined - (error.T @ inputs + PULL * (refined - weights)) @ solve
    return refined
