"""Negative controls: heads that should be worth nothing, or no more than the baseline."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ltdi import baselines
from ltdi.generator import ResidualGenerator, generate_weights
from training.episodes import Episodes, Protocol, draw
from training.evaluate import Estimate, Method, accuracies, generated
from training.statistics import statistics_of_episodes

TASKS = 200  # of training classes, for the mean training head


def other_support(method: Method) -> Method:
    """Heads of the next task's support, asked about this task's queries."""

    def logits(episodes: Episodes) -> Tensor:
        views = None if episodes.views is None else episodes.views.roll(1, 0)
        return method(Episodes(episodes.support.roll(1, 0), episodes.query, views))

    return logits


def shuffled_labels(method: Method, seed: int = 0) -> Method:
    """Heads of support sets whose examples change places at random, over all classes of the task."""

    def logits(episodes: Episodes) -> Tensor:
        batch, ways, shots, size = episodes.support.shape
        order = torch.rand(batch, ways * shots, generator=torch.Generator().manual_seed(seed)).argsort(1)
        rows = torch.arange(batch).unsqueeze(1)
        mixed = episodes.support.flatten(1, 2)[rows, order].view(batch, ways, shots, size)
        views = episodes.views
        if views is not None:
            views = views.flatten(1, 2)[rows, order].view(views.shape)
        return method(Episodes(mixed, episodes.query, views))

    return logits


def nearest_training_head(train: Tensor) -> Method:
    """Each class answered by the many-shot head of the training class that its examples are nearest to.

    Args:
        train: `[classes, drawings, D]`.
    """
    heads = baselines.nearest_mean(train.mean(1).unsqueeze(0))

    def logits(episodes: Episodes) -> Tensor:
        means = episodes.support.mean(2)
        nearest = baselines.logits(heads.expand(len(means), -1, -1), means).argmax(-1)
        return baselines.logits(heads[0][nearest], episodes.queries)

    return logits


def mean_training_head(generator: ResidualGenerator, bank: Tensor, ways: int, shots: int) -> Method:
    """The mean of the heads that are generated for tasks of training classes, for every task.

    Args:
        bank: of training classes, as `training.episodes.draw` takes it.
    """
    heads = []
    for episodes in draw(bank, Protocol(ways, shots, queries=1, episodes=TASKS, seed=4)):
        heads.append(_weights(generator, episodes)[0])
    mean = torch.cat(heads).mean(0, keepdim=True)
    return lambda episodes: baselines.logits(mean.expand(len(episodes.support), -1, -1), episodes.queries)


def noisy_baseline(generator: ResidualGenerator, seed: int = 0) -> Method:
    """The baseline with noise of the generated residual's norm, row by row."""

    def logits(episodes: Episodes) -> Tensor:
        weights, base = _weights(generator, episodes)
        residual = (weights - base)[..., :-1]
        noise = torch.randn(residual.shape, generator=torch.Generator().manual_seed(seed))
        noise = noise * (residual.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
        return baselines.logits(torch.cat([base[..., :-1] + noise, base[..., -1:]], dim=-1), episodes.queries)

    return logits


def _weights(generator: ResidualGenerator, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Generated heads and their baselines, `[B, N, D + 1]`."""
    batch, ways = episodes.support.shape[:2]
    tasks = generator.describe(statistics_of_episodes(episodes.support, episodes.views))
    noise = torch.randn(batch, 1, *generator.noise_shape(ways), generator=torch.Generator().manual_seed(0))
    return generate_weights(generator, tasks, noise), tasks.base


@torch.inference_mode()
def negative_controls(generator: ResidualGenerator, bank: Tensor, train: Tensor, protocol: Protocol) -> dict[str, dict]:
    """Accuracy of each control on the episodes of a protocol, ready for JSON.

    Args:
        bank: what is measured on.
        train: the bank of the training classes.
    """
    method = generated(generator)
    found = {
        "generated": method,
        "support of another task": other_support(method),
        "shuffled labels": shuffled_labels(method),
        "mean training head": mean_training_head(generator, train, protocol.ways, protocol.shots),
        "nearest training head": nearest_training_head(train[:, :, 0]),
        "baseline with noise of the residual's norm": noisy_baseline(generator),
        "baseline": lambda e: baselines.logits(
            generator.describe(statistics_of_episodes(e.support, e.views)).base, e.queries
        ),
    }
    measured = accuracies(found, bank, replace(protocol, within=False))
    return {name: vars(Estimate.of(values)) for name, values in measured.items()}
