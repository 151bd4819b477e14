"""Every check on what callers send, and the canonical order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltdi.errors import (
    EmptySupport,
    InvalidFeatures,
    InvalidSupport,
    LimitExceeded,
    LtDiError,
    TooFewClasses,
)
from ltdi.support import Limits, SupportSet

LIMITS = Limits(max_ways=3, max_shots=3, max_examples=6, max_unlabelled=2)
FOUR = torch.arange(8.0).reshape(4, 2)


def support(labels: list, inputs: torch.Tensor | None = None, **more: object) -> SupportSet:
    inputs = torch.arange(2.0 * len(labels)).reshape(-1, 2) if inputs is None else inputs
    return SupportSet.of(inputs, labels, limits=LIMITS, **more)


CASES = {
    "nothing": (lambda: support([]), EmptySupport, "support set is empty; give at least one example", "support"),
    "one class": (lambda: support(["a", "a"]), TooFewClasses, "has 1 class; a head separates at least two", "support"),
    "labels missing": (lambda: SupportSet.of(FOUR, None), InvalidSupport, "4 examples and 0 labels", "labels"),
    "too few labels": (lambda: support(["a", "b"], FOUR), InvalidSupport, "4 examples and 2 labels; give one", "labels"),
    "class named twice": (
        lambda: support(["a", "b"], classes=["a", "b", "a"]), InvalidSupport, "name each class once", "classes",
    ),
    "unknown label": (
        lambda: support(["a", "b", "c"], classes=["a", "b"]), InvalidSupport, "label 'c' is not among `classes`", "classes",
    ),
    "class with nothing": (
        lambda: support(["a", "b"], classes=["a", "b", "c"]), InvalidSupport, "class 'c' has neither", "support",
    ),
    "label of another type": (
        lambda: support(["a", 7]), InvalidSupport, "label 7 is a int; labels are strings", "labels",
    ),
    "class of another type": (
        lambda: support(["a", "b"], classes=["a", None]), InvalidSupport, "label None is a NoneType", "classes",
    ),
    "half a character": (lambda: support(["a", "\ud800"]), InvalidSupport, "half a surrogate pair", "labels"),
    "too many classes": (
        lambda: support(["a", "b", "c", "d"]), LimitExceeded, "4 classes; this bundle takes at most 3", "classes",
    ),
    "too many shots": (
        lambda: support(["a"] * 4 + ["b"]), LimitExceeded, "4 examples of one class; .* at most 3", "support",
    ),
    "too many examples": (
        lambda: support(["a", "b", "c"] * 2 + ["a"]), LimitExceeded, "7 examples; this bundle takes at most 6", "support",
    ),
    "too many unlabelled": (
        lambda: support(["a", "b"], unlabelled=torch.zeros(3, 2)), LimitExceeded, "3 unlabelled items", "unlabelled",
    ),
    "NaN": (lambda: support(["a", "b"], torch.tensor([[1.0], [np.nan]])), InvalidFeatures, "NaN or infinity", "support"),
    "infinity in the pool": (
        lambda: support(["a", "b"], unlabelled=torch.full((1, 2), np.inf)), InvalidFeatures, "must be finite", "unlabelled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_makes_no_task_is_refused_with_its_field_and_remedy(case: str) -> None:
    make, kind, message, field = CASES[case]
    with pytest.raises(LtDiError, match=message) as caught:
        make()
    assert type(caught.value) is kind and caught.value.field == field


def test_classes_are_the_sorted_labels_unless_given() -> None:
    assert support(["b", "a", "b"]).classes == ("a", "b")
    assert support(["b", "a"], classes=["b", "a"]).classes == ("b", "a")


def test_a_class_may_have_a_description_alone() -> None:
    task = support(["a"], descriptions={"b": "the other"})
    assert task.classes == ("a", "b") and task.counts.tolist() == [1, 0]


def test_the_canonical_order_follows_from_content_alone() -> None:
    inputs, labels = torch.randn(6, 2), ["a", "b", "c", "a", "b", "a"]
    task = SupportSet.of(inputs, labels)
    order = torch.randperm(6)
    renamed = {"a": "z", "b": "m", "c": "k"}
    other = SupportSet.of(inputs[order], [renamed[labels[i]] for i in order], classes=["m", "z", "k"])
    assert task.canonical.digest == other.canonical.digest
    assert torch.equal(inputs[task.canonical.example_order], inputs[order][other.canonical.example_order])
    assert torch.equal(task.canonical.class_index, other.canonical.class_index)
    by_place = [[s.classes[row] for row in s.canonical.class_order.tolist()] for s in (task, other)]
    assert [renamed[label] for label in by_place[0]] == by_place[1]


def test_another_number_or_another_assignment_changes_the_digest() -> None:
    inputs = torch.randn(4, 2)
    base = SupportSet.of(inputs, ["a", "a", "b", "b"]).canonical.digest
    assert SupportSet.of(inputs, ["a", "b", "b", "a"]).canonical.digest != base
    assert SupportSet.of(inputs, ["a", "b", "b", "b"]).canonical.digest != base
    assert SupportSet.of(inputs + 1, ["a", "a", "b", "b"]).canonical.digest != base
    assert SupportSet.of(inputs, ["a", "a", "b", "b"], unlabelled=inputs).canonical.digest != base


def test_restoring_puts_the_rows_back() -> None:
    task = SupportSet.of(torch.randn(5, 2), list("abcde"), classes=list("ecabd"))
    assert torch.equal(task.canonical.class_order[task.canonical.restore], torch.arange(5))


def test_classes_of_equal_content_share_their_noise_and_their_row() -> None:
    inputs = torch.tensor([[1.0], [2.0], [1.0], [3.0]])
    canonical = SupportSet.of(inputs, list("abcd")).canonical
    restore = canonical.restore.tolist()
    assert restore[0] == restore[2] and len(set(restore)) == 3
    assert canonical.noise_row[restore].tolist() == restore
