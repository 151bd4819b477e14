"""Unlabelled pools of the `default` recipe: what is read from them, and heads with one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi import Bundle, UnsupportedInput, load_bundle
from ltdi.bodies.loader import BodyConfig
from ltdi.bundle import BundleConfig, HeadRequest
from ltdi.embedding import ClassStatistics
from ltdi.errors import InvalidConfig
from ltdi.generator import Calibration, CalibrationRow, generate_with_pool
from ltdi.pool import PoolConfig, PoolReader, answer, between, counted, soft_k_means, with_items
from tests.conftest import make_bundle
from tests.ltdi.test_experts import blobs

SIZE = 10
X, Y = blobs(3, 2, SIZE, spread=0.5)
LABELS = [f"c{i}" for i in Y.tolist()]
POOL = blobs(3, 15, SIZE, spread=0.5, seed=5)[0]
PLAIN = 2 * torch.eye(SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = BodyConfig("photos", widths=(4, 6, 8, SIZE), image_size=16)
    parent = tmp_path_factory.mktemp("bundles")
    return make_bundle(parent / "pooled", name="pooled", body=body, head_sizes=(SIZE, 0), views=3, pool=PoolConfig())


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder, device="cpu")


def same(one, other) -> bool:
    return one.to_bytes() == other.to_bytes()


def test_settings_lie_between_one_and_five_examples() -> None:
    values, shots = torch.tensor([[1.0, 3.0], [0.0, -1.0]]), torch.tensor([1, 5**0.5, 5, 40])
    expected = torch.tensor([[1.0, 0.0], [2.0, -0.5], [3.0, -1.0], [3.0, -1.0]])
    torch.testing.assert_close(between(values, shots), expected)


def test_items_move_class_means_by_their_answers() -> None:
    means, counts = torch.tensor([[[0.0], [10.0]]]), torch.tensor([[1, 2]])
    pool, answers = torch.tensor([[[2.0], [7.0]]]), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    found = with_items(means, counts, pool, answers, torch.tensor([2.0]))
    torch.testing.assert_close(found, torch.tensor([[[(0 + 4 + 7) / 4], [(20 + 7) / 3]]]))


def test_soft_k_means_finds_the_classes_and_without_weight_leaves_them() -> None:
    first, counts = blobs(3, 1, SIZE, spread=1.5)[0].unsqueeze(0), torch.ones(1, 3, dtype=torch.long)
    pool, (queries, target) = blobs(3, 30, SIZE, spread=1.5, seed=5)[0].unsqueeze(0), blobs(3, 100, SIZE, spread=1.5, seed=7)
    nothing = PoolConfig(weight=(0.0, 0.0))
    assert torch.equal(soft_k_means(first, counts, pool, PLAIN, nothing), first)
    moved = soft_k_means(first, counts, pool, PLAIN, PoolConfig(sharpness=(3.0, 3.0), weight=(1.0, 1.0)))
    right = [float((answer(m, queries.unsqueeze(0), PLAIN)[0].argmax(-1) == target).float().mean()) for m in (first, moved)]
    assert right[1] > right[0] + 0.03


def test_a_reader_that_is_not_led_is_soft_k_means_and_one_that_is_follows() -> None:
    first, counts = torch.stack([X[row == Y][0] for row in range(3)]).unsqueeze(0), torch.ones(1, 3, dtype=torch.long)
    reader, pool = PoolReader(rounds=4), POOL.unsqueeze(0)
    leading = torch.zeros(1, len(POOL), 3)
    leading[..., 2] = 5.0
    _, means = reader(first, counts, pool, PLAIN, leading)
    torch.testing.assert_close(means, soft_k_means(first, counts, pool, PLAIN, PoolConfig()))
    with torch.no_grad():
        reader.lead.fill_(10.0)
    answers, led = reader(first, counts, pool, PLAIN, leading)
    assert bool((answers.argmax(-1) == 2).all()) and not torch.allclose(led, means)
    torch.testing.assert_close(answers.sum(-1), torch.ones(1, len(POOL)))


def test_statistics_with_a_pool_count_its_items_and_thin_the_views() -> None:
    features, views = torch.tensor([[0.0], [4.0]]), torch.tensor([[[1.0], [0.3]], [[5.0], [0.2]]])
    plain = ClassStatistics(features, torch.tensor([0, 1]), 1, 2, views)
    pool, answers = torch.tensor([[[1.0], [6.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    moved = plain.with_pool(pool, answers, torch.tensor([3.0]), torch.tensor([0.5]))
    torch.testing.assert_close(moved.means, torch.tensor([[[0.75], [5.5]]]))
    torch.testing.assert_close(moved.view_means - moved.means, torch.tensor([[[0.25], [0.25]]]))
    torch.testing.assert_close(moved.counts, torch.tensor([[1.5, 1.5]]))
    assert plain.counts.tolist() == [[1, 1]] and plain.means[0, 0, 0] == 0


def test_strange_tasks_get_soft_k_means(bundle: Bundle) -> None:
    generator = bundle.generator
    statistics = ClassStatistics(X, Y, 1, 3)
    noise = torch.randn(1, 1, *generator.noise_shape(3))
    weights, base = generate_with_pool(generator, statistics, POOL.unsqueeze(0), noise)
    assert not torch.allclose(weights, base, atol=1e-3)
    before, generator.calibration = generator.calibration, Calibration((CalibrationRow(1, 1.0, familiar=-1e9),))
    try:
        strange, base = generate_with_pool(generator, statistics, POOL.unsqueeze(0), noise)
    finally:
        generator.calibration = before
    assert torch.equal(strange, base)


def test_order_and_labels_change_nothing_but_rows_and_the_pool_matters(bundle: Bundle) -> None:
    head = bundle.generate(X, LABELS, unlabelled=POOL, seed=3)
    order, pool = torch.randperm(len(X)), torch.randperm(len(POOL))
    assert same(head, bundle.generate(X[order], [LABELS[i] for i in order], unlabelled=POOL[pool], seed=3))
    renamed = {"c0": "z", "c1": "y", "c2": "x"}
    other = bundle.generate(X, [renamed[label] for label in LABELS], unlabelled=POOL, seed=3)
    torch.testing.assert_close(other(X).flip(1), head(X))
    for changed in (None, POOL[:-1]):
        assert not torch.allclose(bundle.generate(X, LABELS, unlabelled=changed, seed=3)(X), head(X), atol=1e-4)


def test_a_small_pool_is_left_alone_and_one_in_between_counts_in_part(bundle: Bundle) -> None:
    assert [counted(items, 3) for items in (0, 6, 15, 60)] == [0.0, 0.0, 1.0, 1.0] and counted(10, 3) == pytest.approx(4 / 9)
    alone, small, part, whole = (bundle.generate(X, LABELS, unlabelled=POOL[:u]) for u in (0, 6, 10, 15))
    assert torch.equal(small.layers[0].weight, alone.layers[0].weight) and small.temperature == alone.temperature
    near, far = ((one.layers[0].weight - alone.layers[0].weight).norm() for one in (part, whole))
    assert 0 < near < far


def test_probabilities_with_a_pool_have_temperatures_of_their_own(bundle: Bundle) -> None:
    generator, before = bundle.generator, bundle.generator.pool
    try:
        generator.pool = replace(before, temperature=(3.0, 3.0), baseline_temperature=(7.0, 7.0))
        assert bundle.generate(X, LABELS, unlabelled=POOL).temperature == pytest.approx(3.0)
        assert bundle.generate(X, LABELS).temperature == pytest.approx(1.0)
    finally:
        generator.pool = before


def test_a_task_with_a_pool_has_the_same_bytes_beside_others(bundle: Bundle) -> None:
    tasks = [
        bundle.support(X, LABELS), bundle.support(X, LABELS, unlabelled=POOL), bundle.support(X, LABELS, unlabelled=POOL[:7])
    ]  # fmt: skip
    together = bundle.generate_many([HeadRequest(task) for task in tasks])
    alone = [bundle.generate_many([HeadRequest(task)])[0] for task in tasks]
    assert [head.to_bytes() for head in together] == [head.to_bytes() for head in alone]
    assert together[1].support_accuracy is not None and together[1].baseline_support_accuracy is not None


def test_images_and_their_features_may_be_the_pool_and_one_example_is_enough(bundle: Bundle) -> None:
    images = torch.randint(256, (9, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    head = bundle.generate(images[:3], ["a", "b", "c"], unlabelled=images[3:])
    torch.testing.assert_close(
        bundle.generate(images[:3], ["a", "b", "c"], unlabelled=bundle.embed(images[3:]))(bundle.embed(images)),
        head(bundle.embed(images)),
    )
    uneven = bundle.generate(images[:4], ["a", "b", "c", "c"], unlabelled=images[4:], draws=2, refine_steps=2)
    assert torch.isfinite(uneven(bundle.embed(images))).all()


def test_a_head_gets_more_of_its_pool_later(bundle: Bundle) -> None:
    head = bundle.generate(X, LABELS, seed=5)
    later = bundle.update(bundle.update(head, unlabelled=POOL[:20]), unlabelled=POOL[20:])
    assert same(later, bundle.generate(X, LABELS, seed=5, unlabelled=POOL))


def test_what_takes_no_pool_says_so(bundle: Bundle, toy: Bundle) -> None:
    with pytest.raises(UnsupportedInput, match="does not use unlabelled"):
        toy.generate(torch.zeros(2, 256), ["a", "b"], unlabelled=torch.zeros(1, 256))
    with pytest.raises(UnsupportedInput, match="does not use unlabelled"):
        toy.update(toy.generate(torch.eye(256)[:2], ["a", "b"]), unlabelled=torch.zeros(1, 256))
    with pytest.raises(InvalidConfig, match="takes no `pool`"):
        BundleConfig("wrong", recipe="paper", pool=PoolConfig())
    with pytest.raises(UnsupportedInput, match="holds no pool"):
        bundle.embed_task(bundle.support(X, LABELS, unlabelled=POOL))
    with pytest.raises(UnsupportedInput, match="does not use descriptions"):
        bundle.generate(X, LABELS, descriptions={"c0": X[0]})


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"temperature": (0.0, 1.0)}, {"share": (0.1,)}, {"weight": (-1.0, 0.0)}, {"item_worth": (float("nan"), 0.1)}])
def test_settings_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidConfig, match="pool"):
        PoolConfig(**wrong)
