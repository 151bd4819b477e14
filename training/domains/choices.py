"""Every closed form at every setting that validation may choose from."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ltdi import baselines
from training.comparators import BaseStatistics, comparators, comparators_with_views
from training.domains.comparators import (
    KnownForm,
    Rivals,
    moved_means,
    of_examples,
    pulled,
    summed,
    together,
    zero_shot,
)

SHARE = 0.5  # of views, wherever examples serve
MOVED = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.95)
METRICS = tuple((across, shrink) for across in (False, True) for shrink in (0.1, 0.2, 0.3, 0.5, 0.8))
INVERSES = (0.001, 0.01, 0.1, 1.0)
SUMS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


def logistic_head(rivals: Rivals, inverse: float, correct: bool = True) -> Tensor:
    """The logistic regression of all classes on the training domains, `[classes, D + 1]`."""
    return rivals.head(inverse, correct)


def trained_head(rivals: Rivals) -> Tensor:
    """The classifier that the body was trained with, `[classes, D + 1]`."""
    return rivals.problem.classifier


def lda_head(rivals: Rivals, scale: float, metric: tuple[bool, float]) -> Tensor:
    """LDA on the known means, `[classes, D + 1]`, times `scale`."""
    means = rivals.known.means
    own = (means - means.mean(1, keepdim=True)).mean(0)
    return scale * baselines.nearest_mean_in_metric(own, rivals.metric(*metric))


def first_forms(size: int) -> list[KnownForm]:
    """All but sums of two: heads of the training domains, of the examples, and of both."""
    return [*zero_shot_forms(), *example_forms(size), *mixed_forms()]


def zero_shot_forms() -> list[KnownForm]:
    """Fitted on the training domains alone."""
    found = []
    for correct in (False, True):
        share, told = (SHARE, "queries centred") if correct else (None, "as they are")
        for inverse in INVERSES:
            head = partial(logistic_head, inverse=inverse, correct=correct)
            found.append(KnownForm("training domains: logistic regression", f"{told}, C={inverse:g}", zero_shot(head, share)))
        found.append(KnownForm("training domains: the body's classifier", told, zero_shot(trained_head, share)))
    for metric in METRICS:
        found.append(KnownForm("training domains: LDA", _told(metric), moved_means(1.0, metric, SHARE)))
    return found


def example_forms(size: int) -> list[KnownForm]:
    """The usual closed forms on the examples alone, with their views or without; `size` is D."""
    some = BaseStatistics(torch.zeros(size), torch.eye(size))  # settings only; LDA's covariance is the problem's own, below
    usual = [*comparators(some), *(c for c in comparators_with_views(some) if c.views == SHARE)]
    usual = [c for c in usual if not c.family.startswith("logistic") or "C=1," in f"{c.setting},"]  # slow, and far behind
    found = [KnownForm(f"examples: {c.family}", c.setting, of_examples(c)) for c in usual if not c.family.startswith("LDA")]
    for metric in METRICS:
        for share in (0.0, SHARE):
            family = "examples: LDA" + (", views" if share else "")
            found.append(KnownForm(family, _told(metric), moved_means(0.0, metric, share)))
    return found


def mixed_forms() -> list[KnownForm]:
    """Mixtures of training domains and examples."""
    found = []
    for moved in MOVED:
        for correct in (False, True):
            told = f"moved {moved:g}{'' if correct else ', not centred'}"
            found.append(KnownForm("both: class means", told, moved_means(moved, None, SHARE, correct)))
        for metric in METRICS:
            told = f"moved {moved:g}, {_told(metric)}"
            found.append(KnownForm("both: LDA", told, moved_means(moved, metric, SHARE)))
            if metric[0]:
                fit = moved_means(moved, metric, SHARE, fit=True)
                found.append(KnownForm("both: LDA, domains weighed", told, fit))
    for weight in (10.0, 30.0):
        told = f"examples count {weight:g}, C=0.03"
        found.append(KnownForm("both: logistic regression", told, together(10, weight, 0.03, SHARE)))
    for inverse in (0.1, 1.0):
        head = partial(logistic_head, inverse=0.1)
        found.append(KnownForm("both: logistic regression pulled to theirs", f"C={inverse:g}", pulled(head, inverse, SHARE)))
        for scale in (1.0, 3.0):
            head = partial(lda_head, scale=scale, metric=(True, 0.2))
            told = f"scale {scale:g}, C={inverse:g}"
            found.append(KnownForm("both: logistic regression pulled to LDA", told, pulled(head, inverse, SHARE)))
    return found


def sums(chosen: list[KnownForm]) -> list[KnownForm]:
    """Sums of scores: the best of the training domains' forms, by validation, with the best of the others."""
    elsewhere = [form for form in chosen if form.family.startswith("training domains")][:2]
    others = [form for form in chosen if form.family.startswith("examples")][:1]
    others += [form for form in chosen if form.family.startswith("both")][:1]
    return [
        KnownForm("sum of scores", f"{weight:g} x {one.name} + {other.name}", summed(one.logits, other.logits, weight))
        for one in elsewhere for other in others for weight in SUMS
    ]  # fmt: skip


def _told(metric: tuple[bool, float]) -> str:
    return f"{'across domains' if metric[0] else 'within'}, shrunk {metric[1]:g}"
