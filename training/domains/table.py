"""The table of an experiment of domains: generated heads against the best closed form, each domain left out in turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ltdi import baselines
from training.configs.domains import DomainExperiment
from training.domains.choices import first_forms, sums
from training.domains.comparators import KnownForm, Rivals
from training.domains.episodes import KnownEpisodes, Problem, draw_known
from training.domains.generator import Elsewhere, KnownClassGenerator, generate_known
from training.episodes import Protocol
from training.evaluate import Estimate

SHOTS = (1, 5)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WAYS = 5
NEAR = 4.0  # points behind the best on inner problems, beyond which a closed form is not measured on test


@torch.inference_mode()
def form_accuracies(forms: list[KnownForm], rivals: Rivals, tasks: Iterable[KnownEpisodes]) -> dict[str, Tensor]:
    """By name, the accuracy of each form on each task, `[episodes]`, as shares."""
    found: dict[str, list[Tensor]] = {form.name: [] for form in forms}
    for episodes in tasks:
        for form in forms:
            found[form.name].append(_right(form.logits(episodes, rivals), episodes.target))
    return {name: torch.cat(values) for name, values in found.items()}


@torch.inference_mode()
def generated_accuracy(
    generator: KnownClassGenerator, problem: Problem, elsewhere: Elsewhere, protocol: Protocol
) -> dict[str, Tensor]:
    """Accuracy on each task of the generated heads, and of those of the estimate alone, without the chain."""
    found: dict[str, list[Tensor]] = {"generated": [], "estimated means, no chain": []}
    chance = torch.Generator().manual_seed(0)
    for episodes in draw_known(problem.bank, protocol):
        noise = torch.randn(len(episodes.classes), *generator.noise_shape(protocol.ways), generator=chance)
        heads, tasks, centre = generate_known(generator, episodes, elsewhere, noise)
        found["generated"].append(_right(baselines.logits(heads, episodes.queries - centre), episodes.target))
        head = generator.decode(tasks.hint, tasks.base, tasks.counts)
        alone = baselines.logits(head, episodes.queries - centre)
        found["estimated means, no chain"].append(_right(alone, episodes.target))
    return {name: torch.cat(values) for name, values in found.items()}


@torch.inference_mode()
def strength_accuracies(
    generator: KnownClassGenerator, problem: Problem, elsewhere: Elsewhere, protocol: Protocol
) -> Tensor:
    """Mean accuracy at each of `STRENGTHS`, of a generator whose own strength is 1."""
    right: list[list[Tensor]] = [[] for _ in STRENGTHS]
    chance = torch.Generator().manual_seed(0)
    for episodes in draw_known(problem.bank, protocol):
        noise = torch.randn(len(episodes.classes), *generator.noise_shape(protocol.ways), generator=chance)
        heads, tasks, centre = generate_known(generator, episodes, elsewhere, noise)
        for place, strength in enumerate(STRENGTHS):
            weights = torch.lerp(tasks.base, heads, strength)
            right[place].append(_right(baselines.logits(weights, episodes.queries - centre), episodes.target))
    return torch.stack([torch.cat(own).mean() for own in right])


def _right(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.argmax(-1) == target).float().mean(-1)


def choose_forms(lessons: list[Rivals], shots: int, episodes: int) -> tuple[list[KnownForm], dict[str, float]]:
    """The best setting of each family, best first, by the mean over inner problems; and the accuracy of each, percent."""
    protocol = Protocol(WAYS, shots, episodes=episodes, seed=1)
    inner = [(one, list(draw_known(one.problem.bank, protocol))) for one in lessons]
    score: dict[str, float] = {}

    def best(forms: list[KnownForm]) -> list[KnownForm]:
        measured = [form_accuracies(forms, rivals, tasks) for rivals, tasks in inner]
        for form in forms:
            score[form.name] = 100 * sum(float(one[form.name].mean()) for one in measured) / len(measured)
        families: dict[str, KnownForm] = {}
        for form in sorted(forms, key=lambda form: -score[form.name]):
            families.setdefault(form.family, form)
        return list(families.values())

    size = lessons[0].known.means.shape[-1]
    chosen = best(first_forms(size))
    chosen = sorted([*chosen, *best(sums(chosen))], key=lambda form: -score[form.name])
    return chosen, {form.name: score[form.name] for form in chosen}


def evaluate_column(
    rivals: Rivals, lessons: list[Rivals], generators: dict[int, KnownClassGenerator], shots: int, experiment: DomainExperiment
) -> tuple[dict, dict[str, Tensor]]:
    """One domain at one number of examples: a row ready for JSON, and the paired differences by seed, `[episodes]`."""
    chosen, validation = choose_forms(lessons, shots, experiment.validation_episodes)
    problem = rivals.problem
    protocol = Protocol(WAYS, shots, episodes=experiment.episodes)
    elsewhere = Elsewhere.of(problem, experiment.shrink)
    near = [form for form in chosen if validation[form.name] >= validation[chosen[0].name] - NEAR]
    measured = form_accuracies(near, rivals, draw_known(problem.bank, protocol))
    closed, differences = measured[chosen[0].name], {}
    for seed, generator in generators.items():
        for name, values in generated_accuracy(generator, problem, elsewhere, protocol).items():
            measured[f"{name}, seed {seed}"] = values
        differences[str(seed)] = measured[f"generated, seed {seed}"] - closed
    first = next(iter(generators))
    hardest = max((form.name for form in near), key=lambda name: float(measured[name].mean()))
    row = {
        "domain": problem.name,
        "shots": shots,
        "episodes": protocol.episodes,
        "closed_form": chosen[0].name,
        "accuracy": {name: vars(Estimate.of(values)) for name, values in measured.items()},
        "validation": validation,
        "difference_by_seed": {seed: vars(Estimate.of(values)) for seed, values in differences.items()},
        "beyond_estimate": vars(
            Estimate.of(measured[f"generated, seed {first}"] - measured[f"estimated means, no chain, seed {first}"])
        ),
        "best_on_test": {
            "closed_form": hardest,
            "difference_by_seed": {
                str(seed): vars(Estimate.of(measured[f"generated, seed {seed}"] - measured[hardest])) for seed in generators
            },
        },
    }
    return row, differences


def means_over_domains(differences: list[dict[str, Tensor]]) -> dict[str, dict]:
    """Means of the domains' differences by seed and, as `all`, of all seeds; the intervals are over tasks, domains taken as given."""
    found = {}
    for seed in differences[0]:
        found[seed] = _pooled([own[seed] for own in differences])
    found["all"] = _pooled([torch.stack(list(own.values())).mean(0) for own in differences])
    return found


def _pooled(values: list[Tensor]) -> dict:
    rows = [Estimate.of(one) for one in values]
    half_width = sum(row.half_width**2 for row in rows) ** 0.5 / len(rows)
    return vars(Estimate(sum(row.mean for row in rows) / len(rows), half_width))


def with_strength(generator: KnownClassGenerator, strengths: dict[int, float]) -> KnownClassGenerator:
    """The generator at the strengths that validation chose, by examples a class."""
    rows = tuple(replace(generator.calibration.rows[0], shots=k, strength=s) for k, s in sorted(strengths.items()))
    generator.calibration = replace(generator.calibration, rows=rows)
    return generator
