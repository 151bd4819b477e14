"""Augmentation of images: small affine changes, a different one for each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def random_affine(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, stretch, shear and shift each image a little.

    At strength 1: up to 15 degrees, 15 % of scale on each axis and of shear, 6 % of the width of shift.

    Args:
        images: `[M, 1, H, W]`, float.
        generator: the source of chance.

    Returns:
        Of the shape of `images`.
    """
    angle, stretch_x, stretch_y, shear, shift_x, shift_y = (
        torch.rand(6, len(images), generator=generator) * 2 - 1
    ) * strength * torch.tensor([math.radians(15), 0.15, 0.15, 0.15, 0.12, 0.12]).unsqueeze(1)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * (1 + stretch_x), -sin * (1 + stretch_y) + shear, shift_x], dim=1),
        torch.stack([sin * (1 + stretch_x), cos * (1 + stretch_y), shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
