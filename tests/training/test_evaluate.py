"""Episodes, comparators, pairing and calibration."""

from __future__ import annotations

import pytest
import torch

from ltdi import baselines
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.generator import describe
from training.comparators import BaseStatistics
from training.episodes import Protocol, draw
from training.evaluate import Bank, Estimate, accuracies, choose, columns, evaluate_column
from training.export import calibrate, fit_metric
from training.meta_train import MetaTrainConfig, initial_generator, statistics


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    means = torch.randn(30, 1, 16, generator=chance)
    return means + 0.7 * torch.randn(30, 20, 16, generator=chance)


def test_episodes_of_a_seed_are_the_same_and_support_never_meets_queries(features: torch.Tensor) -> None:
    protocol = Protocol(5, 3, queries=4, episodes=7, seed=3)
    first, second = list(draw(features, protocol, batch=4)), list(draw(features, protocol, batch=4))
    assert [len(e.support) for e in first] == [4, 3]
    assert all(
        torch.equal(a.support, b.support) and torch.equal(a.query, b.query) for a, b in zip(first, second, strict=True)
    )
    for episode in first:
        gaps = torch.cdist(episode.support.flatten(1, 2), episode.queries)
        assert (gaps > 0).all()


def test_an_estimate_is_mean_and_interval() -> None:
    estimate = Estimate.of(torch.tensor([0.9, 1.0, 0.8, 0.9]))
    assert estimate.mean == pytest.approx(90)
    assert estimate.half_width == pytest.approx(1.96 * 8.1650 / 2, rel=1e-3)


def test_an_untrained_generator_equals_its_baseline_in_every_episode(features: torch.Tensor) -> None:
    generator = initial_generator(MetaTrainConfig(denoiser=ClassTokensConfig(width=16)), features).eval()
    bank = Bank(features, features, BaseStatistics.of(features))
    column = evaluate_column(Protocol(5, 1, episodes=20), bank, {0: generator}, bank, validation_episodes=10)
    assert column["accuracy"]["generated, seed 0"] == pytest.approx(column["accuracy"]["class means, L2"])
    assert column["other_body"]["accuracy"] == column["accuracy"][column["closed_form"]]


def test_validation_chooses_the_setting_that_is_best_on_it(features: torch.Tensor) -> None:
    base, protocol = BaseStatistics.of(features), Protocol(5, 5, queries=5, episodes=30, seed=1)
    best = next(iter(choose(features, base, protocol).values()))
    means = accuracies(
        {
            "best": lambda e: best.logits(e, base),
            "means": lambda e: baselines.logits(baselines.class_means(e.support), e.queries),
        },
        features,
        protocol,
    )
    assert means["best"].mean() >= means["means"].mean()


def test_calibration_gives_strength_zero_to_a_generator_that_harms(features: torch.Tensor) -> None:
    generator = initial_generator(MetaTrainConfig(denoiser=ClassTokensConfig(width=16)), features).eval()
    torch.nn.init.normal_(generator.denoiser.answer.bias, std=30.0)
    torch.nn.init.normal_(generator.denoiser.answer.weight, std=30.0)
    rows = calibrate(generator, features, episodes=20).rows
    assert [row.shots for row in rows] == [1, 2, 5, 10]
    assert all(row.strength == 0 for row in rows)


def test_the_table_has_the_four_columns() -> None:
    assert [p.name for p in columns()] == ["5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot"]


def test_the_baseline_is_class_means_at_one_shot_and_lda_in_the_fitted_metric_from_two(features: torch.Tensor) -> None:
    generator = initial_generator(MetaTrainConfig(denoiser=ClassTokensConfig(width=16)), features).eval()
    support = features[:5, :3].unsqueeze(0)
    assert torch.allclose(describe(generator, statistics(support))[1], baselines.class_means(support), atol=1e-5)
    shrink = fit_metric(generator, features, features, episodes=10)
    within = BaseStatistics.of(features).within
    covariance = (1 - shrink) * within + shrink * within.diagonal().mean() * torch.eye(16)
    expected = baselines.lda(support, covariance) * 2 * within.diagonal().mean()
    assert torch.allclose(describe(generator, statistics(support))[1], expected, rtol=1e-3, atol=1e-3)
    one = support[:, :, :1]
    assert torch.equal(describe(generator, statistics(one))[1], baselines.class_means(one))
