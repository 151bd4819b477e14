"""Measures generated heads against the closed forms: same episodes, paired, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltdi.generator import Generator, ResidualGenerator, generate_weights
from training.comparators import BaseStatistics, Comparator, by_family, comparators, comparators_with_views
from training.episodes import COLUMNS, Episodes, Protocol, draw
from training.statistics import statistics_of_episodes

ESTIMATE = "estimated means, no chain"
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
        batch, ways, shots = episodes.support.shape[:3]
        views = episodes.views if generator.wants_views(ways * shots, ways) else None
        tasks = generator.describe(statistics_of_episodes(episodes.support, views))
        chance = torch.Generator().manual_seed(seed)
        noise = torch.randn(batch, draws, *generator.noise_shape(ways), generator=chance)
        weights = generate_weights(generator, tasks, noise)
        return generator.logits(weights, episodes.queries)

    return logits


def estimate_alone(generator: Generator) -> Method:
    """Logits of heads that the hint alone makes, the chain left out."""

    def logits(episodes: Episodes) -> Tensor:
        tasks = generator.describe(statistics_of_episodes(episodes.support, episodes.views))
        return generator.logits(generator.decode(tasks.hint, tasks.base, tasks.counts), episodes.queries)

    return logits


def closed_form(comparator: Comparator, base: BaseStatistics) -> Method:
    """Logits of a comparator's heads."""
    return lambda episodes: comparator.logits(episodes, base)


@torch.inference_mode()
def accuracies(
    methods: dict[str, Method], features: Tensor, protocol: Protocol, groups: Tensor | None = None
) -> dict[str, Tensor]:
    """Accuracy of each method on each episode, `[episodes]`, as shares; `groups` as for `training.episodes.draw`."""
    kept: dict[str, list[Tensor]] = {name: [] for name in methods}
    for episodes in draw(features, protocol, groups=groups):
        for name, method in methods.items():
            kept[name].append((method(episodes).argmax(-1) == episodes.target).float().mean(-1))
    return {name: torch.cat(values) for name, values in kept.items()}


def choose(
    features: Tensor, base: BaseStatistics, protocol: Protocol, found: list[Comparator] | None = None,
    groups: Tensor | None = None,
) -> dict[str, Comparator]:
    """The best setting of each family on validation features, best family first.

    Args:
        found: what to choose from; `comparators` where absent.
        groups: of the validation classes.
    """
    found = comparators(base) if found is None else found
    measured = accuracies({c.name: closed_form(c, base) for c in found}, features, protocol, groups)
    score = {name: float(values.mean()) for name, values in measured.items()}
    best = {family: max(group, key=lambda c: score[c.name]) for family, group in by_family(found).items()}
    return dict(sorted(best.items(), key=lambda item: -score[item[1].name]))


@dataclass(frozen=True)
class Bank:
    """What is measured on.

    Args:
        validation, test: banks as `training.episodes.draw` takes them.
        base: statistics of the training classes.
        validation_groups, groups: of the classes of both, for protocols within one.
    """

    validation: Tensor
    test: Tensor
    base: BaseStatistics
    validation_groups: Tensor | None = None
    groups: Tensor | None = None

    @property
    def has_views(self) -> bool:
        """Whether views stand beside the features."""
        return self.test.ndim == 4 and self.test.shape[2] > 1


def evaluate_column(
    protocol: Protocol, bank: Bank, generators: dict[int, Generator], validation_episodes: int = 400,
    rival: Bank | None = None,
) -> dict:
    """One column of the table.

    Args:
        generators: by training seed; the first is the one that ships.
        rival: the same images under a body that was trained for class means at the same cost.

    Returns:
        Accuracies, the comparators that validation chose, and paired differences, ready for JSON; what the chain adds
        to the estimate of means. Where the bank has views, also of a head that is generated from features alone,
        against the closed forms on views, and, `strict`, against the best of all closed forms, with views or without.
        `rival` is the same against the best closed form on the rival body.
    """
    ways = min(protocol.ways, len(bank.validation))
    validation = replace(protocol, ways=ways, episodes=validation_episodes, seed=1)

    def best(found: list[Comparator]) -> list[Comparator]:
        return list(choose(bank.validation, bank.base, validation, found, bank.validation_groups).values())

    chosen = best(comparators(bank.base))
    methods = {f"generated, seed {seed}": generated(g) for seed, g in generators.items()}
    first = next(iter(methods))
    if isinstance(generators[0], ResidualGenerator):
        methods[ESTIMATE] = estimate_alone(generators[0])
    chosen_views = best(comparators_with_views(bank.base)) if bank.has_views else []
    if bank.has_views:
        methods["generated from features"] = without_views(methods[first])
        strict = best([chosen[0], chosen_views[0]])[0].name
    methods |= {c.name: closed_form(c, bank.base) for c in chosen + chosen_views}
    measured = accuracies(methods, bank.test, protocol, bank.groups)
    shipped, closed = measured[first], measured[chosen[0].name]
    def against(values: Tensor) -> dict[str, dict]:
        return {str(seed): vars(Estimate.of(measured[f"generated, seed {seed}"] - values)) for seed in generators}

    result = {
        "protocol": protocol.name,
        "episodes": protocol.episodes,
        "closed_form": chosen[0].name,
        "accuracy": {name: vars(Estimate.of(values)) for name, values in measured.items()},
        "difference": vars(Estimate.of(shipped - closed)),
        "difference_by_seed": against(closed),
        "errors_removed": 1 - float((1 - shipped).mean() / (1 - closed).mean()),
    }

    if rival is not None:
        other = best_closed_form(rival, validation)
        values = accuracies({"": closed_form(other, rival.base)}, rival.test, protocol, rival.groups)[""]
        result["rival"] = {
            "closed_form": other.name, "accuracy": vars(Estimate.of(values)), "difference_by_seed": against(values),
        }
    if ESTIMATE in measured:
        result["beyond_estimate"] = vars(Estimate.of(shipped - measured[ESTIMATE]))
    if bank.has_views:
        result["from_features"] = vars(Estimate.of(measured["generated from features"] - closed))
        result["closed_form_on_views"] = chosen_views[0].name
        result["difference_on_views"] = vars(Estimate.of(shipped - measured[chosen_views[0].name]))
        result["strict"] = {"closed_form": strict, "difference_by_seed": against(measured[strict])}
    return result


def best_closed_form(bank: Bank, validation: Protocol) -> Comparator:
    """The best on validation of all closed forms, on views too where the bank has them."""
    found = [*comparators(bank.base), *(comparators_with_views(bank.base) if bank.has_views else [])]
    return next(iter(choose(bank.validation, bank.base, validation, found, bank.validation_groups).values()))


def without_views(method: Method) -> Method:
    """The method on tasks whose examples are features, as a caller may post them."""
    return lambda episodes: method(Episodes(episodes.support, episodes.query))


def columns(ways: tuple[int, ...] = (5, 20), episodes: int = 2000, within: bool = False) -> list[Protocol]:
    """The table's protocols for these ways, one and five examples each."""
    shots = dict.fromkeys(k for _, k in COLUMNS)
    return [Protocol(w, k, episodes=episodes, within=within) for w in ways for k in shots]


@torch.inference_mode()
def evaluate_runs(runs: Episodes, bank: Bank, generators: dict[int, Generator], validation_episodes: int = 400) -> dict:
    """Errors on the official one-shot runs, percent, of generated heads by seed and of the best closed form.

    The closed form is chosen on validation tasks of one group, with views or without.
    """
    ways = runs.support.shape[1]
    protocol = Protocol(ways, 1, episodes=validation_episodes, seed=1, within=bank.validation_groups is not None)
    best = best_closed_form(bank, protocol)
    methods = {str(seed): generated(generator) for seed, generator in generators.items()}
    methods[best.name] = closed_form(best, bank.base)
    wrong = {name: (method(runs).argmax(-1) != runs.target).float().mean() for name, method in methods.items()}
    errors = {name: round(100 * float(value), 2) for name, value in wrong.items()}
    return {"error_by_seed": {s: errors[s] for s in map(str, generators)}, "closed_form": best.name, "error": errors[best.name]}
