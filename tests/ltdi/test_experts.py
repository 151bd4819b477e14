"""The closed forms of one task, against their definitions and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference

from ltdi.experts import (
    EXPERTS,
    SPREAD,
    LogisticRegression,
    SelfTraining,
    TaskItems,
    all_experts,
    centred,
    comparable,
    directed,
    from_means,
    logits,
    soft_means,
    unit,
)


def blobs(ways: int, shots: int, size: int, spread: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    centres = torch.randn(ways, size, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(ways, shots, size, generator=chance)
    return unit((centres[:, None] + spread * noise).flatten(0, 1)), torch.arange(ways).repeat_interleave(shots)


@pytest.mark.parametrize(("ways", "shots", "size"), [(2, 4, 30), (5, 3, 40), (12, 2, 64), (4, 40, 16), (20, 10, 24)])
def test_logistic_regression_is_scikit_learns(ways: int, shots: int, size: int) -> None:
    x, y = blobs(ways, shots, size, spread=2.0)
    own = LogisticRegression(x, torch.ones(len(x)), ways).fit(torch.nn.functional.one_hot(y, ways).float(), 300)
    centred_x = np.c_[(x - x.mean(0)).numpy(), np.ones(len(x))]  # with its penalised constant
    reference = Reference(C=10.0, fit_intercept=False, tol=1e-8, max_iter=5000).fit(centred_x, y.numpy())
    queries, _ = blobs(ways, 30, size, spread=2.0, seed=1)
    expected = reference.predict_proba(np.c_[(queries - x.mean(0)).numpy(), np.ones(len(queries))])
    found = torch.softmax(logits(own, queries), dim=1).numpy()
    if ways == 2:  # scikit-learn penalises one row of weights there, half as much in all
        assert (found.argmax(1) == expected.argmax(1)).mean() > 0.97
    else:
        assert np.abs(found - expected).max() < 0.01


def test_twenty_steps_are_enough_for_many_classes() -> None:
    x, y = blobs(60, 5, 96, spread=1.5)
    targets = torch.nn.functional.one_hot(y, 60).float()
    queries, wanted = blobs(60, 20, 96, spread=1.5, seed=1)

    def accuracy(steps: int) -> float:
        head = LogisticRegression(x, torch.ones(len(x)), 60).fit(targets, steps)
        return float((logits(head, queries).argmax(1) == wanted).float().mean())

    assert accuracy(20) > accuracy(300) - 0.01


def test_both_spaces_give_the_same_head() -> None:
    x, y = blobs(5, 9, 44)
    targets = torch.nn.functional.one_hot(y, 5).float()
    by_item = LogisticRegression(x, torch.ones(45), 5)
    assert by_item.by_item
    by_feature = LogisticRegression(torch.cat([x, x]), torch.full((90,), 0.5), 5)
    assert not by_feature.by_item
    answers = [logits(one.fit(t, 400), x) for one, t in ((by_item, targets), (by_feature, torch.cat([targets, targets])))]
    assert torch.allclose(*answers, atol=2e-2)


def test_soft_means_move_towards_their_own_pool_items_alone() -> None:
    pool, index = blobs(4, 50, 32, spread=0.3)
    x, y = blobs(4, 1, 32, spread=0.8, seed=3)
    moved = soft_means(x, torch.ones(4), pool, 20.0, 1.0)
    truth = torch.stack([pool[index == c].mean(0) for c in range(4)])
    assert ((moved - truth).norm(dim=1) < 0.3 * (x - truth).norm(dim=1)).all()
    assert torch.equal(soft_means(x, torch.ones(4), pool[:0], 20.0, 1.0), x)


def test_self_training_learns_from_the_pool() -> None:
    pool, _ = blobs(6, 60, 48, spread=0.9)
    x, y = blobs(6, 1, 48, spread=1.6, seed=5)
    queries, wanted = blobs(6, 60, 48, spread=0.9, seed=7)
    items = TaskItems.of(x, y, 6, pool=pool)
    start = all_experts(items)["logistic"]
    trained = SelfTraining(items).fit(start, (8, 4, 4))
    accuracy = [float((logits(h, queries).argmax(1) == wanted).float().mean()) for h in (start, trained)]
    assert accuracy[1] > accuracy[0] + 0.02


def test_each_task_has_the_experts_that_it_allows() -> None:
    x, y = blobs(3, 2, 16)
    names, pool = torch.randn(3, 16), torch.randn(9, 16)
    plain, with_pool = all_experts(TaskItems.of(x, y, 3)), all_experts(TaskItems.of(x, y, 3, names, None, pool))
    assert list(plain) == list(EXPERTS[:7])
    assert list(with_pool) == list(EXPERTS[:12])
    knowing = all_experts(TaskItems.of(x, y, 3, names, None, pool), torch.zeros(16, 16))
    assert list(knowing) == list(EXPERTS)
    assert all(torch.isfinite(head).all() and head.shape == (3, 17) for head in knowing.values())
    only_names = all_experts(TaskItems.of(x[:0], y[:0], 3, names))
    assert torch.allclose(only_names["means"], from_means(unit(names)), atol=1e-6)


def test_a_class_without_examples_is_known_by_its_name() -> None:
    x, y = blobs(3, 2, 16)
    names = unit(torch.randn(3, 16))
    items = TaskItems.of(x[:4], y[:4], 3, names, torch.tensor([False, True, True]))
    assert len(items.labelled[0]) == 6
    head = all_experts(items)["name_means"]
    assert int(logits(head, names[2:]).argmax(1)) == 2


def test_comparable_heads_answer_alike_and_spread_alike() -> None:
    heads, seen = torch.randn(4, 5, 17), unit(torch.randn(40, 16))
    same = comparable(heads, seen)
    assert torch.allclose(logits(same, seen).flatten(1).std(1), torch.full((4,), SPREAD), rtol=1e-3)
    assert torch.equal(logits(same, seen).argmax(-1), logits(heads, seen).argmax(-1))
    assert torch.allclose(centred(heads).mean(1), torch.zeros(4, 17), atol=1e-6)


def test_directions_of_zero_change_nothing() -> None:
    prototypes = torch.randn(4, 8)
    assert torch.allclose(directed(prototypes, torch.zeros(8, 8)), unit(prototypes))
