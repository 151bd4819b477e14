"""The head on adapted features: a convex problem, solved, then written as the last layer of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.baselines import logistic_regression_on, ridge_on
from ltdi.errors import InvalidConfig

METHODS = ("logistic_regression", "ridge")
LEAST = 1e-12


@dataclass(frozen=True)
class HeadConfig:
    """How heads are fitted.

    Args:
        method: `logistic_regression` or `ridge`.
        strength: C of the one, lambda of the other, for features of mean squared length 1.
    """

    method: str = "logistic_regression"
    strength: float = 10.0

    def __post_init__(self) -> None:
        if self.method not in METHODS or not self.strength > 0:
            raise InvalidConfig(f"head {self.method!r} of strength {self.strength} is unknown; known: {METHODS}", field="head")


def fit_head(
    features: Tensor, class_index: Tensor, ways: int, config: HeadConfig, bias: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Weight `[N, D]` and bias `[N]` of a linear head, float32; the bias None where there is to be none.

    Features are centred where there is a bias, and divided by the root of their mean squared length, so that one
    strength serves any model; both are folded back into the head. It is solved in float64.

    Args:
        features: `[M, D]`.
        class_index: `[M]`, any number of each class.
    """
    x = features.double()
    centre = x.mean(0) if bias else torch.zeros_like(x[0])
    x = x - centre
    scale = x.square().sum(-1).mean().sqrt().clamp_min(LEAST)
    target = F.one_hot(class_index, ways).double()
    solve = logistic_regression_on if config.method == "logistic_regression" else ridge_on
    head = solve((x / scale).unsqueeze(0), target.unsqueeze(0), config.strength, bias=bias)[0]
    weight, shift = head[:, :-1] / scale, head[:, -1]
    if not bias:
        return weight.float(), None
    return weight.float(), (shift - weight @ centre).float()
