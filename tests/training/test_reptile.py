import copy

import pytest
import torch
from torch import nn

from training.reptile import inner_loop, reptile_step


class Point(nn.Module):
    """phi itself."""

    def __init__(self, *values):
        super().__init__()
        self.phi = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def to(*optimum):
    target = torch.tensor(optimum, dtype=torch.float64)
    return lambda point: (point.phi - target).square().sum() / 2


def test_on_a_quadratic_family_it_converges_to_the_mean_of_the_optima():
    model, learner = Point(2.0, 0.5), Point(0.0, 0.0)
    losses = [to(0.0, 2.0), to(1.0, 1.0), to(2.0, 0.0)]
    outer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(80):
        outer.param_groups[0]["lr"] = 0.1 * (1 - step / 80)
        reptile_step(model, learner, outer, losses, inner_steps=5, inner_lr=0.05)
    torch.testing.assert_close(model.phi.data, torch.tensor([1.0, 1.0], dtype=torch.float64), atol=0.05, rtol=0)


def test_learners_that_reach_their_optima_average_to_the_mean_of_them():
    model, learner = Point(0.5, 0.5), Point(0.0, 0.0)
    losses = [to(0.0, 1.0), to(1.0, 0.0), to(2.0, 2.0)]
    outer = torch.optim.SGD(model.parameters(), lr=1.0)
    reptile_step(model, learner, outer, losses, inner_steps=300, inner_lr=0.03)
    torch.testing.assert_close(model.phi.data, torch.tensor([1.0, 1.0], dtype=torch.float64), atol=0.01, rtol=0)


def test_one_inner_step_of_adam_moves_by_its_rate_against_the_sign():
    model, learner = Point(0.0, 0.0), Point(9.0, 9.0)
    outer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = reptile_step(model, learner, outer, [to(4.0, -1.0), to(2.0, 3.0)], inner_steps=1, inner_lr=0.1)
    torch.testing.assert_close(model.phi.data, torch.tensor([0.1, 0.0], dtype=torch.float64), atol=1e-7, rtol=0)
    assert step.first_loss == step.last_loss == pytest.approx((17 + 13) / 4)
    assert step.moved == pytest.approx(0.1)


def test_with_plain_descent_outside_phi_moves_by_its_rate_towards_the_mean_learner():
    model, learner = Point(3.0), Point(0.0)
    ends = []
    for loss in (to(0.0), to(5.0)):
        alone = copy.deepcopy(model)
        inner_loop(alone, loss, 7, 0.1)
        ends.append(float(alone.phi.detach()))
    outer = torch.optim.SGD(model.parameters(), lr=0.25)
    reptile_step(model, learner, outer, [to(0.0), to(5.0)], inner_steps=7, inner_lr=0.1)
    assert float(model.phi.detach()) == pytest.approx(3 + 0.25 * (sum(ends) / 2 - 3))


def test_phi_stays_where_a_loss_is_not_finite():
    model, learner = Point(1.0), Point(0.0)
    outer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = reptile_step(
        model, learner, outer, [lambda point: point.phi.sum() * float("nan")], inner_steps=2, inner_lr=0.1
    )
    assert not step.finite
    assert model.phi.item() == 1.0
