"""Image tasks with an unlabelled pool: how they are drawn, who reads them, and their table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi import load_bundle
from ltdi.bodies.loader import BodyConfig
from ltdi.bundle import Bundle, BundleConfig, build_body
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.generator import Calibration, CalibrationRow, ResidualGenerator
from ltdi.pool import PoolConfig
from training.cards import pool_table
from training.comparators import BaseStatistics
from training.episodes import Protocol
from training.image_pools import PoolKind, PoolSetting, draw_pool_tasks, k_means_logits
from training.meta_train import MetaTrainConfig, initial_generator
from training.pool_reader import add_reader, attach_reader, fit_pool, right, save_reader, train_pool_reader
from training.pool_table import pool_row

CONFIG = MetaTrainConfig(denoiser=ClassTokensConfig(width=16, heads=2))
BALANCED = PoolKind(size=30, even=True, polluted=0.0)


@pytest.fixture(scope="module")
def bank() -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(12, 1, 16, generator=chance) + 1.2 * torch.randn(12, 60, 16, generator=chance)
    return torch.stack([features, features, torch.zeros_like(features)], dim=2)


def generator_of(bank: torch.Tensor) -> ResidualGenerator:
    generator = initial_generator(CONFIG, bank, torch.zeros(1, 2, 3)).eval().requires_grad_(False)
    generator.calibration = Calibration((CalibrationRow(1, 0.5),))
    return generator


def test_pools_hold_their_shares_and_no_image_of_support_or_queries() -> None:
    number = torch.arange(12 * 60.0).reshape(12, 60, 1, 1).expand(-1, -1, 3, -1)
    kind = PoolKind(size=40, even=False, polluted=0.25)
    (tasks,) = draw_pool_tasks(number, Protocol(5, 2, queries=3, episodes=30), kind)
    for support, queries, pool in zip(tasks.support, tasks.queries, tasks.pool, strict=True):
        own = set((support // 60).flatten().tolist())
        seen = torch.cat([support.flatten(), queries.flatten(), pool.flatten()])
        assert len(set(seen.tolist())) == len(seen) and len(own) == 5
        assert sum(item not in own for item in (pool // 60).flatten().tolist()) == 10


def test_where_images_run_out_the_pool_repeats_its_own_and_never_support_or_queries() -> None:
    number = torch.arange(12 * 20.0).reshape(12, 20, 1, 1)
    (tasks,) = draw_pool_tasks(number, Protocol(5, 2, queries=3, episodes=30), PoolKind(size=60))
    assert tasks.views is None
    for support, queries, pool in zip(tasks.support, tasks.queries, tasks.pool, strict=True):
        assert not set(pool.flatten().tolist()) & set(torch.cat([support.flatten(), queries.flatten()]).tolist())


def test_soft_k_means_without_weight_is_class_means_and_with_it_better(bank: torch.Tensor) -> None:
    base = BaseStatistics.of(bank[:, :, 0])
    (tasks,) = draw_pool_tasks(bank, Protocol(5, 1, queries=10, episodes=60), BALANCED)
    alone = k_means_logits(tasks, PoolSetting(0.0, 1.0, 0.0), base)
    means, queries = tasks.support.mean(2), tasks.queries
    torch.testing.assert_close(alone.argmax(-1), torch.cdist(queries, means).argmin(-1))
    for shrink in (None, 0.8):
        assert float(right(k_means_logits(tasks, PoolSetting(0.0, 0.4, 0.4, shrink), base), tasks).mean()) > float(
            right(alone, tasks).mean()
        ) + 0.02


def test_a_trained_reader_helps_and_stands_in_the_table(bank: torch.Tensor, tmp_path: Path) -> None:
    generator, fresh = generator_of(bank), generator_of(bank)
    losses: list[float] = []
    generator.pool_reader = train_pool_reader(CONFIG, generator, [bank, bank.flip(0)], 3, 40, lambda step, loss: losses.append(loss))
    assert len(losses) == 40 and sum(losses[-10:]) < sum(losses[:10])
    assert not torch.equal(generator.pool_reader.lead, torch.zeros(3, 2))
    assert all(torch.equal(a, b) for a, b in zip(generator.denoiser.parameters(), fresh.denoiser.parameters(), strict=True))
    generator.pool = fit_pool(generator, bank, episodes=40)
    assert generator.pool.rounds == 3
    save_reader(generator.pool_reader, tmp_path)
    attach_reader(fresh, generator.pool, tmp_path)
    row = pool_row({0: generator, 1: fresh}, bank[:, :, 0], bank, bank, Protocol(5, 1, queries=5, episodes=60), BALANCED, 40)
    accuracy = {name: value["mean"] for name, value in row["accuracy"].items()}
    assert accuracy["seed 0"] > accuracy["generated, no pool"] + 1
    assert row["accuracy"]["seed 0"] == row["accuracy"]["seed 1"]
    assert accuracy["soft k-means, any metric"] >= accuracy["generated, no pool"]
    table = pool_table([row])
    assert "30 items, balanced" in table and "minus soft k-means, any metric, seed 1" in table
    attach_reader(without := generator_of(bank), None, tmp_path)
    assert not without.takes_pool


def test_a_bundle_learns_to_take_pools_and_its_other_heads_stay(bank: torch.Tensor, tmp_path: Path) -> None:
    body = BodyConfig("photos", widths=(4, 6, 8, 16), image_size=16)
    config = BundleConfig("made", body=body, class_tokens=CONFIG.denoiser, head_sizes=(16, 0), views=1)
    bundle = Bundle(replace(config, calibration=Calibration((CalibrationRow(1, 0.5),))), build_body(body), generator_of(bank))
    before = bundle.save(tmp_path / "made")
    bundle.card = {"bundle_digest": before}
    support, labels = bank[:2, :3, 0].flatten(0, 1), ["a"] * 3 + ["b"] * 3
    plain = load_bundle(tmp_path / "made", device="cpu").generate(support, labels)
    digest = add_reader(bundle, CONFIG, [bank], bank, 3, tmp_path / "made")
    taught = load_bundle(tmp_path / "made", device="cpu")
    assert taught.digest == digest != before and taught.card["digest_before_pools"] == before
    assert taught.takes_pool and isinstance(taught.config.pool, PoolConfig)
    assert torch.equal(taught.generate(support, labels).layers[0].weight, plain.layers[0].weight)
    with_pool = taught.generate(support, labels, unlabelled=bank[:2, 3:20, 0].flatten(0, 1))
    assert not torch.allclose(with_pool.layers[0].weight, plain.layers[0].weight, atol=1e-4)
