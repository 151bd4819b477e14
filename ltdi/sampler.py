"""The deterministic sampler of Lt-Di (Eq. 1): from noise to weights in T steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ltdi.schedule import Schedule

Denoise = Callable[[Tensor, int], Tensor]
Observer = Callable[[int, Tensor], None]


def sample(denoise: Denoise, x: Tensor, schedule: Schedule, observer: Observer | None = None) -> Tensor:
    """Run the whole chain x_T .. x_0, no noise added.

    x_{t-1} = x_t / sqrt(alpha_t) - (1 - alpha_t) / (sqrt(1 - alpha_bar_t) sqrt(alpha_t)) eps_phi(x_t, t).

    Args:
        denoise: eps_phi with its condition bound, `(x_t [B, ...], t) -> [B, ...]`.
        x: x_T, `[B, ...]`, standard normal.
        observer: called with t - 1 and x_{t-1} after each step.

    Returns:
        x_0, `[B, ...]`.
    """
    for t in range(schedule.steps, 0, -1):
        x = step(denoise, x, t, schedule)
        if observer is not None:
            observer(t - 1, x)
    return x


def step(denoise: Denoise, x: Tensor, t: int, schedule: Schedule) -> Tensor:
    """One step of Eq. 1: x_{t-1} from x_t."""
    from_x, from_noise = schedule.step_factors[t]
    return (x * from_x).sub_(denoise(x, t), alpha=from_noise)
