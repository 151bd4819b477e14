"""From a support set to the coefficients of LoRA directions, and where it wants so to the head: what a generator of adapters learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PredictorConfig:
    """Which predictor, and the sizes that its own tensors have, as it defines them."""

    name: str = "mean"
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Space:
    """Where adapters lie: `modules` W, `directions` K of each, and D, the size of the features that the head sees."""

    modules: int
    directions: int
    feature_size: int


@dataclass(frozen=True)
class Evidence:
    """What a predictor sees of a task, in canonical order.

    Args:
        features: `[M, D]`, under the bundle's mean adapter, float32.
        class_index: `[M]`, integer.
        ways: N.
        pairs: whether the items are pairs of texts.
        seed: of the request's noise.
        watched: `[E]`, the places of those examples that `look` and `pooled` tell of: all of a small task.
        look: features `[E, D]` under an adapter, by its coefficients; a forward pass, kept for the folds.
        pooled: the mean over tokens of the plain base's last hidden states, `[E, hidden size]`; a forward pass, kept too.
        names: the same of the classes' names, `[N, hidden size]`, in canonical order; None where they are numbers or single letters.
        before: for a fold, the prediction for the whole support: to look at other adapters than it did takes other passes.
    """

    features: Tensor
    class_index: Tensor
    ways: int
    pairs: bool
    seed: int
    watched: Tensor
    look: Callable[[Tensor], Tensor]
    pooled: Callable[[], Tensor]
    names: Callable[[], Tensor | None]
    before: Prediction | None = None


@dataclass(frozen=True)
class Prediction:
    """What a predictor says: `coefficients` `[W, K]`, a row a module in the target's order, and notes for its own head."""

    coefficients: Tensor
    notes: Any = None


class Predictor(nn.Module, ABC):
    """Chooses a point in the span of a bundle's directions.

    Args:
        space: where.
        sizes: of its own tensors, from `PredictorConfig`.
    """

    constant = False  # whether every task gets the mean adapter, so that folds need no features of their own

    def __init__(self, space: Space, sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.space, self.sizes = space, sizes

    @abstractmethod
    def forward(self, evidence: Evidence) -> Prediction:
        """The prediction for a task; coefficients of zero are the bundle's mean adapter.

        The order of the classes must not matter: they come in canonical order, which is no order of meaning.
        """

    def head(self, features: Tensor, class_index: Tensor, ways: int, prediction: Prediction) -> Tensor | None:
        """A head `[N, D + 1]`, the bias last, on features `[M, D]` under the predicted adapter.

        None, as here, leaves it to the bundle's closed form.
        """
        return None


class Mean(Predictor):
    """Zeros: the mean, or multi-task, adapter for every task; the task itself is met by the head alone."""

    constant = True

    def forward(self, evidence: Evidence) -> Prediction:
        """Zeros."""
        return Prediction(torch.zeros(self.space.modules, self.space.directions))
