"""The tasks of the real packs: many, disjoint between sources, balanced; and the made ones."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from training.adapters.sources import Row, source_rows
from training.adapters.tasks import (
    FOLDS,
    MEASURED,
    RECIPES,
    balanced,
    fold_of,
    holds,
    same_class,
    similar,
    text_tasks,
    word_order,
)

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
data = next((folder for folder in (DATA, ROOT / "data") if (folder / "text").is_dir()), None)
needs_data = pytest.mark.skipif(data is None, reason="the data packs are not here")


def rows(count: int = 12) -> tuple[Row, ...]:
    return tuple(
        Row(f"one two three four five six seven {i} eight", None, "ab"[i % 2], "train" if i % 3 else "test") for i in range(count)
    )


def test_there_are_at_least_sixty_tasks_in_four_folds() -> None:
    assert len(RECIPES) >= 60
    assert {fold_of(source) for source, _ in RECIPES.values()} == set(range(4))
    assert set(MEASURED) <= set(RECIPES)


def test_left_out_sentiment_has_its_relatives_in_other_folds() -> None:
    assert len({fold_of(name) for name in ("sst2", "mr", "cr")}) == 3
    assert len({fold_of(name) for name in ("mrpc", "qnli_dev", "stsb", "rte")}) == 4
    assert sum(len(fold) for fold in FOLDS) == len({source for fold in FOLDS for source in fold})


@needs_data
def test_no_sentence_of_sst2_stands_in_mr_or_subj() -> None:
    def plain(name: str) -> set[str]:
        return {"".join(c for c in row.text.lower() if c.isalnum()) for row in source_rows(data, name)}

    sst2 = plain("sst2")
    assert not sst2 & plain("mr")
    assert not sst2 & plain("subj")
    assert not plain("mr") & plain("subj")


@needs_data
@pytest.mark.parametrize("name", ["mr", "trec", "stsb", "qnli", "curekart"])
def test_parts_of_a_task_share_no_text(name: str) -> None:
    (task,) = text_tasks(data, [name])
    parts = [{(row.text, row.second) for row in part} for part in (task.train, task.held, task.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert min(Counter(row.label for row in task.train).values()) >= 16
    assert len(task.test) <= 300
    assert text_tasks(data, [name]) == [task]


def test_no_class_is_more_than_three_times_another() -> None:
    many = [Row(str(i), None, "a" if i % 10 else "b", "train") for i in range(200)]
    counts = Counter(row.label for row in balanced(many, 100, random.Random(0)))
    assert counts == {"a": 50, "b": 20}


def test_swapped_words_are_the_same_words() -> None:
    for row in word_order(rows(), random.Random(0)):
        words = row.text.split()
        original = next(other.text.split() for other in rows() if sorted(other.text.split()) == sorted(words))
        assert (words == original) == (row.label == "kept")


def test_pairs_of_one_class_are_of_one_class_and_stay_in_their_part() -> None:
    known = {row.text: row for row in rows(40)}
    made = list(same_class()(rows(40), random.Random(0)))
    assert {row.label for row in made} == {"same", "other"}
    for row in made:
        first, second = known[row.text], known[row.second]
        assert (first.label == second.label) == (row.label == "same")
        assert first.part == second.part == row.part


def test_pairs_between_the_two_limits_are_left_out() -> None:
    scored = tuple(Row("a", "b", str(score), "train") for score in (0.0, 2.0, 3.0, 3.5, 5.0))
    assert [row.label for row in similar(2.0, 3.5)(scored, random.Random(0))] == ["different"] * 2 + ["similar"] * 2


def test_a_pattern_tells_with_from_without() -> None:
    found = holds(r"\b3\b")(rows(5), random.Random(0))
    assert [row.label for row in found] == ["without", "without", "without", "with", "without"]
