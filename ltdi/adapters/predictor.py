"""From the features of a support set to the coefficients of LoRA directions: what a generator of adapters learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi.errors import InvalidConfig


@dataclass(frozen=True)
class Evidence:
    """What a predictor sees of a task, in canonical order.

    Args:
        features: `[M, D]`, of the base model without LoRA, float32; of no example where the predictor is constant.
        class_index: `[M]`, integer.
        ways: N.
        seed: of the request's noise.
        look: the features `[M, D]` of the same examples under an adapter, by its coefficients `[K]`; a forward pass.
    """

    features: Tensor
    class_index: Tensor
    ways: int
    seed: int = 0
    look: Callable[[Tensor], Tensor] | None = None


class Predictor(nn.Module, ABC):
    """Chooses a point in the span of a bundle's directions.

    Args:
        directions: K.
        feature_size: D.
    """

    constant = False  # whether every task gets the same coefficients, so that it looks at nothing

    def __init__(self, directions: int, feature_size: int) -> None:
        super().__init__()
        self.directions, self.feature_size = directions, feature_size

    @abstractmethod
    def forward(self, evidence: Evidence) -> Tensor:
        """Coefficients `[K]`, float32; zeros mean the bundle's mean adapter.

        The order of the classes must not matter: they come in canonical order, which is no order of meaning.
        """


class Mean(Predictor):
    """Zeros: the mean, or multi-task, adapter for every task; the task itself is met by the head alone."""

    constant = True

    def forward(self, evidence: Evidence) -> Tensor:
        """Zeros `[K]`."""
        return torch.zeros(self.directions)


PREDICTORS: dict[str, type[Predictor]] = {"mean": Mean}


def build_predictor(name: str, directions: int, feature_size: int) -> Predictor:
    """A predictor with fresh parameters.

    Raises:
        InvalidConfig: an unknown name.
    """
    if name not in PREDICTORS:
        raise InvalidConfig(f"predictor {name!r} is unknown; known: {', '.join(PREDICTORS)}", field="predictor")
    return PREDICTORS[name](directions, feature_size)
