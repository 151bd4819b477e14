"""Between weights and the standardised tensor that the chain runs in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Standardiser(nn.Module):
    """Subtracts a mean and divides by a scale, so that x_T ~ N(0, I) is of the size of what is generated.

    Args:
        mean, scale: of the shape of one item, or one that broadcasts to it.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @classmethod
    def fit(cls, items: Tensor, least: float = 1e-6) -> Standardiser:
        """Statistics over all axes of `items` but the last."""
        rows = items.flatten(0, -2)
        return cls(rows.mean(0), rows.std(0).clamp_min(least))

    def encode(self, values: Tensor) -> Tensor:
        """Standardised values, of the same shape."""
        return (values - self.mean) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """The values that `encode` was given."""
        return torch.addcmul(self.mean, x, self.scale)


@dataclass(frozen=True)
class Layout:
    """Where each layer lies in a flat vector of head weights.

    Args:
        sizes: the widths from features to classes, `(D, N)` or `(D, H, N)`.
    """

    sizes: tuple[int, ...]

    @property
    def length(self) -> int:
        """P, how many weights there are."""
        return sum(o * (i + 1) for i, o in zip(self.sizes, self.sizes[1:], strict=False))

    def split(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`[..., P]` to weight `[..., out, in]` and bias `[..., out]` of each layer."""
        layers, at = [], 0
        for inputs, outputs in zip(self.sizes, self.sizes[1:], strict=False):
            weight = flat[..., at : at + outputs * inputs].unflatten(-1, (outputs, inputs))
            at += outputs * inputs
            layers.append((weight, flat[..., at : at + outputs]))
            at += outputs
        return layers

    def join(self, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([part for weight, bias in layers for part in (weight.flatten(-2), bias)], dim=-1)

    def logits(self, flat: Tensor, features: Tensor) -> Tensor:
        """Logits `[B, Q, N]` of features `[B, Q, D]` under weights `[B, P]`, ReLU between layers."""
        layers, x = self.split(flat), features
        for index, (weight, bias) in enumerate(layers):
            x = x @ weight.transpose(-1, -2) + bias.unsqueeze(-2)
            x = x.relu() if index + 1 < len(layers) else x
        return x
