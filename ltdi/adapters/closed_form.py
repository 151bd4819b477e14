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


@dataclass(frozen=True)
class LinearHeads:
    """Heads of one task: `weight` `[B, N, D]` and `bias` `[B, N]`, float32; the bias None where the model has none."""

    weight: Tensor
    bias: Tensor | None

    def logits(self, features: Tensor) -> Tensor:
        """Logits `[B, M, N]` of features `[B, M, D]`."""
        answers = features @ self.weight.transpose(-1, -2)
        return answers if self.bias is None else answers + self.bias.unsqueeze(-2)


def fit_heads(features: Tensor, class_index: Tensor, ways: int, kept: Tensor, config: HeadConfig, bias: bool = True) -> LinearHeads:
    """Linear heads on parts of the examples, one for each row of `kept`.

    Features are centred where there is a bias, and divided by the root of their mean squared length, so that one
    strength serves any model; both are folded back into the head. It is solved in float64.

    Args:
        features: `[B, M, D]`.
        class_index: `[M]`, any number of each class.
        kept: `[B, M]`, boolean: the examples that a head is fitted on.
    """
    x, rows = features.double(), kept.double().unsqueeze(-1)
    count = rows.sum(-2, keepdim=True)
    centre = (x * rows).sum(-2, keepdim=True) / count if bias else torch.zeros_like(x[:, :1])
    x = (x - centre) * rows
    scale = (x.square().sum((-2, -1), keepdim=True) / count).sqrt().clamp_min(LEAST)
    target = F.one_hot(class_index, ways).double().expand(len(x), -1, -1)
    solve = logistic_regression_on if config.method == "logistic_regression" else ridge_on
    head = solve(x / scale, target, config.strength, bias=bias, kept=kept)
    weight, shift = head[..., :-1] / scale, head[..., -1]
    if not bias:
        return LinearHeads(weight.float(), None)
    return LinearHeads(weight.float(), (shift - (weight @ centre.transpose(-1, -2)).squeeze(-1)).float())
