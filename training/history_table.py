"""Own history: what directions learnt from the past intents of a domain are worth on its new ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ltdi.experts import logits, unit
from ltdi.generator import GeometryGenerator, draw_noise
from training.features import FeatureSet
from training.fit import fit_generator
from training.tasks import whole_task
from training.text_comparators import NEEDS, comparators
from training.text_table import Resampling

PAST, COLUMNS = 100, ((0, "names"), (1, "names"), (1, "examples"), (5, "examples"), (1, "all"))
VALIDATION_SUPPORTS = 3


def measure_history(data: FeatureSet, starts: Mapping[int, GeometryGenerator], supports: int) -> dict[str, Any]:
    """Paired differences to the best closed form, chosen on the past classes, by column; written and raw names.

    Args:
        starts: by training seed, generators that did not learn from this set; each seed splits its classes anew.
    """
    resampling = Resampling(supports)
    drawn: dict[str, list[tuple[float, float, str, np.ndarray]]] = defaultdict(list)
    for seed, start in starts.items():
        order = np.random.default_rng(seed).permutation(len(data.classes)).tolist()
        past, new = order[:PAST], order[PAST:]
        fitted = fit_generator(data, past, start, seed)
        for shots, information in COLUMNS:
            for raw in (False, True) if information != "examples" else (False,):
                chosen = _best_on(data, past, shots, information, raw, len(new), seed)
                generated, closed = _right(data, new, shots, information, raw, chosen, fitted, supports)
                difference = resampling.means(f"{seed}", generated - closed)
                name = f"{shots} examples, {information}" + (", raw labels" if raw else "")
                drawn[name].append((100 * generated.mean(), 100 * closed.mean(), chosen, difference))
    return {
        name: {
            "generated": round(float(np.mean([g for g, *_ in values])), 2),
            "closed_form": round(float(np.mean([c for _, c, *_ in values])), 2),
            "closed_forms": [chosen for _, _, chosen, _ in values],
            "difference": resampling.estimate(
                float(np.mean([g - c for g, c, *_ in values])), np.mean([d for *_, d in values], axis=0)
            ).json(),
        }
        for name, values in drawn.items()
    }


@torch.inference_mode()
def _best_on(
    data: FeatureSet, classes: list[int], shots: int, information: str, raw: bool, ways: int, seed: int
) -> str:
    scores: dict[str, list[float]] = defaultdict(list)
    chance = np.random.default_rng(seed)
    for support in range(VALIDATION_SUPPORTS):
        task = whole_task(data, shots, 5000 + support, classes=chance.permutation(classes)[:ways].tolist())
        for one in comparators(task, None, raw):
            if one.needs <= NEEDS[information]:
                right = logits(one.head, unit(task.queries)).argmax(1) == task.targets
                scores[one.name].append(float(right.float().mean()))
    return max(scores, key=lambda name: float(np.mean(scores[name])))


@torch.inference_mode()
def _right(
    data: FeatureSet, classes: list[int], shots: int, information: str, raw: bool, chosen: str,
    fitted: GeometryGenerator, supports: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Which queries the fitted generator and the chosen closed form get right, `[supports, Q]` each."""
    generated, closed = [], []
    for support in range(supports):
        task = whole_task(data, shots, support, classes=classes)
        described = fitted.describe_items(task.items(information, raw, fitted.denoiser.config.centre))
        head = fitted.generate_one(described, draw_noise(support, 1, tuple(described.base.shape)))
        one = next(c for c in comparators(task, None, raw) if c.name == chosen)
        for store, made, seen in ((generated, head, described.items.seen), (closed, one.head, unit)):
            store.append((logits(made, seen(task.queries)).argmax(1) == task.targets).numpy().astype(float))
    return np.stack(generated), np.stack(closed)


