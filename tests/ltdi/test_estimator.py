"""The estimate of a class's mean from few examples."""

from __future__ import annotations

import pytest
import torch

from ltdi.embedding import ClassStatistics
from ltdi.estimator import MeanEstimator
from training.estimator import fit_mean_estimator

SPREAD = 0.5


def bank(classes: int, drawings: int, seed: int) -> torch.Tensor:
    """Standard normal class means with noise around; the views' mean has half of the example's noise."""
    chance = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, 1, 4, generator=chance)
    noise = SPREAD * torch.randn(classes, drawings, 4, generator=chance)
    return torch.stack([means + noise, means + noise / 2, noise.abs()], dim=2)


def one_shot(items: torch.Tensor) -> ClassStatistics:
    rows = items[:, 0]
    return ClassStatistics(rows[:, 0], torch.arange(len(rows)), 1, len(rows), rows[:, 1:])


def test_from_features_it_is_the_empirical_bayes_shrinkage_towards_the_base_mean() -> None:
    estimator = fit_mean_estimator(bank(20_000, 2, 0), views=False, ridge=0.0)
    shrinkage = SPREAD**2 / (1 + SPREAD**2)
    torch.testing.assert_close(estimator.weight, -shrinkage * torch.eye(4), atol=0.02, rtol=0)
    torch.testing.assert_close(estimator.bias, torch.zeros(4), atol=0.02, rtol=0)


def test_from_views_it_finds_what_example_and_views_say_together() -> None:
    estimator = fit_mean_estimator(bank(4_000, 2, 0), views=True, ridge=1e-6)
    other = bank(50, 400, 1)
    way = other[:, :, 0].mean(1) - other[:, 0, 0]
    way = way - way.mean(0)
    left = estimator(one_shot(other))[0] - way
    assert left.square().mean() < 0.02 * way.square().mean()  # 2 view - example is the class mean itself


def test_a_domain_of_another_mean_gets_the_same_ways() -> None:
    estimator = fit_mean_estimator(bank(500, 4, 0), views=True, ridge=0.1)
    here = bank(6, 2, 1)
    there = here + torch.tensor([5.0, 0.0, -3.0, 1.0]) * torch.tensor([1.0, 1.0, 0.0]).unsqueeze(1)
    torch.testing.assert_close(estimator(one_shot(there)), estimator(one_shot(here)), atol=1e-4, rtol=1e-4)


def test_a_large_ridge_says_nothing() -> None:
    estimator = fit_mean_estimator(bank(200, 3, 0), views=True, ridge=1e9)
    assert estimator(one_shot(bank(5, 3, 1))).abs().max() < 0.1


@pytest.mark.parametrize(("count", "share"), [(1, 1.0), (2, 0.6), (5, 3 / 11)])
def test_the_way_is_shorter_from_more_examples(count: int, share: float) -> None:
    estimator = MeanEstimator(3, views=False)
    estimator.weight.copy_(torch.eye(3))
    rows = torch.tensor([1.0, -1.0]).repeat_interleave(count).unsqueeze(1).expand(-1, 3)
    statistics = ClassStatistics(rows, torch.arange(2).repeat_interleave(count), 1, 2)
    torch.testing.assert_close(estimator(statistics), share * torch.tensor([[[1.0] * 3, [-1.0] * 3]]))
