"""The bundles that ship: whole, small, with a card of their own, and of use on real digits."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import ltdi
from training.data.digits import framed

WAYS, EPISODES, QUERIES = 10, 20, 15
shipped = ltdi.shipped_bundles()


@pytest.mark.parametrize("name", shipped)
def test_a_shipped_bundle_loads_and_its_card_speaks_of_it(name: str) -> None:
    bundle = ltdi.load_bundle(name, device="cpu")
    assert bundle.name == name
    assert bundle.card["bundle_digest"] == bundle.digest


@pytest.mark.parametrize("name", shipped)
def test_a_shipped_bundle_is_small_enough_for_git(name: str) -> None:
    folder = Path(str(files("ltdi_bundles") / name))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 10_000_000


def digits_episode(chance: np.random.Generator, shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a support set and of queries among scikit-learn's digits, class by class."""
    target = load_digits().target
    picked = [chance.permutation(np.flatnonzero(target == digit))[: shots + QUERIES] for digit in range(WAYS)]
    return np.concatenate([row[:shots] for row in picked]), np.concatenate([row[shots:] for row in picked])


@pytest.mark.skipif("omniglot" not in shipped, reason="no bundle named omniglot is shipped")
@pytest.mark.parametrize(("shots", "floor"), [(1, 0.65), (5, 0.85)])
def test_digits_that_no_training_saw_are_told_apart(shots: int, floor: float) -> None:
    bundle, digits, chance = ltdi.load_bundle("omniglot", device="cpu"), load_digits(), np.random.default_rng(0)
    features = bundle.embed(framed(digits.images))
    right = []
    for _ in range(EPISODES):
        support, queries = digits_episode(chance, shots)
        head = bundle.generate(features[support], [str(d) for d in digits.target[support]], fallback="none")
        answers = np.array(head.predict(features[queries]))
        right.append((answers == digits.target[queries].astype(str)).mean())
    assert np.mean(right) > floor


@pytest.mark.skipif("omniglot" not in shipped, reason="no bundle named omniglot is shipped")
def test_the_views_of_one_example_of_each_digit_are_worth_more_than_none() -> None:
    bundle, digits, chance = ltdi.load_bundle("omniglot", device="cpu"), load_digits(), np.random.default_rng(1)
    images = framed(digits.images)
    features, gains = bundle.embed(images), []
    for _ in range(EPISODES):
        support, queries = digits_episode(chance, 1)
        labels, truth = [str(d) for d in digits.target[support]], digits.target[queries].astype(str)
        seen, blind = (bundle.generate(given[support], labels, fallback="none") for given in (images, features))
        right, blind_right = ((np.array(head.predict(features[queries])) == truth).mean() for head in (seen, blind))
        gains.append(right - blind_right)
    assert np.mean(gains) > 0
