"""Measures heads that are generated with an unlabelled pool against soft k-means: same tasks, paired, with intervals."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ltdi import baselines
from ltdi.generator import ResidualGenerator, generate_weights
from training.comparators import BaseStatistics
from training.episodes import Protocol
from training.evaluate import Estimate
from training.image_pools import PoolKind, PoolSetting, PoolTasks, draw_pool_tasks, k_means_logits, settings
from training.pool_reader import logits_with_pool, right
from training.statistics import statistics_of_episodes

PLAIN, ANY = "soft k-means", "soft k-means, any metric"
ALONE = "generated, no pool"


@torch.inference_mode()
def pool_row(
    generators: dict[int, ResidualGenerator], train: Tensor, validation: Tensor, test: Tensor, protocol: Protocol,
    kind: PoolKind, validation_episodes: int = 200,
) -> dict:
    """Generated heads and soft k-means on the same tasks with pools, settings of the latter chosen on validation; for JSON.

    Args:
        generators: by training seed, each with its reader.
        train: `[classes, drawings, D]`, whose covariance the comparators may use.
        validation, test: banks.
    """
    base = BaseStatistics.of(train)
    drawn = list(draw_pool_tasks(validation, replace(protocol, episodes=validation_episodes, seed=1), kind))
    found = settings(drawn[0].views is not None)
    scores = {one: float(torch.cat([right(k_means_logits(t, one, base), t) for t in drawn]).mean()) for one in found}
    closed = {
        PLAIN: max((one for one in found if one.shrink is None), key=scores.__getitem__),
        ANY: max(found, key=scores.__getitem__),
    }
    first = next(iter(generators.values()))
    methods = {f"seed {n}": (lambda t, g=g: logits_with_pool(g, t)) for n, g in generators.items()}
    methods |= {name: (lambda t, s=s: k_means_logits(t, s, base)) for name, s in closed.items()}
    methods[ALONE] = lambda t: _without_pool(first, t)
    kept: dict[str, list[Tensor]] = {name: [] for name in methods}
    for tasks in draw_pool_tasks(test, protocol, kind):
        for name, method in methods.items():
            kept[name].append(right(method(tasks), tasks))
    return _summary(protocol, kind, closed, {name: torch.cat(values) for name, values in kept.items()}, list(generators))


def _summary(
    protocol: Protocol, kind: PoolKind, closed: dict[str, PoolSetting], measured: dict[str, Tensor], seeds: list[int]
) -> dict:
    def differences(name: str) -> dict[str, dict]:
        return {str(n): vars(Estimate.of(measured[f"seed {n}"] - measured[name])) for n in seeds}

    return {
        "protocol": protocol.name,
        "pool": vars(kind),
        "settings": {name: vars(one) for name, one in closed.items()},
        "accuracy": {name: vars(Estimate.of(values)) for name, values in measured.items()},
        "difference_by_seed": differences(ANY),
        "difference_to_plain_by_seed": differences(PLAIN),
    }


def _without_pool(generator: ResidualGenerator, tasks: PoolTasks) -> Tensor:
    batch, ways = tasks.support.shape[:2]
    noise = torch.randn(batch, 1, *generator.noise_shape(ways), generator=torch.Generator().manual_seed(0))
    described = generator.describe(statistics_of_episodes(tasks.support, tasks.views))
    return baselines.logits(generate_weights(generator, described, noise), tasks.queries)
