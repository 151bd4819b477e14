"""Eq. 2 against closed forms."""

from __future__ import annotations

import pytest
import torch

from ltdi.objective import training_state, trajectory_loss
from ltdi.schedule import Schedule, ScheduleConfig


def test_with_one_segment_the_loss_is_ddpm_s_times_one_minus_alpha_bar() -> None:
    schedule = Schedule(ScheduleConfig(segments=1))
    trajectory, noise, predicted = (torch.randn(*shape, dtype=torch.float64) for shape in [(1, 2, 7), (1, 7), (1, 7)])
    for t in range(1, 21):
        state = training_state(schedule, trajectory, torch.tensor([t]), noise)
        bar = schedule.alpha_bar[t]
        torch.testing.assert_close(state.x, bar.sqrt() * trajectory[:, 0] + (1 - bar).sqrt() * noise)
        ddpm = (predicted - noise).square().mean()
        torch.testing.assert_close(trajectory_loss(schedule, state, predicted), (1 - bar) * ddpm)


def test_each_step_noises_the_waypoint_of_its_segment() -> None:
    schedule = Schedule()
    trajectory, noise = torch.randn(20, 4, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    state = training_state(schedule, trajectory, torch.arange(1, 21), noise)
    for row, t in enumerate(range(1, 21)):
        i, k = (0, 0) if t <= 7 else (1, 7) if t <= 13 else (2, 13)
        kept = schedule.alpha[k + 1 : t + 1].prod()
        torch.testing.assert_close(state.x[row], kept.sqrt() * trajectory[row, i] + (1 - kept).sqrt() * noise[row])
        assert torch.equal(state.waypoint[row], trajectory[row, i])


def test_the_last_waypoint_enters_the_loss_nowhere() -> None:
    schedule, t = Schedule(), torch.arange(1, 21)
    trajectory, noise, predicted = torch.randn(20, 4, 3), torch.randn(20, 3), torch.randn(20, 3)
    first = trajectory_loss(schedule, training_state(schedule, trajectory, t, noise), predicted)
    trajectory[:, 3] = 1e9
    assert torch.equal(first, trajectory_loss(schedule, training_state(schedule, trajectory, t, noise), predicted))


def test_the_oracle_has_no_loss() -> None:
    schedule, t = Schedule(), torch.arange(1, 21)
    state = training_state(schedule, torch.randn(20, 4, 5, dtype=torch.float64), t, torch.randn(20, 5).double())
    kept = schedule.alpha_bar_from(schedule.start_of_step[t], t).sqrt().unsqueeze(1)
    best = schedule.noise_per_distance[t].unsqueeze(1) * (state.x - kept * state.waypoint)
    assert float(trajectory_loss(schedule, state, best)) < 1e-24


def test_segment_weights_weigh_their_own_segments() -> None:
    schedule = Schedule()
    trajectory, noise = torch.randn(3, 4, 5), torch.randn(3, 5)
    state = training_state(schedule, trajectory, torch.tensor([2, 9, 18]), noise)
    parts = [float(trajectory_loss(schedule, state, torch.zeros(3, 5), torch.eye(3)[i])) for i in range(3)]
    whole = trajectory_loss(schedule, state, torch.zeros(3, 5), torch.tensor([1.0, 2.0, 3.0]))
    assert float(whole) == pytest.approx(parts[0] + 2 * parts[1] + 3 * parts[2], rel=1e-5)
