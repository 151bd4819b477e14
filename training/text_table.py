"""The table of whole label sets: generated heads beside every closed form given the same information."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltdi.denoisers.geometry import describe
from ltdi.experts import logits, unit
from ltdi.generator import GeometryGenerator, draw_noise
from training.features import FeatureSet
from training.tasks import INFORMATION, SHOTS, WholeTask, group_of, whole_task
from training.text_comparators import LOGISTIC, NEEDS, SELF_TRAINING, BaseStatistics, comparators

BINS = 15
RESAMPLES = 400
Key = tuple[str, int, str, bool]  # set, shots, information, raw labels
ONE_FOR_ALL = {  # what somebody does who does not want to choose: the first of each list that a cell has
    "class means": ("name-means 1", "class means"),
    "class means, cosine": ("name-means, cosine", "class means, cosine"),
    "logistic regression": ("logistic with names C=10", "logistic C=10"),
    "soft k-means": ("soft k-means from name-means 1, 20, 0.3", "soft k-means, 20, 0.3", "name-means 1", "class means"),
}


@dataclass
class Answers:
    """What was right in one cell: `[seeds, Q]` booleans by method; generators by training seed."""

    right: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    needs: dict[str, frozenset[str]] = field(default_factory=dict)
    facts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[str, Any] = field(default_factory=dict)


def base_statistics(sets: Sequence[FeatureSet], without: str) -> BaseStatistics:
    """Mean and within-class covariance of an encoder, over the training parts of all sets but one group's."""
    features, deviations = [], []
    for data in sets:
        if group_of(data.name) == without:
            continue
        for rows in data.train_rows:
            if len(rows) > 1:
                x = data.features[torch.from_numpy(rows[:100])]
                features.append(x)
                deviations.append(x - x.mean(0))
    spread = torch.cat(deviations)
    return BaseStatistics(torch.cat(features).mean(0), spread.T @ spread / len(spread))


@torch.inference_mode()
def answer_set(
    data: FeatureSet, generators: Mapping[int, GeometryGenerator], base: BaseStatistics | None, seeds: Sequence[int],
    raw_too: bool = True, shots: Sequence[int] = SHOTS,
) -> dict[Key, Answers]:
    """Every cell of one set.

    Args:
        generators: by training seed, none of them trained on the set's group.
    """
    found: dict[Key, Answers] = {}
    for count in shots:
        for seed in seeds:
            task = whole_task(data, count, seed)
            for raw in (False, True) if raw_too and data.names is not None else (False,):
                _answer_task(found, data.name, count, seed, task, generators, base, raw)
    return found


def _answer_task(
    found: dict[Key, Answers], name: str, shots: int, seed: int, task: WholeTask,
    generators: Mapping[int, GeometryGenerator], base: BaseStatistics | None, raw: bool,
) -> None:
    queries, targets = unit(task.queries), task.targets
    moved = None if base is None else unit(task.queries - base.mean)
    made = [
        (one, (logits(one.head, moved if one.centred else queries).argmax(1) == targets).numpy())
        for one in comparators(task, base, raw)
    ]
    for information in INFORMATION:
        if (shots == 0 and information in ("examples", "pool")) or (raw and information in ("examples", "pool")):
            continue
        if "names" in NEEDS[information] and task.names is None:
            continue
        cell = found.setdefault((name, shots, information, raw), Answers())
        for one, right in made:
            if one.needs <= NEEDS[information]:
                cell.right[one.name].append(right)
                cell.needs[one.name] = one.needs
        items = task.items(information, raw, centred_by(generators))
        described, seen = describe(items), items.seen(task.queries)
        noise = draw_noise(seed, 1, (items.ways, items.examples.shape[-1] + 1))
        for at, generator in generators.items():
            answers = logits(generator.generate_one(described, noise), seen)
            cell.right[f"generated {at}"].append((answers.argmax(1) == targets).numpy())
            cell.facts[f"ece {at}"].append(calibration_error(answers, targets))
        cell.right["baseline"].append((logits(described.base, seen).argmax(1) == targets).numpy())
        cell.sizes = {
            "ways": items.ways, "examples": len(items.examples), "pool": len(items.pool), "queries": len(targets),
            "dropped": task.dropped,
        }  # fmt: skip
        if information == "examples":
            one = next((c for c in comparators(task, None) if c.name == LOGISTIC), None)
            if one is not None:
                cell.facts["ece logistic"].append(calibration_error(logits(one.head, queries), targets))


def centred_by(generators: Mapping[int, GeometryGenerator]) -> bool:
    """Whether these generators take features less the mean of a task's items."""
    return any(generator.denoiser.config.centre for generator in generators.values())


def calibration_error(answers: Tensor, targets: Tensor) -> float:
    """Expected calibration error over `BINS` equal bins of the largest probability."""
    confidence, chosen = torch.softmax(answers, dim=1).max(1)
    right = (chosen == targets).float()
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    gaps = [(confidence[bins == b] - right[bins == b]).sum().abs() for b in range(BINS)]
    return float(torch.stack(gaps).sum() / len(targets))


def choose(cells: Mapping[Key, Answers], key: Key, strict: bool) -> str:
    """The closed form with the best mean over the sets of other groups, in the same column.

    Args:
        strict: self-training may be chosen too.
    """
    name, shots, information, raw = key
    scores: dict[str, list[float]] = defaultdict(list)
    others = [k for k in cells if k[1:] == key[1:] and group_of(k[0]) != group_of(name)]
    for other in others:
        for method, right in cells[other].right.items():
            if method in cells[other].needs and (strict or not method.startswith(SELF_TRAINING)):
                scores[method].append(float(np.mean([r.mean() for r in right])))
    held = {m: np.mean(v) for m, v in scores.items() if len(v) == len(others) and m in cells[key].right}
    return max(held, key=lambda m: held[m])


@dataclass(frozen=True)
class Estimate:
    """A mean in percent with its 95 % interval."""

    mean: float
    low: float
    high: float

    def json(self) -> dict[str, float]:
        """Rounded."""
        return {"mean": round(self.mean, 2), "low": round(self.low, 2), "high": round(self.high, 2)}


class Resampling:
    """Bootstrap over seeds and items: the same draws of a set's items in all of its cells."""

    def __init__(self, seeds: int, resamples: int = RESAMPLES) -> None:
        chance = np.random.default_rng(0)
        self._seeds = chance.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        self._resamples, self._items = resamples, {}

    def means(self, name: str, differences: np.ndarray) -> np.ndarray:
        """Resampled means `[resamples]` of `[seeds, Q]`, in percent."""
        if name not in self._items:
            count = differences.shape[1]
            chance = np.random.default_rng(len(self._items) + 1)
            self._items[name] = chance.multinomial(count, np.full(count, 1 / count), size=self._resamples) / count
        return 100 * np.einsum("rs,sq,rq->r", self._seeds, differences, self._items[name], optimize=True)

    @staticmethod
    def estimate(mean: float, drawn: np.ndarray) -> Estimate:
        """The mean with the 2.5 and 97.5 percentiles of its draws."""
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Estimate(mean, float(low), float(high))


def table(cells: Mapping[Key, Answers], seeds: int) -> dict[str, Any]:
    """All rows of the table, JSON-ready."""
    resampling = Resampling(seeds)
    rows, drawn, drawn_strict = [], [], []
    one_for_all: dict[str, list[tuple[float, np.ndarray]]] = defaultdict(list)
    for key, cell in sorted(cells.items()):
        generated = mean_of_seeds(cell)
        row: dict[str, Any] = dict(zip(("set", "shots", "information", "raw_labels"), key, strict=True)) | cell.sizes
        row["generated"] = round(100 * float(generated.mean()), 2)
        row["by_training_seed"] = {
            m.split()[1]: round(100 * float(np.mean([r.mean() for r in v])), 2)
            for m, v in cell.right.items() if m.startswith("generated ")
        }  # fmt: skip
        for name, strict in (("closed_form", False), ("strict", True)):
            method = choose(cells, key, strict)
            right = np.stack(cell.right[method]).astype(float)
            difference = generated - right
            draws = resampling.means(key[0], difference)
            row[name] = {"name": method, "accuracy": round(100 * float(right.mean()), 2)}
            row[f"difference_{name}"] = resampling.estimate(100 * float(difference.mean()), draws).json()
            (drawn_strict if strict else drawn).append((100 * float(difference.mean()), draws))
        row |= {name: round(float(np.mean(values)), 4) for name, values in cell.facts.items()}
        if LOGISTIC in cell.right:
            row["logistic_regression"] = round(100 * float(np.mean([r.mean() for r in cell.right[LOGISTIC]])), 2)
        rows.append(row)
    for method, order in ONE_FOR_ALL.items():
        for key, cell in cells.items():
            fitting = next(name for name in order if name in cell.right)
            difference = mean_of_seeds(cell) - np.stack(cell.right[fitting]).astype(float)
            one_for_all[method].append((100 * float(difference.mean()), resampling.means(key[0], difference)))
    return {
        "cells": rows,
        "mean_difference": _mean(resampling, drawn),
        "mean_difference_strict": _mean(resampling, drawn_strict),
        "worst_cells": sorted(rows, key=lambda row: row["difference_closed_form"]["high"])[:5],
        "cells_wholly_below": sum(row["difference_closed_form"]["high"] < -0.3 for row in rows),
        "cells_wholly_below_strict": sum(row["difference_strict"]["high"] < -0.3 for row in rows),
        "any_one_closed_form": {m: _mean(resampling, v) for m, v in one_for_all.items()},
    }


def mean_of_seeds(cell: Answers) -> np.ndarray:
    """`[seeds, Q]`: share of training seeds whose head was right."""
    made = [np.stack(right) for method, right in cell.right.items() if method.startswith("generated ")]
    return np.mean(made, axis=0)


def _mean(resampling: Resampling, values: Sequence[tuple[float, np.ndarray]]) -> dict[str, float]:
    return resampling.estimate(
        float(np.mean([mean for mean, _ in values])), np.mean([draws for _, draws in values], axis=0)
    ).json()


@torch.inference_mode()
def outside_scores(
    data: FeatureSet, generators: Mapping[int, GeometryGenerator], seeds: Sequence[int], shots: int
) -> dict[str, Any]:
    """Area under the ROC curve of scores of *none of these*, on a set with items of no class."""
    found: dict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        task = whole_task(data, shots, seed)
        one = next(c for c in comparators(task, None) if c.name == LOGISTIC)
        heads = {"logistic": (one.head, unit)}
        for information in INFORMATION:
            described = describe(task.items(information, centre=centred_by(generators)))
            noise = draw_noise(seed, 1, tuple(described.base.shape))
            for at, generator in generators.items():
                made = generator.generate_one(described, noise)
                heads[f"generated {at}, {information}"] = made, described.items.seen
        for name, (head, seen) in heads.items():
            for score, values in scores_of(logits(head, seen(task.queries))).items():
                outside = scores_of(logits(head, seen(task.outside)))[score]
                found[f"{name}: {score}"].append(area(outside.numpy(), values.numpy()))
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def scores_of(answers: Tensor) -> dict[str, Tensor]:
    """Scores `[Q]` that are large where an item belongs to no class."""
    centred = answers - answers.mean(1, keepdim=True)
    return {
        "max probability": -torch.softmax(answers, dim=1).max(1).values,
        "max logit": -answers.max(1).values,
        "energy": math.log(answers.shape[1]) - torch.logsumexp(centred, dim=1),  # as `Head.none_of_these`
    }


def area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half."""
    both = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2) / len(positive) / len(negative))


def other_answers(task: WholeTask, generator: GeometryGenerator, seed: int) -> dict[str, float]:
    """The ladder's last rungs, and negative controls: what a head is worth that should be worth nothing."""
    items = task.items("all", centre=generator.denoiser.config.centre)
    queries = items.seen(task.queries)
    described = describe(items)
    noise = draw_noise(seed, 1, tuple(described.base.shape))
    head = generator.generate_one(described, noise)
    chance = torch.Generator().manual_seed(seed)
    order = torch.randperm(items.ways, generator=chance)
    shuffled = items.class_index[torch.randperm(len(items.class_index), generator=chance)]
    mixed = replace(items, class_index=shuffled, names=items.names[order])
    away = torch.randn(head.shape, generator=chance)
    away = away * (head - described.base).norm() / away.norm()
    eight = draw_noise(seed, 8, tuple(described.base.shape))
    measured = {
        "generated": head,
        "mean of eight draws": generator.generate_one(described, eight),
        "mixture alone, no chain": generator.denoiser.mixture(described),
        "another task's support": head[order],
        "shuffled labels": generator.generate_one(describe(mixed), noise),
        "noise of the residual's norm on the baseline": described.base + away,
        "baseline": described.base,
    }
    return {
        name: 100 * float((logits(one, queries).argmax(1) == task.targets).float().mean())
        for name, one in measured.items()
    }

