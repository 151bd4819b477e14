"""REPTILE (Nichol et al., 2018) with Adam in both loops, as Lt-Di's Algorithm 2 uses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TaskLoss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class ReptileStep:
    """What one outer step saw.

    Args:
        first_loss: mean over inner loops of the loss at phi.
        last_loss: mean over inner loops of the loss that the last inner step started from.
        moved: length of the mean of phi_i - phi.
    """

    first_loss: float
    last_loss: float
    moved: float

    @property
    def finite(self) -> bool:
        """Whether all of it is a number."""
        return all(math.isfinite(value) for value in (self.first_loss, self.last_loss, self.moved))


def inner_loop(learner: nn.Module, loss: TaskLoss, steps: int, lr: float) -> tuple[float, float]:
    """K Adam steps of `learner` on one task (or one batch of tasks), in place; the first and the last loss.

    Adam starts without memory.
    """
    optimizer, losses = torch.optim.Adam(learner.parameters(), lr=lr), []
    for _ in range(steps):
        value = loss(learner)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses[0], losses[-1]


def reptile_step(
    model: nn.Module,
    learner: nn.Module,
    outer: torch.optim.Optimizer,
    losses: Iterable[TaskLoss],
    *,
    inner_steps: int,
    inner_lr: float,
) -> ReptileStep:
    """One outer step: phi moves by `outer`, whose gradient is the mean of phi - phi_i.

    With `outer` plain SGD of rate zeta this is phi + zeta / n sum_i (phi_i - phi).

    Args:
        model: holds phi.
        learner: of the same architecture, is overwritten.
        outer: over `model`'s parameters, in their order.
        losses: one inner loop for each; its loss is called `inner_steps` times. A loss may be that of one
            task, or of a batch of tasks that share an inner loop.

    Returns:
        The losses, and how far phi_i went. Where any is not finite, phi stays.
    """
    parameters = list(model.parameters())
    apart = [torch.zeros_like(parameter) for parameter in parameters]
    seen = []
    for loss in losses:
        learner.load_state_dict(model.state_dict())
        seen.append(inner_loop(learner, loss, inner_steps, inner_lr))
        with torch.no_grad():
            for total, phi, phi_i in zip(apart, parameters, learner.parameters(), strict=True):
                total += phi - phi_i
    for parameter, total in zip(parameters, apart, strict=True):
        parameter.grad = total / len(seen)
    moved = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in parameters))
    first, last = (sum(values) / len(seen) for values in zip(*seen, strict=True))
    result = ReptileStep(first, last, moved)
    if result.finite:
        outer.step()
    return result
