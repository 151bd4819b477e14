"""Episodes, comparators, pairing and calibration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltdi import baselines
from ltdi.bodies.loader import BodyConfig, build_body
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.generator import Calibration, generate_weights, strangeness
from training.cards import markdown_table
from training.comparators import BaseStatistics, comparators_with_views
from training.controls import negative_controls
from training.data.omniglot import OneShotRuns
from training.episodes import Protocol, draw, oneshot_episodes
from training.evaluate import Bank, Estimate, accuracies, choose, columns, evaluate_column, evaluate_runs
from training.export import calibrate, fit_metric
from training.meta_train import MetaTrainConfig, initial_generator
from training.statistics import statistics_of_episodes

CONFIG = MetaTrainConfig(denoiser=ClassTokensConfig(width=16, heads=2))
SILENT = replace(CONFIG, ridge_features=1e9)


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


def test_a_generator_that_says_nothing_equals_its_baseline_in_every_episode(features: torch.Tensor) -> None:
    generator = initial_generator(SILENT, features.unsqueeze(2)).eval()
    bank = Bank(features, features, BaseStatistics.of(features))
    column = evaluate_column(Protocol(5, 1, episodes=20), bank, {0: generator}, validation_episodes=10)
    assert column["accuracy"]["generated, seed 0"] == pytest.approx(column["accuracy"]["class means, L2"])
    assert "closed_form_on_views" not in column


def with_views(features: torch.Tensor) -> torch.Tensor:
    """A bank whose views have the class's mean for their mean: all that there is to know."""
    mean = features.mean(1, keepdim=True).expand_as(features)
    return torch.stack([features, mean, (features - mean).abs()], dim=2)


def test_a_fresh_generator_gains_by_views_and_so_can_a_closed_form(features: torch.Tensor) -> None:
    generator = initial_generator(SILENT, with_views(features), torch.zeros(1, 2, 3)).eval()
    bank = Bank(with_views(features), with_views(features), BaseStatistics.of(features))
    column = evaluate_column(Protocol(5, 1, queries=5, episodes=20), bank, {0: generator}, validation_episodes=10)
    accuracy = column["accuracy"]
    assert accuracy["generated from features"] == pytest.approx(accuracy["class means, L2"])
    assert accuracy["generated, seed 0"]["mean"] > accuracy["generated from features"]["mean"] + 3
    assert "views, share" in column["closed_form_on_views"] or "views (share" in column["closed_form_on_views"]
    assert column["from_features"]["mean"] < column["difference"]["mean"]
    assert column["beyond_estimate"]["mean"] == pytest.approx(0, abs=0.3)  # a fresh chain answers with the estimate


def test_a_closed_form_on_views_moves_the_examples_towards_them(features: torch.Tensor) -> None:
    base = BaseStatistics.of(features)
    halfway = next(c for c in comparators_with_views(base) if c.name == "class means, L2, views (share 0.5)")
    episodes = next(draw(with_views(features), Protocol(5, 1, queries=5, episodes=20)))
    moved = replace(episodes, support=(episodes.support + episodes.views[..., 0, :]) / 2)
    expected = baselines.logits(baselines.class_means(moved.support), episodes.queries)
    torch.testing.assert_close(halfway.logits(episodes, base), expected)


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
    generator = initial_generator(CONFIG, features.unsqueeze(2)).eval()
    torch.nn.init.normal_(generator.denoiser.answer.bias, std=30.0)
    torch.nn.init.normal_(generator.denoiser.answer.weight, std=30.0)
    rows = calibrate(generator, features, episodes=20).rows
    assert [row.shots for row in rows] == [1, 2, 5, 10]
    assert all(row.strength == 0 for row in rows)


def test_the_table_has_the_four_columns() -> None:
    assert [p.name for p in columns()] == ["5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot"]


def test_the_baseline_is_class_means_at_one_shot_and_lda_in_the_fitted_metric_from_two(features: torch.Tensor) -> None:
    generator = initial_generator(CONFIG, features.unsqueeze(2)).eval()
    support = features[:5, :3].unsqueeze(0)
    assert torch.allclose(generator.describe(statistics_of_episodes(support)).base, baselines.class_means(support), atol=1e-5)
    shrink = fit_metric(generator, features, features, episodes=10)
    within = BaseStatistics.of(features).within
    covariance = (1 - shrink) * within + shrink * within.diagonal().mean() * torch.eye(16)
    expected = baselines.lda(support, covariance) * 2 * within.diagonal().mean()
    assert torch.allclose(generator.describe(statistics_of_episodes(support)).base, expected, rtol=1e-3, atol=1e-3)
    one = support[:, :, :1]
    assert torch.equal(generator.describe(statistics_of_episodes(one)).base, baselines.class_means(one))


def test_tasks_within_a_group_hold_classes_of_one_group_that_is_large_enough(features: torch.Tensor) -> None:
    groups = torch.arange(30) // 8  # the last has six classes
    protocol = Protocol(7, 1, queries=2, episodes=40, within=True)
    marked = torch.arange(30.0).reshape(30, 1, 1).expand(30, 20, 2)
    seen = torch.cat([e.support[:, :, 0, 0].long() for e in draw(marked, protocol, groups=groups)])
    assert (groups[seen] == groups[seen[:, :1]]).all() and set(groups[seen].flatten().tolist()) == {0, 1, 2}
    assert all(len(set(task)) == 7 for task in seen.tolist())
    assert protocol.name == "7-way 1-shot, one group"
    with pytest.raises(ValueError, match="no group has 9 classes"):
        next(draw(marked, Protocol(9, 1, within=True), groups=groups))


def test_controls_know_nothing_and_noise_costs_accuracy(features: torch.Tensor) -> None:
    generator = initial_generator(CONFIG, with_views(features), torch.zeros(1, 2, 3)).eval()
    bank = with_views(features)
    found = negative_controls(generator, bank, bank, Protocol(5, 2, queries=5, episodes=60))
    accuracy = {name: value["mean"] for name, value in found.items()}
    for name in ("support of another task", "shuffled labels", "mean training head"):
        assert abs(accuracy[name] - 20) < 15, name
    assert accuracy["generated"] > 70 and accuracy["nearest training head"] > 70  # measured on the training classes
    assert accuracy["baseline with noise of the residual's norm"] < accuracy["baseline"]


def test_official_runs_become_episodes_with_queries_in_the_order_of_their_classes() -> None:
    chance = torch.Generator().manual_seed(0)
    support = torch.randint(256, (3, 4, 16, 16), generator=chance, dtype=torch.uint8)
    target = torch.stack([torch.randperm(4, generator=chance) for _ in range(3)])
    queries = support.gather(1, target[:, :, None, None].expand(-1, -1, 16, 16))  # each item is its class's example
    body = build_body(BodyConfig(channels=4, image_size=16)).eval()
    episodes = oneshot_episodes(body, OneShotRuns(support, queries, target), torch.eye(3)[None, :2])
    assert episodes.support.shape == episodes.query.shape == (3, 4, 1, body.feature_size)
    assert torch.allclose(episodes.support, episodes.query) and episodes.views.shape[3] == 2
    assert torch.allclose(episodes.views[:, :, :, 0], episodes.support, atol=1e-5)


def test_errors_on_runs_stand_beside_the_best_closed_form(features: torch.Tensor) -> None:
    generator = initial_generator(SILENT, features.unsqueeze(2)).eval()
    bank = Bank(features, features, BaseStatistics.of(features))
    runs = next(draw(features, Protocol(5, 1, queries=1, episodes=20)))
    found = evaluate_runs(runs, bank, {0: generator}, validation_episodes=10)
    assert found["error_by_seed"]["0"] > 0 and found["error"] >= 0 and found["closed_form"]


def test_a_rival_body_bears_closed_forms_of_its_own(features: torch.Tensor) -> None:
    generator = initial_generator(SILENT, features.unsqueeze(2)).eval()
    bank = Bank(features, features, BaseStatistics.of(features))
    clear = features.mean(1, keepdim=True).expand_as(features)
    rival = Bank(clear, clear, BaseStatistics.of(features))
    column = evaluate_column(Protocol(5, 1, episodes=20), bank, {0: generator}, validation_episodes=10, rival=rival)
    assert column["rival"]["accuracy"]["mean"] == 100
    own = column["accuracy"]["generated, seed 0"]["mean"]
    assert column["rival"]["difference_by_seed"]["0"]["mean"] == pytest.approx(own - 100)
    assert "on a body trained for class means" in markdown_table([column])


def test_a_task_of_another_domain_gets_its_baseline(features: torch.Tensor) -> None:
    generator = initial_generator(CONFIG, with_views(features), torch.zeros(1, 2, 3)).eval()
    generator.calibration = calibrate(generator, with_views(features), episodes=20, familiar=0.95)
    assert all(0 < row.familiar < 5 for row in generator.calibration.rows)
    generator.calibration = Calibration(tuple(replace(row, strength=1.0) for row in generator.calibration.rows))
    own = next(draw(with_views(features), Protocol(5, 5, queries=5, episodes=40)))
    away = replace(own, support=own.support + 3, query=own.query + 3)
    share = []
    for episodes in (own, away):
        tasks = generator.describe(statistics_of_episodes(episodes.support, episodes.views))
        weights = generate_weights(generator, tasks, torch.zeros(40, 1, 5, 17))
        share.append(float((weights == tasks.base).all(-1).all(-1).float().mean()))
    assert share[0] < 0.2 and share[1] == 1


def test_strangeness_is_the_squared_length_of_what_classes_have_in_common() -> None:
    means = torch.randn(500, 5, 16, generator=torch.Generator().manual_seed(0))
    assert abs(float(strangeness(means).mean())) < 0.2
    assert float(strangeness(means + 0.5).mean()) == pytest.approx(16 * 0.25, abs=0.3)
    assert torch.allclose(strangeness(torch.ones(1, 3, 4)), torch.tensor([4.0]))


def test_tasks_of_more_classes_than_validation_has_are_chosen_for_on_all_of_these(features: torch.Tensor) -> None:
    generator = initial_generator(SILENT, features.unsqueeze(2)).eval()
    bank = Bank(features[:6], features, BaseStatistics.of(features))
    column = evaluate_column(Protocol(8, 1, episodes=10), bank, {0: generator}, validation_episodes=10)
    assert column["protocol"] == "8-way 1-shot" and column["closed_form"]
