"""alpha, its products, and where waypoints sit."""

from __future__ import annotations

import pytest
import torch

from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule, ScheduleConfig


def test_three_segments_of_twenty_steps_meet_at_0_7_13_20() -> None:
    assert [Schedule().waypoint_step(i) for i in range(4)] == [0, 7, 13, 20]


@pytest.mark.parametrize(("steps", "segments"), [(1, 1), (7, 7), (20, 1), (20, 3), (20, 6), (20, 20), (50, 7), (11, 4)])
def test_segments_partition_the_steps(steps: int, segments: int) -> None:
    schedule = Schedule(ScheduleConfig(steps=steps, segments=segments))
    covered = [
        range(schedule.waypoint_step(i) + 1, schedule.waypoint_step(i + 1) + 1) for i in range(schedule.segments)
    ]
    assert [t for part in covered for t in part] == list(range(1, steps + 1))
    assert all(len(part) > 0 for part in covered)
    for i, part in enumerate(covered):
        assert all(schedule.segment_of_step[t] == i for t in part)
        assert all(schedule.start_of_step[t] == schedule.waypoint_step(i) for t in part)


def test_what_is_left_over_the_cosine_segments_is_0_72_0_37_0_00() -> None:
    left = Schedule().alpha_bar_from(torch.tensor([0, 7, 13]), torch.tensor([7, 13, 20]))
    assert [round(float(value), 2) for value in left] == [0.72, 0.37, 0.0]


def test_alpha_bar_from_is_the_product_of_alpha_over_the_steps_between() -> None:
    schedule = Schedule(ScheduleConfig(shape="linear"))
    torch.testing.assert_close(schedule.alpha_bar_from(7, 12), schedule.alpha[8:13].prod(), rtol=1e-14, atol=0)
    assert schedule.alpha_bar_from(9, 9) == 1
    assert torch.equal(schedule.alpha_bar_from(0, torch.arange(21)), schedule.alpha_bar)


@pytest.mark.parametrize(("k", "t"), [(-1, 3), (4, 3), (0, 21)])
def test_steps_outside_the_chain_are_refused(k: int, t: int) -> None:
    with pytest.raises(ValueError, match="0 <= k <= t <= 20"):
        Schedule().alpha_bar_from(k, t)


@pytest.mark.parametrize("i", [-1, 4])
def test_waypoints_outside_the_trajectory_are_refused(i: int) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        Schedule().waypoint_step(i)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segments": 0}, "segments is 0"),
        ({"segments": 21}, "segments is 21"),
        ({"shape": "square"}, "known: cosine, linear"),
        ({"beta_first": 0.6}, "beta_first <= beta_last"),
        ({"beta_last": float("nan")}, "beta_first <= beta_last"),
    ],
)
def test_impossible_schedules_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        ScheduleConfig(**values)
