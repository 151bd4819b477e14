"""Measures a bundle that reads features of any encoder on those of an image body, with and without a pool.

Such a bundle knows nothing of the base classes, so its comparators do without their mean and covariance.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ltdi.bundle import Bundle, HeadRequest
from ltdi.files import write_bytes
from ltdi.pipeline import Options
from training.comparators import BaseStatistics, comparators
from training.episodes import Protocol
from training.evaluate import Estimate, choose
from training.image_pools import (
    POOL_KINDS,
    PoolKind,
    PoolTasks,
    draw_pool_tasks,
    k_means_logits,
    pool_protocol,
    settings,
)
from training.pool_reader import right

KNOWING = ("class means, centred", "LDA")  # comparators that use the base classes


@torch.inference_mode()
def rows_of(bundle: Bundle, validation: Tensor, test: Tensor, episodes: int, chosen_on: int = 200) -> list[dict]:
    """Heads of `bundle` minus the best closed form of each row, chosen on validation, both without views; for JSON.

    Args:
        bundle: one that takes features of any size, and pools.
        validation, test: banks.
    """
    base = BaseStatistics(torch.zeros(test.shape[-1]), torch.eye(test.shape[-1]))
    kinds: list[PoolKind | None] = [None, *POOL_KINDS]
    return [
        _row(bundle, base, validation[:, :, :1], test[:, :, :1], protocol, None if kind is None else replace(kind, size=size), chosen_on)
        for protocol, size in (pool_protocol(test, shots, episodes) for shots in (1, 5))
        for kind in kinds
    ]


def _row(
    bundle: Bundle, base: BaseStatistics, validation: Tensor, test: Tensor, protocol: Protocol, kind: PoolKind | None,
    chosen_on: int,
) -> dict:
    name, closed = _closed_form(base, validation, replace(protocol, episodes=chosen_on, seed=1), kind)
    own, other = [], []
    for tasks in draw_pool_tasks(test, protocol, kind or replace(POOL_KINDS[0], size=1)):
        own.append(right(_generated(bundle, tasks, kind is not None), tasks))
        other.append(right(closed(tasks), tasks))
    generated, form = torch.cat(own), torch.cat(other)
    return {
        "protocol": protocol.name, "pool": None if kind is None else vars(kind), "closed_form": name,
        "accuracy": {"generated": vars(Estimate.of(generated)), "closed form": vars(Estimate.of(form))},
        "difference": vars(Estimate.of(generated - form)),
    }  # fmt: skip


def _closed_form(base: BaseStatistics, validation: Tensor, protocol: Protocol, kind: PoolKind | None):
    """Name and logits of the best closed form with the same information."""
    if kind is None:
        found = [one for one in comparators(base) if one.family not in KNOWING]
        best = next(iter(choose(validation[:, :, 0], base, protocol, found).values()))
        return best.name, lambda tasks: best.logits(tasks, base)
    drawn = list(draw_pool_tasks(validation, protocol, kind))
    found = [one for one in settings(views=False) if one.shrink is None]
    best = max(found, key=lambda s: float(torch.cat([right(k_means_logits(t, s, base), t) for t in drawn]).mean()))
    return f"soft k-means {vars(best)}", lambda tasks: k_means_logits(tasks, best, base)


def _generated(bundle: Bundle, tasks: PoolTasks, pooled: bool) -> Tensor:
    """Logits `[B, N Q, N]`, task by task, without the support check."""
    batch, ways, shots, _ = tasks.support.shape
    classes = [str(n) for n in range(ways)]
    labels = [name for name in classes for _ in range(shots)]
    found = []
    for i in range(batch):
        pool = tasks.pool[i].contiguous() if pooled else None
        support = bundle.support(tasks.support[i].flatten(0, 1).contiguous(), labels, classes=classes, unlabelled=pool)
        (head,) = bundle.generate_many([HeadRequest(support, Options(check=False))])
        found.append(head(tasks.queries[i]))
    return torch.stack(found)


def table(rows: list[dict]) -> str:
    """The rows as Markdown, percent."""
    lines = ["|  | generated | best closed form | difference, paired |", "| --- | --- | --- | --- |"]
    for row in rows:
        pool = row["pool"]
        about = "" if pool is None else f", pool of {pool['size']}, {'balanced' if pool['even'] else 'unbalanced'}"
        about += f", {pool['polluted']:.0%} of other classes" if pool and pool["polluted"] else ""
        cells = [*row["accuracy"].values(), row["difference"]]
        shown = [f"{c['mean']:{'+' if c is cells[-1] else ''}.2f} ± {c['half_width']:.2f}" for c in cells]
        lines.append(f"| {row['protocol']}{about} | {' | '.join(shown)} |")
    return "\n".join(lines)


def write_history(banks: list[Tensor], path: Path) -> None:
    """Features of training classes as the history of past tasks that `ltdi fit` reads.

    Args:
        banks: `[classes, drawings, S, D]`: 60 images of each class of the first, 20 of every fourth class of each further one, other
            classes of each.
    """
    lines = []
    for place, bank in enumerate(banks):
        rows = range(len(bank)) if not place else range((place - 1) % 4, len(bank), 4)
        for row in rows:
            features = bank[row, : 20 if place else 60, 0].tolist()
            lines += [json.dumps({"label": f"{place}-{row}", "features": [round(x, 4) for x in one]}) for one in features]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
