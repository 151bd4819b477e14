"""The denoiser of the `default` recipe."""

from __future__ import annotations

import pytest
import torch

from ltdi.denoisers.class_tokens import ClassTokens, ClassTokensConfig
from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule


@pytest.fixture
def denoiser() -> ClassTokens:
    torch.manual_seed(0)
    network = ClassTokens(ClassTokensConfig(width=16, heads=2), Schedule(), inputs=9, outputs=5).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@torch.inference_mode()
def test_permuting_the_classes_permutes_the_answer(denoiser: ClassTokens) -> None:
    x, task, order = torch.randn(2, 7, 5), torch.randn(2, 7, 9), torch.randperm(7)
    straight = denoiser(x, 9, denoiser.condition(task))
    permuted = denoiser(x[:, order], 9, denoiser.condition(task[:, order]))
    torch.testing.assert_close(permuted, straight[:, order])


@torch.inference_mode()
@pytest.mark.parametrize("ways", [2, 5, 64])
def test_any_number_of_ways_goes_through(denoiser: ClassTokens, ways: int) -> None:
    assert denoiser(torch.randn(3, ways, 5), 20, denoiser.condition(torch.randn(3, ways, 9))).shape == (3, ways, 5)


@torch.inference_mode()
def test_the_answer_depends_on_the_step_the_task_and_the_other_classes(denoiser: ClassTokens) -> None:
    x, task = torch.randn(1, 3, 5), torch.randn(1, 3, 9)
    condition = denoiser.condition(task)
    answer = denoiser.waypoint(x, 9, condition)
    assert not torch.allclose(answer, denoiser.waypoint(x, 10, condition))
    other = task.clone()
    other[0, 2] += 1
    assert not torch.allclose(answer[0, 0], denoiser.waypoint(x, 9, denoiser.condition(other))[0, 0])


@torch.inference_mode()
def test_a_fresh_denoiser_answers_the_baseline_itself() -> None:
    network = ClassTokens(ClassTokensConfig(width=16, heads=2), Schedule(), inputs=9, outputs=5).eval()
    answer = network.waypoint(torch.randn(1, 3, 5), 4, network.condition(torch.randn(1, 3, 9)))
    assert torch.equal(answer, torch.zeros(1, 3, 5))


def test_a_width_that_the_attention_heads_cannot_share_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="multiple of heads"):
        ClassTokensConfig(width=10, heads=4)
