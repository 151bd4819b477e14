"""Sharpness-aware minimisation (Foret et al., 2021), for a batch of tasks at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


def sam_gradient(loss: Loss, weights: Tensor, radius: float) -> Tensor:
    """The gradient at the worst point nearby: at `weights + rho g / |g|`, g the gradient at `weights`.

    Each task has a perturbation of its own (Lt-Di, Algorithm 1, lines 3 and 4). Where g is 0 there is none.

    Args:
        loss: weights `[B, ...]` to the loss of each task, `[B]`; no task's loss depends on another's weights.
        weights: `[B, ...]`.
        radius: rho, in the units of `weights`; 0 gives the plain gradient.

    Returns:
        Of the shape of `weights`.
    """
    gradient = _gradient(loss, weights)
    if radius == 0:
        return gradient
    norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1e-30)
    return _gradient(loss, weights + gradient * (radius / norm).reshape(-1, *[1] * (weights.ndim - 1)))


def _gradient(loss: Loss, weights: Tensor) -> Tensor:
    leaf = weights.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(loss(leaf).sum(), leaf)[0]
