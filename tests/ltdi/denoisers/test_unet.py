"""The denoiser of the `paper` recipe."""

from __future__ import annotations

import pytest
import torch

from ltdi.denoisers.unet import UNet, UNetConfig
from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule


def build(time: str = "t", length: int = 37) -> UNet:
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=(4, 8), embedding=16, time=time), Schedule(), inputs=12, length=length).eval()
    torch.nn.init.normal_(network.last.weight)
    return network


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 16, 37, 64])
def test_weights_of_any_length_come_back_at_that_length(length: int) -> None:
    assert build(length=length)(torch.randn(3, length), 7, torch.randn(3, 12)).shape == (3, length)


@torch.inference_mode()
def test_one_step_for_all_equals_the_same_step_for_each() -> None:
    network, x, condition = build(), torch.randn(3, 37), torch.randn(3, 12)
    assert torch.equal(network(x, 7, condition), network(x, torch.tensor([7, 7, 7]), condition))


def answer(network: UNet, x: torch.Tensor, t: int) -> torch.Tensor:
    """What the network's layers answer at step t; the share of x_t itself follows from t in any case."""
    return network._layers(x, network.told[t], torch.ones(len(x), 12))


@torch.inference_mode()
@pytest.mark.parametrize("t", [1, 7, 8, 20])
def test_a_silent_network_answers_with_the_linear_estimate_from_x(t: int) -> None:
    network, schedule = build(), Schedule()
    for layer in (network.last, network.read_place):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x = torch.randn(3, 37)
    kept = float(schedule.alpha_bar_from(int(schedule.start_of_step[t]), t))
    torch.testing.assert_close(network.waypoint(x, torch.tensor(t), torch.ones(3, 12)), kept**0.5 * x)


@torch.inference_mode()
def test_told_t_it_tells_equal_places_of_two_segments_apart() -> None:
    x = torch.randn(3, 37)
    assert not torch.equal(answer(build("t"), x, 2), answer(build("t"), x, 9))


@torch.inference_mode()
def test_told_t_minus_k_it_cannot_tell_them_apart() -> None:
    x, network = torch.randn(3, 37), build("t-k")
    assert torch.equal(answer(network, x, 2), answer(network, x, 9))
    assert torch.equal(answer(network, x, 2), answer(network, x, 15))
    assert not torch.equal(answer(network, x, 2), answer(network, x, 3))


@torch.inference_mode()
def test_the_task_changes_the_answer() -> None:
    network, x = build(), torch.randn(3, 37)
    assert not torch.allclose(network(x, 7, torch.zeros(3, 12)), network(x, 7, torch.ones(3, 12)))


def test_an_unknown_time_argument_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="known: t, t-k"):
        UNetConfig(time="k")
