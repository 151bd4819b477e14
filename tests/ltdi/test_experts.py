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
    class_shares,
    comparable,
    directed,
    from_means,
    logits,
    soft_means,
    some_of,
    unit,
    with_prior,
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
    assert list(plain) == [name for name in EXPERTS[:8] if name != "names"]
    assert list(with_pool) == list(EXPERTS[:13])
    assert "prior_names" not in all_experts(TaskItems.of(x, y, 3, pool=pool))
    knowing = all_experts(TaskItems.of(x, y, 3, names, None, pool), torch.zeros(16, 16))
    assert list(knowing) == list(EXPERTS)
    assert all(torch.isfinite(head).all() and head.shape == (3, 17) for head in knowing.values())
    only_names = all_experts(TaskItems.of(x[:0], y[:0], 3, names))
    assert torch.allclose(only_names["means"], from_means(unit(names)), atol=1e-6)


def test_a_weaker_penalty_goes_on_from_a_stronger_one() -> None:
    x, y = blobs(30, 5, 96, spread=1.5)
    targets, ones = torch.nn.functional.one_hot(y, 30).float(), torch.ones(len(x))
    first = LogisticRegression(x, ones, 30)
    first.fit(targets, 20)
    went_on = LogisticRegression(x, ones, 30, 30.0).after(first).fit(targets, 8)
    anew, exact = (LogisticRegression(x, ones, 30, 30.0).fit(targets, steps) for steps in (8, 400))
    off = [(torch.softmax(logits(head, x), 1) - torch.softmax(logits(exact, x), 1)).abs().max() for head in (went_on, anew)]
    assert off[0] < 0.8 * off[1] and off[0] < 0.1


def skewed_pool(size: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Six classes, 300 items of the first and 12 of each other."""
    pool, index = blobs(6, 300, size, spread=1.5, seed=seed)
    kept = (index == 0) | (torch.arange(len(pool)) % 25 == 0)
    return pool[kept], index[kept]


def test_shares_of_classes_in_a_pool_are_found() -> None:
    pool, index = skewed_pool()
    centres, _ = blobs(6, 1, 48, spread=0.0)
    shares = class_shares(torch.softmax(30 * pool @ centres.T, dim=1))
    true = torch.bincount(index, minlength=6) / len(index)
    assert torch.allclose(shares.sum(), torch.tensor(1.0)) and (shares > 0).all()
    assert (shares - true).abs().max() < 0.05
    assert torch.allclose(class_shares(torch.full((5, 4), 0.25)), torch.full((4,), 0.25))
    one_item = class_shares(torch.tensor([[0.98, 0.01, 0.01]]))
    assert one_item.argmax() == 0 and one_item.max() < 0.6  # an item says little


def test_knowing_the_shares_answers_an_unequal_pool_better_and_an_equal_one_hardly_worse() -> None:
    x, y = blobs(6, 1, 10, spread=0.4, seed=5)
    pool, _ = skewed_pool(10)
    queries, wanted = skewed_pool(10, seed=7)
    head = from_means(x)

    def accuracy(head: torch.Tensor, queries: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((logits(head, queries).argmax(1) == wanted).float().mean())

    assert accuracy(with_prior(head, pool), queries, wanted) > accuracy(head, queries, wanted) + 0.1
    even, of_even = blobs(6, 100, 10, spread=1.2, seed=8)
    assert accuracy(with_prior(head, even), even, of_even) > accuracy(head, even, of_even) - 0.05


def test_items_and_names_are_centred_apart_once_examples_tell_where_items_lie() -> None:
    x, y = blobs(4, 5, 16)
    names, pool = torch.randn(4, 16) + 3, torch.randn(30, 16) + 1
    told = TaskItems.of(x, y, 4, names, None, pool, centre=True)
    assert torch.allclose(told.mean, (x.sum(0) + 4 * torch.cat([x, pool]).mean(0)) / 24, atol=1e-6)
    apart = 20 / (20 + 0.3 * 4)
    assert torch.allclose(told.names, unit(names - apart * names.mean(0) - (1 - apart) * told.mean), atol=1e-6)
    untold = TaskItems.of(x[:0], y[:0], 4, names, None, pool, centre=True)
    assert torch.allclose(untold.names, unit(names - pool.mean(0)), atol=1e-6)
    alone = TaskItems.of(x[:0], y[:0], 4, names, centre=True)
    assert torch.allclose(alone.mean, names.mean(0), atol=1e-6)


def test_some_of_a_log_is_taken_from_all_of_it() -> None:
    items = torch.arange(1000.0)[:, None]
    some = some_of(items, 11)
    assert some[:, 0].tolist() == pytest.approx([round(i * 99.9) for i in range(11)])
    assert some_of(items, 1000) is items


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
