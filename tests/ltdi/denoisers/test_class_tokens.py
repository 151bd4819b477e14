"""The denoiser of the `default` recipe."""

from __future__ import annotations

import pytest
import torch

from ltdi.denoisers.class_tokens import ClassTokens, ClassTokensConfig
from ltdi.errors import InvalidConfig
from ltdi.sampler import sample
from ltdi.schedule import Schedule, ScheduleConfig


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
def test_a_fresh_denoiser_answers_the_baseline_itself_or_the_hint() -> None:
    network = ClassTokens(ClassTokensConfig(width=16, heads=2), Schedule(), inputs=9, outputs=5).eval()
    x, task, hint = torch.randn(1, 3, 5), torch.randn(1, 3, 9), torch.randn(1, 3, 5)
    assert torch.equal(network.waypoint(x, 4, network.condition(task)), torch.zeros(1, 3, 5))
    assert torch.equal(network.waypoint(x, 4, network.condition(task, hint)), hint)
    torch.testing.assert_close(network.chain(x, network.condition(task, hint)), hint)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("segments", [1, 3, 5])
@pytest.mark.parametrize("hinted", [False, True])
@torch.inference_mode()
def test_the_fused_chain_is_the_plain_one(layers: int, segments: int, hinted: bool) -> None:
    torch.manual_seed(0)
    schedule = Schedule(ScheduleConfig(segments=segments))
    network = ClassTokens(ClassTokensConfig(width=16, heads=2, layers=layers), schedule, inputs=9, outputs=5).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, hint = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    condition = network.condition(torch.randn(2, 7, 9), hint if hinted else None)
    plain = sample(lambda x, t: network(x, t, condition), x, schedule)
    torch.testing.assert_close(network.chain(x, condition), plain, atol=1e-4, rtol=1e-4)
    assert plain.std() > 0.1


def test_the_fused_chain_follows_its_parameters(denoiser: ClassTokens) -> None:
    x, task = torch.randn(1, 3, 5), torch.randn(1, 3, 9)
    with torch.no_grad():
        first = denoiser.chain(x, denoiser.condition(task))
        denoiser.answer.weight.mul_(2)
        second = denoiser.chain(x, denoiser.condition(task))
        condition = denoiser.condition(task)
        plain = sample(lambda x, t: denoiser(x, t, condition), x, denoiser.schedule)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, plain, atol=1e-4, rtol=1e-4)


def test_the_fused_chain_works_for_parameters_that_were_born_in_inference_mode() -> None:
    with torch.inference_mode():
        network = ClassTokens(ClassTokensConfig(width=16, heads=2), Schedule(), inputs=9, outputs=5).eval()
        hint = torch.randn(1, 3, 5)
        assert torch.equal(network.chain(hint, network.condition(torch.randn(1, 3, 9), hint)), hint)


def test_gradients_through_the_fused_chain_are_those_through_the_plain_one(denoiser: ClassTokens) -> None:
    x, task = torch.randn(1, 3, 5), torch.randn(1, 3, 9)

    def gradients(fused: bool) -> list[torch.Tensor]:
        denoiser.zero_grad()
        condition = denoiser.condition(task)
        end = denoiser.chain(x, condition) if fused else sample(lambda x, t: denoiser(x, t, condition), x, denoiser.schedule)
        end.square().sum().backward()
        used = ("read_x.weight", "read_task.weight", "last.project.weight", "answer.weight", "answer.bias", "shift", "gain")
        return [denoiser.get_parameter(name).grad.clone() for name in used]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_step_without_layers_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="layers is 0; a step needs at least one"):
        ClassTokensConfig(layers=0)


def test_a_width_that_the_attention_heads_cannot_share_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="multiple of heads"):
        ClassTokensConfig(width=10, heads=4)
