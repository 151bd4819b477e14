"""Eq. 1, and Theorem 1: with the oracle noise the chain lands on every waypoint."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ltdi.sampler import sample, step
from ltdi.schedule import Schedule, ScheduleConfig


def oracle(schedule: Schedule, trajectory: Tensor):
    """The minimiser of Eq. 2 that knows every waypoint, written out from the paper's symbols."""

    def denoise(x: Tensor, t: int) -> Tensor:
        i = int(schedule.segment_of_step[t])
        kept, bar = schedule.alpha_bar_from(schedule.waypoint_step(i), t), schedule.alpha_bar[t]
        noise = (x - kept.sqrt() * trajectory[i]) / (1 - kept).sqrt()
        return (1 - bar).sqrt() / (1 - kept).sqrt() * noise

    return denoise


def posterior_mean(schedule: Schedule, x: Tensor, waypoint: Tensor, k: int, t: int) -> Tensor:
    """Eq. 7: the mean of x_{t-1} given x_t and x_k."""
    alpha = schedule.alpha[t]
    now, before = schedule.alpha_bar_from(k, t), schedule.alpha_bar_from(k, t - 1)
    return (alpha.sqrt() * (1 - before) * x + before.sqrt() * (1 - alpha) * waypoint) / (1 - now)


chains = pytest.mark.parametrize("shape", ["cosine", "linear"])
segments = pytest.mark.parametrize("m", [1, 2, 3, 4, 5])


@chains
@segments
def test_with_the_oracle_noise_every_step_is_the_posterior_mean(shape: str, m: int) -> None:
    schedule = Schedule(ScheduleConfig(segments=m, shape=shape))
    trajectory = torch.randn(m + 1, 6, dtype=torch.float64)
    denoise = oracle(schedule, trajectory)
    for t in range(1, schedule.steps + 1):
        x = torch.randn(6, dtype=torch.float64)
        k, i = int(schedule.start_of_step[t]), int(schedule.segment_of_step[t])
        expected = posterior_mean(schedule, x, trajectory[i], k, t)
        torch.testing.assert_close(step(denoise, x, t, schedule), expected, rtol=0, atol=1e-12)


@chains
@segments
def test_with_the_oracle_noise_the_chain_lands_on_every_waypoint(shape: str, m: int) -> None:
    schedule = Schedule(ScheduleConfig(segments=m, shape=shape))
    trajectory = torch.randn(m + 1, 6, dtype=torch.float64)
    visited: dict[int, Tensor] = {}
    end = sample(oracle(schedule, trajectory), trajectory[m], schedule, visited.__setitem__)
    for i in range(m):
        landed = visited[schedule.waypoint_step(i)]
        torch.testing.assert_close(landed, trajectory[i], rtol=0, atol=1e-12)
    assert torch.equal(end, visited[0])


@chains
def test_the_stored_factors_are_the_oracle_s(shape: str) -> None:
    schedule = Schedule(ScheduleConfig(shape=shape))
    trajectory, x = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    for t in range(1, schedule.steps + 1):
        from_x, from_waypoint = schedule.waypoint_factors[t]
        answer = from_x * x - from_waypoint * trajectory[schedule.segment_of_step[t]]
        torch.testing.assert_close(answer, oracle(schedule, trajectory)(x, t), rtol=1e-12, atol=1e-12)


@chains
@segments
def test_the_posterior_factors_are_eq_7_and_0_just_above_a_waypoint(shape: str, m: int) -> None:
    schedule = Schedule(ScheduleConfig(shape=shape, segments=m))
    x, waypoint = torch.randn(2, 6, dtype=torch.float64)
    for t in range(1, schedule.steps + 1):
        keep, move = schedule.posterior_factors[t]
        k = int(schedule.start_of_step[t])
        expected = posterior_mean(schedule, x, waypoint, k, t)
        torch.testing.assert_close(keep * x + move * waypoint, expected, rtol=1e-12, atol=1e-12)
        assert (keep == 0) == (t == k + 1)


def test_the_observer_sees_x_after_every_step() -> None:
    schedule, seen = Schedule(), []
    end = sample(lambda x, t: x / 2, torch.ones(2, 3), schedule, lambda t, x: seen.append((t, x.clone())))
    assert [t for t, _ in seen] == list(range(19, -1, -1))
    assert torch.equal(seen[-1][1], end)
    for (_, x), (t, following) in pairwise(seen):
        assert torch.equal(step(lambda x, t: x / 2, x, t + 1, schedule), following)


def test_the_start_of_the_chain_is_left_as_it_was() -> None:
    start = torch.ones(2, 3)
    sample(lambda x, t: x, start, Schedule())
    assert torch.equal(start, torch.ones(2, 3))
