"""Augmentation of images: small affine changes of each drawing, larger ones that make a new class; crops and colours of photographs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.views import warp


def random_affine(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, stretch, shear and shift each image a little.

    At strength 1: up to 15 degrees, 15 % of scale on each axis and of shear, 6 % of the width of shift.

    Args:
        images: `[M, 1, H, W]`, float.
        generator: the source of chance.

    Returns:
        Of the shape of `images`.
    """
    return warp(images, random_matrices(len(images), generator, strength).to(images.device))


def random_matrices(count: int, generator: torch.Generator, strength: float) -> Tensor:
    """Affine maps of the plane near the identity, `[count, 3, 3]`; the ranges are those of `random_affine`."""
    angle, stretch_x, stretch_y, shear, shift_x, shift_y = (
        (torch.rand(6, count, generator=generator) * 2 - 1)
        * strength
        * torch.tensor([math.radians(15), 0.15, 0.15, 0.15, 0.12, 0.12]).unsqueeze(1)
    )
    cos, sin = angle.cos(), angle.sin()
    nought, one = torch.zeros(count), torch.ones(count)
    rows = [
        torch.stack([cos * (1 + stretch_x), -sin * (1 + stretch_y) + shear, shift_x], dim=1),
        torch.stack([sin * (1 + stretch_x), cos * (1 + stretch_y), shift_y], dim=1),
        torch.stack([nought, nought, one], dim=1),
    ]
    return torch.stack(rows, dim=1)


def crop_maps(count: int, generator: torch.Generator, least: float = 0.5) -> Tensor:
    """Random crops, half of them mirrored, as maps `[count, 2, 3]`; `least` is the smallest share of the area."""
    area, aspect, x, y = torch.rand(4, count, generator=generator)
    side = (least + (1 - least) * area).sqrt()
    stretch = ((aspect - 0.5) * 2 * math.log(1.25)).exp().sqrt()
    wide, high = (side * stretch).clamp_max(1), (side / stretch).clamp_max(1)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    nought = torch.zeros(count)
    across = torch.stack([wide * mirror, nought, (1 - wide) * (2 * x - 1)], dim=1)
    return torch.stack([across, torch.stack([nought, high, (1 - high) * (2 * y - 1)], dim=1)], dim=1)


def crop(images: Tensor, maps: Tensor, size: int) -> Tensor:
    """Images `[M, C, H, W]` under maps, `[M, C, size, size]`."""
    grid = F.affine_grid(maps.to(images.device), [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and balance of each image changed a little."""
    count = len(images)
    contrast, saturation, light = ((torch.rand(3, count, 1, 1, 1, generator=generator) * 2 - 1) * 0.4).to(images.device)
    balance = (1 + (torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1) * 0.1).to(images.device)
    mean = images.mean((1, 2, 3), keepdim=True)
    grey = images.mean(1, keepdim=True)
    images = grey + (1 + saturation) * (images - grey)
    return ((mean * (1 + light / 2) + (1 + contrast) * (images - mean)) * balance).clamp(0, 1)


def random_photo(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Crop, mirror and recolour each photograph, as where its class is to be seen all the same.

    At strength 1: crops of half the area or more; at less, of nearer to all of it.

    Args:
        images: `[M, 3, H, W]`, float in 0..1, squares.
        generator: the source of chance.

    Returns:
        Of the shape of `images`.
    """
    return jitter(crop(images, crop_maps(len(images), generator, 1 - strength / 2), images.shape[-1]), generator)


def new_class_matrices(count: int, generator: torch.Generator) -> Tensor:
    """Maps that turn a character into another one, `[count, 3, 3]`: half of them mirrored, all changed strongly."""
    mirrored = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    matrices = random_matrices(count, generator, strength=2.0)
    matrices[:, :2, 2] = 0
    return matrices * torch.stack([mirrored, torch.ones(count), torch.ones(count)], dim=1).unsqueeze(1)


def view_maps(count: int, strength: float = 1.0) -> Tensor:
    """The maps of a bundle's views, `[count, 2, 3]`; the ranges are those of `random_affine`."""
    return random_matrices(count, torch.Generator().manual_seed(0), strength)[:, :2].contiguous()


CROPS = (  # side, shift to the right and down in units of what is left, mirrored
    (1.0, 0, 0, True), (0.75, 0, 0, False), (0.75, 0, 0, True), (0.8, -1, -1, False),
    (0.8, 1, -1, True), (0.8, -1, 1, True), (0.8, 1, 1, False), (0.6, 0, 0, False),
)  # fmt: skip


def crop_views(count: int) -> Tensor:
    """The maps of a photograph's views, `[count, 2, 3]`, count up to eight: mirrored, and crops of several sizes."""
    rows = [
        [[-side if mirrored else side, 0, right * (1 - side)], [0, side, down * (1 - side)]]
        for side, right, down, mirrored in CROPS[:count]
    ]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 3)
