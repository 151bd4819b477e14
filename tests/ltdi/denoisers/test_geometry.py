"""What the geometry recipe promises: no direction of the space, no order of classes, no size matters."""

import pytest
import torch

from ltdi.denoisers.geometry import GeometryConfig, describe, newton_ways
from ltdi.experts import EXPERTS, TaskItems, logits, unit
from ltdi.generator import GeometryGenerator
from ltdi.sampler import sample
from ltdi.schedule import ScheduleConfig
from tests.ltdi.test_experts import blobs

SIZE, WAYS = 24, 5


@pytest.fixture(scope="module")
def generator() -> GeometryGenerator:
    torch.manual_seed(0)
    made = GeometryGenerator(ScheduleConfig(), GeometryConfig())
    for parameter in made.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval().requires_grad_(False)


def items(pool: int = 40, names: bool = True, turn: torch.Tensor | None = None) -> TaskItems:
    x, y = blobs(WAYS, 3, SIZE, spread=1.0)
    held = unit(torch.randn(WAYS, SIZE, generator=torch.Generator().manual_seed(4)))
    more, _ = blobs(WAYS, pool // WAYS, SIZE, spread=1.0, seed=2)
    turn = torch.eye(SIZE) if turn is None else turn
    return TaskItems.of(x @ turn, y, WAYS, held @ turn if names else None, None, more @ turn if pool else None)


NOISE = torch.randn(1, WAYS, SIZE + 1, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", [0, 40])
@pytest.mark.parametrize("names", [False, True])
def test_a_rotation_of_the_space_changes_no_answer(generator: GeometryGenerator, pool: int, names: bool) -> None:
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3)))[0]
    queries, _ = blobs(WAYS, 10, SIZE, spread=1.0, seed=9)
    straight = generator.generate_one(generator.describe_items(items(pool, names)), NOISE)
    turned_noise = torch.cat([NOISE[..., :-1] @ turn, NOISE[..., -1:]], dim=-1)
    turned = generator.generate_one(generator.describe_items(items(pool, names, turn)), turned_noise)
    assert torch.allclose(logits(straight, queries), logits(turned, queries @ turn), atol=2e-2)


def test_classes_in_another_order_get_their_own_rows(generator: GeometryGenerator) -> None:
    one = items()
    order = torch.tensor([3, 0, 4, 1, 2])
    back = torch.argsort(order)
    moved = TaskItems.of(one.examples, back[one.class_index], WAYS, one.names[order], None, one.pool)
    straight = generator.generate_one(generator.describe_items(one), NOISE)
    other = generator.generate_one(generator.describe_items(moved), NOISE[:, order])
    assert torch.allclose(straight[order], other, atol=2e-3)


def test_the_chain_is_the_plain_sampler(generator: GeometryGenerator) -> None:
    task = generator.describe_items(items())
    seen = []
    observed = generator.chain(task, NOISE[0], lambda t, x: seen.append(t))
    plain = sample(lambda x, t: generator.denoiser(x, t, task), NOISE[0], generator.schedule)
    assert seen == list(range(19, -1, -1))
    assert torch.allclose(observed, plain)
    assert torch.allclose(generator.chain(task, NOISE[0]), plain, atol=1e-2)


def test_a_step_looks_at_what_the_current_head_says(generator: GeometryGenerator) -> None:
    task = generator.describe_items(items())
    here = generator.denoiser.waypoint(task.base, 5, task)
    there = generator.denoiser.waypoint(task.base.flip(0), 5, task)
    assert (here - there).abs().max() > 1e-2


def test_draws_are_averaged(generator: GeometryGenerator) -> None:
    task = generator.describe_items(items())
    noise = torch.randn(3, WAYS, SIZE + 1)
    heads = torch.stack([generator.generate_one(task, one[None]) for one in noise])
    assert torch.allclose(generator.generate_one(task, noise), heads.mean(0), atol=1e-3)


def test_strength_nought_is_the_baseline() -> None:
    from ltdi.generator import Calibration, CalibrationRow

    weak = GeometryGenerator(ScheduleConfig(), GeometryConfig(), Calibration((CalibrationRow(1, 0.0),)))
    task = weak.describe_items(items())
    with torch.no_grad():
        assert torch.equal(weak.generate_one(task, NOISE), task.base)


@pytest.mark.parametrize(("pool", "shots", "base"), [(0, 3, "logistic"), (40, 3, "self_training"), (40, 0, "pool_means")])
def test_the_baseline_is_the_closed_form_for_what_the_task_holds(pool: int, shots: int, base: str) -> None:
    whole = items(pool)
    some = whole.kept(torch.arange(WAYS * 3)[: WAYS * shots])
    described = describe(some)
    assert torch.equal(described.base, described.experts[EXPERTS.index(base)])


def test_the_mixture_is_of_the_closed_forms(generator: GeometryGenerator) -> None:
    task = generator.describe_items(items(pool=0))
    direction = generator.denoiser.mixture(task).flatten()
    held = task.experts[task.allowed].flatten(1)
    fitted = torch.linalg.lstsq(held.T, direction[:, None]).solution.squeeze(1)
    assert torch.allclose(held.T @ fitted, direction, atol=1e-2) and (fitted > -1e-3).all()


@pytest.mark.parametrize(("count", "size"), [(7, 30), (30, 7), (12, 12)])
def test_newton_ways_are_the_same_in_both_spaces(count: int, size: int) -> None:
    inputs, weights = torch.randn(count, size, dtype=torch.float64), torch.rand(count, dtype=torch.float64) + 0.1
    curvature = 0.5 * inputs.T @ torch.diag(weights) @ inputs + 0.1 * torch.eye(size, dtype=torch.float64)
    assert torch.allclose(newton_ways(inputs, weights), inputs @ torch.linalg.inv(curvature), atol=1e-6)
