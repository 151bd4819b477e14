"""Measures generated heads against the closed forms: same episodes, paired, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdi.embedding import ClassStatistics
from ltdi.generator import Generator, TaskBatch, describe, generate_weights
from training.comparators import BaseStatistics, Comparator, by_family, comparators
from training.episodes import COLUMNS, Episodes, Protocol, draw

Method = Callable[[Episodes], Tensor]
BAR = {"5-way 1-shot": 98.5, "5-way 5-shot": 99.6, "20-way 1-shot": 95.5, "20-way 5-shot": 98.8}


@dataclass(frozen=True)
class Estimate:
    """A mean with the half-width of its 95 % interval, percent or percentage points."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """From one value an episode, as shares."""
        values = 100 * values.double()
        return cls(float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values))))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


def generated(generator: Generator, seed: int = 0, draws: int = 1) -> Method:
    """Logits of generated heads; the noise of each batch of episodes follows from `seed`."""

    def logits(episodes: Episodes) -> Tensor:
        batch, ways, shots, size = episodes.support.shape
        index = torch.arange(batch * ways).repeat_interleave(shots)
        stats = ClassStatistics(episodes.support.reshape(-1, size), index, batch, ways)
        embedding, base = describe(generator, stats)
        chance = torch.Generator().manual_seed(seed)
        noise = torch.randn(batch, draws, *generator.noise_shape(ways), generator=chance)
        weights = generate_weights(generator, TaskBatch(embedding, base, stats.counts, noise))
        return generator.logits(weights, episodes.queries)

    return logits


def closed_form(comparator: Comparator, base: BaseStatistics) -> Method:
    """Logits of a comparator's heads."""
    return lambda episodes: comparator.logits(episodes, base)


@torch.inference_mode()
def accuracies(methods: dict[str, Method], features: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Accuracy of each method on each episode, `[episodes]`, as shares."""
    kept: dict[str, list[Tensor]] = {name: [] for name in methods}
    for episodes in draw(features, protocol):
        for name, method in methods.items():
            kept[name].append((method(episodes).argmax(-1) == episodes.target).float().mean(-1))
    return {name: torch.cat(values) for name, values in kept.items()}


def choose(features: Tensor, base: BaseStatistics, protocol: Protocol) -> dict[str, Comparator]:
    """The best setting of each family on validation features, best family first."""
    found = comparators(base)
    measured = accuracies({c.name: closed_form(c, base) for c in found}, features, protocol)
    score = {name: float(values.mean()) for name, values in measured.items()}
    best = {family: max(group, key=lambda c: score[c.name]) for family, group in by_family(found).items()}
    return dict(sorted(best.items(), key=lambda item: -score[item[1].name]))


@dataclass(frozen=True)
class Bank:
    """Features under one body.

    Args:
        validation, test: `[classes, drawings, D]`.
        base: statistics of the training classes.
    """

    validation: Tensor
    test: Tensor
    base: BaseStatistics


def evaluate_column(
    protocol: Protocol,
    own: Bank,
    generators: dict[int, Generator],
    other: Bank | None = None,
    validation_episodes: int = 400,
) -> dict:
    """One column of the table.

    Args:
        own: features under the bundle's body.
        generators: by training seed; the first is the one that ships.
        other: features under the best body that the same budget trains for class means.

    Returns:
        Accuracies, the comparators that validation chose, and paired differences, ready for JSON.
    """
    validation = Protocol(protocol.ways, protocol.shots, protocol.queries, validation_episodes, seed=1)
    chosen = choose(own.validation, own.base, validation)
    methods = {f"generated, seed {seed}": generated(g) for seed, g in generators.items()}
    methods |= {c.name: closed_form(c, own.base) for c in chosen.values()}
    measured = accuracies(methods, own.test, protocol)
    shipped = measured[f"generated, seed {next(iter(generators))}"]
    closed = measured[next(iter(chosen.values())).name]
    result = {
        "protocol": protocol.name,
        "episodes": protocol.episodes,
        "closed_form": next(iter(chosen.values())).name,
        "accuracy": {name: vars(Estimate.of(values)) for name, values in measured.items()},
        "difference": vars(Estimate.of(shipped - closed)),
        "difference_by_seed": {
            str(seed): vars(Estimate.of(measured[f"generated, seed {seed}"] - closed)) for seed in generators
        },
        "errors_removed": 1 - float((1 - shipped).mean() / (1 - closed).mean()),
    }
    if other is not None:
        result["other_body"] = _against_other(protocol, other, shipped, validation)
    return result


def _against_other(protocol: Protocol, other: Bank, shipped: Tensor, validation: Protocol) -> dict:
    """The same episodes under another body, its best closed form chosen on its own validation features."""
    best = next(iter(choose(other.validation, other.base, validation).values()))
    measured = accuracies({best.name: closed_form(best, other.base)}, other.test, protocol)[best.name]
    return {
        "closed_form": best.name,
        "accuracy": vars(Estimate.of(measured)),
        "difference": vars(Estimate.of(shipped - measured)),
    }


def columns(ways: tuple[int, ...] = (5, 20), episodes: int = 2000) -> list[Protocol]:
    """The table's protocols for these ways."""
    return [Protocol(w, k, episodes=episodes) for w, k in COLUMNS if w in ways]
