"""Trains what reads unlabelled pools, on tasks with pools of every kind, and fits its settings on validation classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi import baselines
from ltdi.bundle import CARD, Bundle
from ltdi.files import read_safetensors, write_json, write_safetensors
from ltdi.generator import ResidualGenerator, generate_weights, generate_with_pool
from ltdi.pool import NODES, ROUNDS, PoolConfig, PoolReader, answer, soft_k_means
from training.episodes import Protocol
from training.export import TEMPERATURES
from training.image_pools import POOL_KINDS, PoolTasks, draw_pool_tasks, pool_protocol
from training.meta_train import MetaTrainConfig
from training.statistics import statistics_of_episodes

SHOTS = (1, 2, 5, 10)
SIZES = (20, 150)  # of pools, drawn in the logarithm
WAYS, QUERIES, TASKS = 5, 8, 32
READER = "pool.safetensors"
SHARPNESS, WEIGHTS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2), (0.05, 0.1, 0.2, 0.4, 0.8)
ITEM_WEIGHTS, ITEM_WORTHS, ITEM_SHARES = (0.1, 0.3, 0.6), (0.05, 0.15, 0.4), (0.0, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def train_pool_reader(
    config: MetaTrainConfig, generator: ResidualGenerator, banks: Sequence[Tensor], rounds: int, steps: int,
    note: Callable[[int, float], None] = lambda step, loss: None,
) -> PoolReader:
    """A reader for a trained generator, which stays as it is.

    The loss is the cross entropy of queries under the class means that reading gives, logits at a learned temperature, on tasks
    of training classes and of further ones: balanced, unbalanced and polluted pools of any size, one to ten examples a class.

    Args:
        banks: `[classes, drawings, S, D]` of training classes, then of further ones; a step takes one, the first in a share
            `config.plain` of steps.
        note: told of each step and its loss.
    """
    reader, temperature = PoolReader(rounds), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([*reader.parameters(), temperature], lr=0.05)
    metric = generator.metric.clone()  # of no inference
    for step in range(steps):
        chance = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2 + 1e-4
        tasks, shots = _random_tasks(banks, config.plain, chance)
        shown, counts, leading = (part.clone() for part in _led(generator, tasks, chance))
        _, means = reader(shown, counts, tasks.pool, metric, leading)
        scale = temperature[int(shots > 1)].exp() / config.temperatures[int(shots > 1)]
        logits = answer(means, tasks.queries, metric) * scale
        loss = F.cross_entropy(logits.flatten(0, 1), tasks.target.repeat(len(logits)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        note(step + 1, loss.item())
    return reader.requires_grad_(False).eval()


def _random_tasks(banks: Sequence[Tensor], plain: float, chance: torch.Generator) -> tuple[PoolTasks, int]:
    place = 0
    if len(banks) > 1 and float(torch.rand((), generator=chance)) >= plain:
        place = int(torch.randint(1, len(banks), (1,), generator=chance))
    bank = banks[place]
    most = bank.shape[1] - QUERIES - 2  # at least two images of each class are left for the pool
    possible = [k for k in SHOTS if k <= most]
    shots = possible[int(torch.randint(len(possible), (1,), generator=chance))]
    low, high = (math.log(size) for size in SIZES)
    size = round(math.exp(low + (high - low) * float(torch.rand((), generator=chance))))
    kind = replace(POOL_KINDS[int(torch.randint(len(POOL_KINDS), (1,), generator=chance))], size=size)
    some = torch.randperm(len(bank), generator=chance)[: 4 * WAYS]
    seed = int(torch.randint(2**31, (1,), generator=chance))
    protocol = Protocol(WAYS, shots, queries=QUERIES, episodes=TASKS, seed=seed)
    return next(draw_pool_tasks(bank[some], protocol, kind, TASKS)), shots


@torch.no_grad()
def _led(generator: ResidualGenerator, tasks: PoolTasks, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Class means, counts, and the pool's logits under heads that are generated without it."""
    statistics = statistics_of_episodes(tasks.support, tasks.views)
    noise = torch.randn(len(tasks.support), 1, *generator.noise_shape(WAYS), generator=chance)
    heads = generate_weights(generator, generator.describe(statistics), noise)
    return generator.shown(statistics), statistics.counts, baselines.logits(heads, tasks.pool)


@torch.inference_mode()
def fit_pool(generator: ResidualGenerator, validation: Tensor, episodes: int = 200) -> PoolConfig:
    """The settings with the best accuracy on validation tasks with pools of every kind, for one and for five examples a class.

    Args:
        generator: with its reader and its calibration; its settings of pools are changed on the way.
        validation: a bank of validation classes.
    """
    chosen = PoolConfig(rounds=len(generator.pool_reader.lead))
    for node, shots in enumerate(NODES):
        protocol, size = pool_protocol(validation, shots, episodes, seed=4)
        tasks = [task for kind in POOL_KINDS for task in draw_pool_tasks(validation, protocol, replace(kind, size=size))]
        closed = _best(chosen, node, ("sharpness", "weight"), (SHARPNESS, WEIGHTS), partial(_closed_form, generator, tasks))
        names = ("item_weight", "item_worth", "share")
        chosen = _best(closed, node, names, (ITEM_WEIGHTS, ITEM_WORTHS, ITEM_SHARES), partial(_generated, generator, tasks))
        generator.pool = chosen
        chosen = _at(chosen, node, _temperatures(generator, tasks))
    return chosen


def _best(
    config: PoolConfig, node: int, names: Sequence[str], grids: Sequence[Sequence[float]], score: Callable[[PoolConfig], float]
) -> PoolConfig:
    """`config` with the values of one node at the point of the grid that scores best; the first of equals."""
    tried = [_at(config, node, dict(zip(names, values, strict=True))) for values in itertools.product(*grids)]
    return max(tried, key=score)


def _at(config: PoolConfig, node: int, values: dict[str, float]) -> PoolConfig:
    changed = {}
    for name, value in values.items():
        both = list(getattr(config, name))
        both[node] = value
        changed[name] = tuple(both)
    return replace(config, **changed)


def _closed_form(generator: ResidualGenerator, tasks: Sequence[PoolTasks], config: PoolConfig) -> float:
    found = []
    for task in tasks:
        statistics = statistics_of_episodes(task.support, task.views)
        means = soft_k_means(generator.shown(statistics), statistics.counts, task.pool, generator.metric, config)
        found.append(right(answer(means, task.queries, generator.metric), task))
    return float(torch.cat(found).mean())


def _temperatures(generator: ResidualGenerator, tasks: Sequence[PoolTasks]) -> dict[str, float]:
    """Those with the least cross entropy, of generated heads and of baselines."""
    answers = [heads_with_pool(generator, task) for task in tasks]
    return {
        name: min(TEMPERATURES, key=lambda t, of=place: sum(_cross_entropy(a[of], task, t) for a, task in zip(answers, tasks, strict=True)))
        for place, name in enumerate(("temperature", "baseline_temperature"))
    }


def _cross_entropy(heads: Tensor, tasks: PoolTasks, temperature: float) -> float:
    logits = baselines.logits(heads, tasks.queries).flatten(0, 1) / temperature
    return float(F.cross_entropy(logits, tasks.target.repeat(len(heads))))


def _generated(generator: ResidualGenerator, tasks: Sequence[PoolTasks], config: PoolConfig) -> float:
    generator.pool = config
    return float(torch.cat([right(logits_with_pool(generator, task), task) for task in tasks]).mean())


def logits_with_pool(generator: ResidualGenerator, tasks: PoolTasks) -> Tensor:
    """Logits `[B, N Q, N]` of heads that are generated with the pool."""
    return baselines.logits(heads_with_pool(generator, tasks)[0], tasks.queries)


def heads_with_pool(generator: ResidualGenerator, tasks: PoolTasks) -> tuple[Tensor, Tensor]:
    """Heads that are generated with the pool, and their baselines, `[B, N, D + 1]` each."""
    batch, ways = tasks.support.shape[:2]
    noise = torch.randn(batch, 1, *generator.noise_shape(ways), generator=torch.Generator().manual_seed(0))
    return generate_with_pool(generator, statistics_of_episodes(tasks.support, tasks.views), tasks.pool, noise)


def right(logits: Tensor, tasks: PoolTasks) -> Tensor:
    """Accuracy of each task, `[B]`, as a share."""
    return (logits.argmax(-1) == tasks.target).float().mean(-1)



def save_reader(reader: PoolReader, folder: Path) -> None:
    """Keep a reader beside its generator."""
    write_safetensors(folder / READER, dict(reader.state_dict()), {"format": "ltdi.pool"})


def attach_reader(generator: ResidualGenerator, config: PoolConfig | None, folder: Path) -> None:
    """Give a generator the reader that lies beside it, where a bundle has settings for it and one is there."""
    if config is None or not (folder / READER).exists():
        return
    generator.pool, generator.pool_reader = config, PoolReader(config.rounds)
    generator.pool_reader.load_state_dict(read_safetensors(folder / READER, "reader of pools")[0])
    generator.pool_reader.requires_grad_(False)


def add_reader(
    bundle: Bundle, config: MetaTrainConfig, banks: Sequence[Tensor], validation: Tensor, steps: int, folder: Path
) -> str:
    """Train a reader for a bundle, fit its settings, and write the bundle; its heads without a pool stay what they were.

    Returns:
        The new digest.
    """
    bundle.generator.pool_reader = None
    reader = train_pool_reader(config, bundle.generator, banks, ROUNDS, steps)
    bundle.generator.pool_reader = reader
    bundle.generator.pool = fit_pool(bundle.generator, validation)
    bundle.config = replace(bundle.config, pool=bundle.generator.pool)
    before, card, bundle.card = bundle.digest, bundle.card, {}
    (folder / CARD).unlink(missing_ok=True)  # a bundle without a card loads, one with another's does not
    digest = bundle.save(folder)
    if card:
        bundle.card = {"digest_before_pools": before} | card | {"bundle_digest": digest}
        write_json(folder / CARD, bundle.card)
    return digest
