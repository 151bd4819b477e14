"""Whole tasks as they are measured, and the mixture that a generator learns from."""

import numpy as np
import pytest
import torch

from ltdi.experts import unit
from tests.training.made import made_set
from training.tasks import INFORMATION, Mixture, draw_bank, draw_task, group_of, whole_task

DATA = made_set("made", classes=8, items=20)


@pytest.mark.parametrize("shots", [0, 1, 5, 50])
def test_a_whole_task_splits_what_there_is(shots: int) -> None:
    task = whole_task(DATA, shots, seed=1)
    per_class = min(shots, 14) if shots else 0  # of 15 training items all but one
    assert len(task.examples) == 8 * per_class
    assert torch.bincount(task.class_index, minlength=8).tolist() == [per_class] * 8
    assert len(task.pool) == 8 * (15 - per_class)
    together = torch.cat([task.examples, task.pool])
    assert len(torch.unique(together, dim=0)) == len(together)
    assert len(task.targets) == 40 and len(task.outside) == 3


def test_seeds_draw_other_supports_but_the_same_questions() -> None:
    one, same, other = (whole_task(DATA, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(one.examples, same.examples) and not torch.equal(one.examples, other.examples)
    assert torch.equal(one.queries, other.queries)


def test_the_pool_has_a_largest_size() -> None:
    assert len(whole_task(DATA, 1, 0, pool_size=9).pool) == 9


def test_some_classes_and_their_own_numbers() -> None:
    task = whole_task(DATA, 1, 0, classes=[5, 2])
    assert task.classes.tolist() == [5, 2]
    places = [int((DATA.features == row).all(1).nonzero()) for row in task.examples]
    assert DATA.class_index[places].tolist() == [5, 2]
    assert set(task.targets.tolist()) == {0, 1}


def test_classes_without_training_items_are_left_out_and_counted() -> None:
    data = made_set("made", classes=4)
    data.train[data.class_index == 3] = False
    task = whole_task(data, 1, 0)
    assert task.classes.tolist() == [0, 1, 2]
    assert task.dropped == 5


def test_information_is_what_a_task_holds() -> None:
    task = whole_task(DATA, 2, 0)
    held = {name: task.items(name) for name in INFORMATION}
    assert [bool(held[name].named.any()) for name in INFORMATION] == [False, True, False, True]
    assert [len(held[name].pool) > 0 for name in INFORMATION] == [False, False, True, True]
    assert torch.equal(held["names"].names, unit(DATA.names))
    assert torch.equal(task.items("names", raw=True).names, unit(DATA.raw_names))
    assert torch.allclose(task.items("all", centre=True).seen(task.queries).norm(dim=1), torch.ones(40))


def test_sets_of_one_source_are_one_group() -> None:
    assert group_of("hint3_curekart") == group_of("hint3_sofmattress") == "hint3"
    assert group_of("webapps_intents") == "webapps_intents"


def test_a_bank_has_every_kind_of_task() -> None:
    bank = draw_bank([DATA, made_set("other", classes=3, seed=3)], [1, 1], 120, Mixture(pools=(5, 40)), seed=0)
    assert len(bank) == 120 and {task.group for task in bank} == {"made", "other"}
    pools = [len(task.items.pool) for task in bank]
    names = [bool(task.items.named.any()) for task in bank]
    shots = [float(task.items.counts.float().mean()) for task in bank]
    assert 0 in pools and max(pools) > 20 and any(names) and not all(names)
    assert 0.0 in shots and any(s % 1 > 0 for s in shots)
    for task in bank:
        held = task.items.counts > 0
        assert bool((held | task.items.named).all())  # each class has an example or a name
        assert int(task.targets.max()) < task.items.ways


def test_the_same_seed_draws_the_same_bank() -> None:
    one, other = (draw_bank([DATA], [1], 5, Mixture(), seed=7) for _ in range(2))
    assert all(torch.equal(a.queries, b.queries) for a, b in zip(one, other, strict=True))


def test_a_task_without_names_or_examples_is_none() -> None:
    nameless = made_set("nameless")
    object.__setattr__(nameless, "names", None)
    assert all(draw_task(nameless, Mixture(shots=(0,)), np.random.default_rng(s)) is None for s in range(5))
