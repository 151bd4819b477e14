"""What a domain's past classes say of where the items of a new one lie: a linear map, learnt by contrast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.experts import directed, unit


@dataclass(frozen=True)
class DirectionsTraining:
    """How directions are learnt.

    Args:
        steps, lr: of Adam, the rate falling along a cosine.
        penalty: on the squared norm of the map.
        ways: most classes in a step.
        shots: examples beside the name of each class, drawn alike.
        queries: of each class.
        seed: of the draws.
    """

    steps: int = 400
    lr: float = 3e-4
    penalty: float = 3e-3
    ways: int = 50
    shots: tuple[int, ...] = (0, 0, 1, 2)
    queries: int = 6
    seed: int = 0


def fit_directions(
    features: Tensor, rows: Sequence[np.ndarray], names: Sequence[Tensor], training: DirectionsTraining | None = None
) -> Tensor:
    """The map `[D, D]` of `ltdi.experts.directed` with which past classes would have been told apart best.

    Each step draws classes, a prototype of each (its name and a few examples), and asks for the class of further
    examples by their similarity to the moved prototypes.

    Args:
        features: `[M, D]`, of unit length.
        rows: of each class, the places of its items.
        names: one or more `[N, D]`, of which each step takes one; none where classes have no names.
    """
    training = training or DirectionsTraining()
    chance = np.random.default_rng(training.seed)
    size = features.shape[1]
    directions = torch.zeros(size, size, requires_grad=True)
    sharpness = torch.tensor(math.log(20.0), requires_grad=True)
    optimizer = torch.optim.Adam([directions, sharpness], lr=training.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    for _ in range(training.steps):
        classes = chance.permutation(len(rows))[: training.ways]
        prototypes, queries, targets = _draw(features, rows, names, classes, training, chance)
        answers = sharpness.exp() * unit(queries) @ directed(prototypes, directions).T
        loss = F.cross_entropy(answers, targets) + training.penalty * directions.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return directions.detach()


def _draw(
    features: Tensor, rows: Sequence[np.ndarray], names: Sequence[Tensor], classes: np.ndarray,
    training: DirectionsTraining, chance: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    shots = int(chance.choice(training.shots)) if names else max(1, int(chance.choice(training.shots)))
    chosen = names[chance.integers(len(names))] if names else None
    prototypes, queries, targets = [], [], []
    for place, row in enumerate(classes):
        order = chance.permutation(rows[row])
        held = features[torch.from_numpy(order[shots : shots + training.queries])]
        prototype = features[torch.from_numpy(order[:shots])].sum(0)
        prototypes.append(prototype if chosen is None else prototype + chosen[row])
        queries.append(held)
        targets += [place] * len(held)
    return torch.stack(prototypes), torch.cat(queries), torch.tensor(targets)
