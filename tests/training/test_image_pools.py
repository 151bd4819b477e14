"""Image tasks with an unlabelled pool."""

from __future__ import annotations

import pytest
import torch

from ltdi import baselines
from ltdi.denoisers.class_tokens import ClassTokensConfig
from training.cards import pool_table
from training.episodes import Protocol
from training.image_pools import (
    PoolKind,
    PoolSetting,
    draw_pool_tasks,
    generated_with_pool,
    pool_row,
    soft_k_means,
)
from training.meta_train import MetaTrainConfig, generate_batch, initial_generator

CONFIG = MetaTrainConfig(denoiser=ClassTokensConfig(width=16, heads=2))


@pytest.fixture(scope="module")
def bank() -> torch.Tensor:
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(12, 1, 16, generator=chance) + 1.2 * torch.randn(12, 60, 16, generator=chance)
    return torch.stack([features, features, torch.zeros_like(features)], dim=2)


def test_pools_hold_their_shares_and_no_image_of_support_or_queries() -> None:
    number = torch.arange(12 * 60.0).reshape(12, 60, 1, 1).expand(-1, -1, 3, -1)
    kind = PoolKind(size=40, even=False, polluted=0.25)
    (tasks,) = draw_pool_tasks(number, Protocol(5, 2, queries=3, episodes=30), kind)
    for support, queries, pool in zip(tasks.support, tasks.queries, tasks.pool, strict=True):
        own = set((support // 60).flatten().tolist())
        seen = torch.cat([support.flatten(), queries.flatten(), pool.flatten()])
        assert len(set(seen.tolist())) == len(seen) and len(own) == 5
        assert sum(item not in own for item in (pool // 60).flatten().tolist()) == 10


def test_without_weight_the_pool_changes_nothing(bank: torch.Tensor) -> None:
    generator = initial_generator(CONFIG, bank, torch.zeros(1, 2, 3)).eval()
    (tasks,) = draw_pool_tasks(bank, Protocol(5, 1, queries=3, episodes=8), PoolKind(size=20))
    nothing = PoolSetting(0.0, 1.0, 0.0)
    assert torch.allclose(soft_k_means(tasks, nothing), baselines.class_means(tasks.support))
    noise = torch.randn(8, 1, 5, 17, generator=torch.Generator().manual_seed(0))
    alone = generate_batch(generator, tasks.support, noise, tasks.views)
    assert torch.allclose(generated_with_pool(generator, tasks, nothing), alone, atol=1e-4)


def test_a_pool_helps_both_and_stands_in_a_row(bank: torch.Tensor) -> None:
    generator = initial_generator(CONFIG, bank, torch.zeros(1, 2, 3)).eval()
    row = pool_row(
        {0: generator}, bank, bank, Protocol(5, 1, queries=5, episodes=60), PoolKind(size=30, even=True, polluted=0.0), 40
    )
    accuracy = {name: value["mean"] for name, value in row["accuracy"].items()}
    assert accuracy["seed 0"] > accuracy["generated, no pool"] + 1
    assert "30 items, balanced" in pool_table([row])
    assert set(row["difference_by_seed"]) == {"0"} and row["settings"]["soft k-means"]["weight"] > 0
