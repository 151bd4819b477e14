"""Turns a trained run into a bundle: strength, temperature and fallback margin fitted on validation classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi import baselines
from ltdi.bundle import Bundle, BundleConfig, HeadRequest
from ltdi.generator import Calibration, CalibrationRow, FlatGenerator, Generator, ResidualGenerator, strangeness
from ltdi.heads import Head
from ltdi.pipeline import Options
from ltdi.support import SupportSet
from training.comparators import BaseStatistics, shrunk_metric
from training.episodes import Episodes, Protocol, draw
from training.evaluate import generated
from training.statistics import statistics_of_episodes

SHOTS = (1, 2, 5, 10)
WAYS = (5, 20)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
TEMPERATURES = tuple(round(0.25 * 1.15**i, 4) for i in range(30))
SHRINKAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
MARGINS = (0.02, 0.05, 0.1, 0.2, 1.0)


@torch.inference_mode()
def familiar_limit(generator: ResidualGenerator, features: Tensor, shots: int, share: float, episodes: int = 400) -> float:
    """The strangeness that a share of validation tasks stays below."""
    found = [
        strangeness(batch.support.mean(2) - generator.centre) for batch in draw(features, _protocol(WAYS[0], shots, episodes))
    ]
    return float(torch.cat(found).quantile(share))


@torch.inference_mode()
def calibrate(generator: Generator, features: Tensor, episodes: int = 400, familiar: float = 0.0) -> Calibration:
    """Strengths with the best mean accuracy over 5- and 20-way tasks (or of all classes, where these are fewer), then temperatures with the least cross entropy.

    Args:
        features: a bank of validation classes, as `training.episodes.draw` takes it.
        familiar: the share of validation tasks that are not given their baseline for strangeness; 0 for no limit.
    """
    flat = isinstance(generator, FlatGenerator)
    ways = (generator.ways,) if flat else ways_of(features)
    rows = []
    for shots in SHOTS:
        strength = 1.0 if flat else _best_strength(generator, features, shots, episodes)
        generator.calibration = Calibration((CalibrationRow(shots, strength),))
        batches = [batch for w in ways for batch in draw(features, _protocol(w, shots, episodes))]
        rows.append(
            CalibrationRow(
                shots,
                strength,
                _best_temperature([(generated(generator)(batch), batch) for batch in batches]),
                _best_temperature([(_baseline(generator, batch), batch) for batch in batches]),
                familiar=familiar_limit(generator, features, shots, familiar, episodes) if familiar else None,
            )
        )
    generator.calibration = Calibration(tuple(rows))
    return generator.calibration


def ways_of(features: Tensor) -> tuple[int, ...]:
    """`WAYS`, or all classes there are where these are fewer."""
    return tuple(dict.fromkeys(min(w, len(features)) for w in WAYS))


def _protocol(ways: int, shots: int, episodes: int) -> Protocol:
    return Protocol(ways, shots, queries=min(15, 20 - shots), episodes=episodes, seed=2)


def _baseline(generator: Generator, batch: Episodes) -> Tensor:
    return baselines.logits(generator.describe(statistics_of_episodes(batch.support)).base, batch.queries)


def _best_strength(generator: Generator, features: Tensor, shots: int, episodes: int) -> float:
    """By accuracy, summed over ways in units of the baseline's errors, so that hard tasks do not decide alone."""
    scores = []
    for strength in STRENGTHS:
        generator.calibration = Calibration((CalibrationRow(shots, strength),))
        errors = [_errors(generated(generator), features, w, shots, episodes) for w in ways_of(features)]
        scores.append(errors)
    relative = [sum(e / max(scores[0][i], 1e-6) for i, e in enumerate(errors)) for errors in scores]
    return STRENGTHS[min(range(len(STRENGTHS)), key=relative.__getitem__)]


def _errors(method, features: Tensor, ways: int, shots: int, episodes: int) -> float:
    wrong = [
        (method(batch).argmax(-1) != batch.target).float().mean()
        for batch in draw(features, _protocol(ways, shots, episodes))
    ]
    return float(torch.stack(wrong).mean())


def _best_temperature(answers: list[tuple[Tensor, Episodes]]) -> float:
    def cross_entropy(temperature: float) -> float:
        losses = [
            F.cross_entropy((logits / temperature).flatten(0, 1), batch.target.repeat(len(logits)))
            for logits, batch in answers
        ]
        return float(torch.stack(losses).mean())

    return min(TEMPERATURES, key=cross_entropy)


@torch.inference_mode()
def fit_fallback_margin(bundle: Bundle, features: Tensor, tasks: int = 150, shots: int = 5) -> float:
    """The least margin at which returning the baseline does not cost accuracy on validation tasks.

    The rule of `service.md`, run as callers run it: folds of the support decide, queries judge.
    """
    ways = bundle.fixed_ways or 5
    outcomes = []
    for batch in draw(features, Protocol(ways, shots, episodes=tasks, seed=3)):
        labels = [str(n) for n in range(ways) for _ in range(shots)]
        for support, queries in zip(batch.support, batch.queries, strict=True):
            request = SupportSet.of(support.flatten(0, 1).clone(), labels, classes=[str(n) for n in range(ways)])
            head = bundle.generate_many([HeadRequest(request, Options(fallback="none"))])[0]
            base = bundle.generator.describe(statistics_of_episodes(support.unsqueeze(0))).base
            outcomes.append(
                (
                    head.baseline_support_accuracy - head.support_accuracy,
                    _accuracy(head, queries, batch.target),
                    float((baselines.logits(base, queries.unsqueeze(0))[0].argmax(-1) == batch.target).float().mean()),
                )
            )
    plain = sum(own for _, own, _ in outcomes)
    for margin in MARGINS:
        if sum(base if lead > margin else own for lead, own, base in outcomes) >= plain:
            return margin
    return MARGINS[-1]


def _accuracy(head: Head, queries: Tensor, target: Tensor) -> float:
    return float((head(queries).argmax(-1) == target).float().mean())


@torch.inference_mode()
def fit_metric(generator: ResidualGenerator, train: Tensor, validation: Tensor, episodes: int = 300) -> float:
    """Set the baseline's metric from training classes, shrunk as much as 5-shot validation tasks like best.

    Returns:
        The shrinkage, 1 for class means.
    """
    within, scores = BaseStatistics.of(train).within, {}
    for shrink in SHRINKAGES:
        generator.metric = shrunk_metric(within, shrink)
        generator.calibration = Calibration((CalibrationRow(1, 0.0),))
        scores[shrink] = sum(_errors(generated(generator), validation, w, 5, episodes) for w in ways_of(validation)), generator.metric
    best = min(SHRINKAGES, key=lambda shrink: scores[shrink][0])
    generator.metric = scores[best][1].clone()
    return best


def make_bundle(
    config: BundleConfig, body: nn.Module, generator: Generator, train: Tensor, features: Tensor, *, keep_metric: bool = False,
    familiar: float = 0.0,
) -> Bundle:
    """A bundle with everything that training statistics and validation decide filled in.

    Args:
        familiar: as for `calibrate`.
        keep_metric: leave the baseline's metric as the generator was trained with it.
        train: features of training classes, `[classes, drawings, D]`.
        features: a bank of validation classes, as `training.episodes.draw` takes it.
    """
    if isinstance(generator, ResidualGenerator) and not keep_metric:
        fit_metric(generator, train, features)
    config = replace(config, calibration=calibrate(generator, features, familiar=familiar))
    bundle = Bundle(config, body, generator)
    bundle.config = replace(config, fallback_margin=fit_fallback_margin(bundle, features))
    return bundle
