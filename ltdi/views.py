"""Changed copies of an example image: what they have in common is the class, what differs is chance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Images under affine maps of the plane, bilinear, paper around.

    Args:
        images: `[M, C, H, W]`, float.
        matrices: `[M, 3, 3]` or `[M, 2, 3]`, in coordinates of -1 to 1.

    Returns:
        Of the shape of `images`.
    """
    grid = F.affine_grid(matrices[:, :2], list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def all_views(images: Tensor, matrices: Tensor) -> Tensor:
    """Every image under every map: `[M, C, H, W]` and `[V, 2, 3]` to `[M V, C, H, W]`, those of an image together."""
    count = len(matrices)
    return warp(images.repeat_interleave(count, 0), matrices.repeat(len(images), 1, 1))


def summarise(features: Tensor, views: Tensor) -> Tensor:
    """An example's features with the mean and the spread of its views.

    Args:
        features: `[M, D]`, of the images as they are.
        views: `[M, V, D]`.

    Returns:
        `[M, 3, D]`: the features, the mean of the views, and their root mean square distance from the features.
    """
    spread = (views - features.unsqueeze(1)).square().mean(1).sqrt()
    return torch.stack([features, views.mean(1), spread], dim=1)
