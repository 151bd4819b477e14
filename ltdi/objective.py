"""The trajectory loss of Lt-Di (Eq. 2) and the states that it is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.schedule import Schedule


@dataclass(frozen=True)
class TrainingState:
    """A noised waypoint, and what the denoiser should answer there.

    Args:
        x: `[B, ...]`, sqrt(alpha_bar_t^k) x_k + sqrt(1 - alpha_bar_t^k) noise.
        t: `[B]`, integer steps, 1..T.
        waypoint: `[B, ...]`, x_k itself.
        noise: `[B, ...]`, standard normal.
    """

    x: Tensor
    t: Tensor
    waypoint: Tensor
    noise: Tensor


def training_state(schedule: Schedule, trajectory: Tensor, t: Tensor, noise: Tensor) -> TrainingState:
    """Noise the waypoint that step t imitates up to step t.

    Args:
        trajectory: `[B, m + 1, ...]`, waypoints theta_0 (final weights) to theta_m (start), standardised.
        t: `[B]`, integer, 1..T.
        noise: `[B, ...]`, standard normal.
    """
    segment = schedule.segment_of_step[t.cpu()].to(t.device)
    waypoint = trajectory[torch.arange(len(t), device=t.device), segment]
    kept = _like(schedule.alpha_bar_from(schedule.start_of_step[t.cpu()], t.cpu()), waypoint)
    return TrainingState(kept.sqrt() * waypoint + (1 - kept).sqrt() * noise, t, waypoint, noise)


def trajectory_loss(
    schedule: Schedule, state: TrainingState, predicted: Tensor, segment_weights: Tensor | None = None
) -> Tensor:
    """|| sqrt(1 - alpha_bar_t^k) eps_phi - sqrt(1 - alpha_bar_t) eps ||^2, the mean over t and weights.

    With m = 1 it is DDPM's loss times 1 - alpha_bar_t (Lt-Di, Eq. 2).

    Args:
        predicted: `[B, ...]`, the denoiser's eps_phi at `state`.
        segment_weights: `[m]`, gamma_i; ones where absent.

    Returns:
        Scalar.
    """
    t = state.t.cpu()
    left = 1 - schedule.alpha_bar_from(schedule.start_of_step[t], t)
    error = _like(left.sqrt(), predicted) * predicted
    error = error - _like((1 - schedule.alpha_bar[t]).sqrt(), predicted) * state.noise
    per_state = error.square().flatten(1).mean(1)
    if segment_weights is not None:
        per_state = per_state * segment_weights.to(per_state)[schedule.segment_of_step[t]]
    return per_state.mean()


def _like(values: Tensor, other: Tensor) -> Tensor:
    """`[B]` float64 to `other`'s type and device, with trailing axes to broadcast."""
    return values.to(other).reshape(-1, *[1] * (other.ndim - 1))
