"""Made data: text-like feature sets whose classes are blobs with names near them, and photographs of one tint a class."""

from __future__ import annotations

import torch

from ltdi.experts import unit
from training.data.dataset import ClassImages
from training.features import FeatureSet


def made_set(name: str, classes: int = 8, items: int = 20, size: int = 16, spread: float = 0.8, seed: int = 0) -> FeatureSet:
    """A set whose last quarter of items is the test part, with three test items of no class."""
    chance = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, size, generator=chance)
    features = (centres[:, None] + spread * torch.randn(classes, items, size, generator=chance)).flatten(0, 1)
    outside = 2 * torch.randn(3, size, generator=chance)
    test = (torch.arange(items) >= items - items // 4).repeat(classes)
    index = torch.arange(classes).repeat_interleave(items)
    names = unit(centres + 1.5 * torch.randn(classes, size, generator=chance))
    return FeatureSet(
        name, "made", unit(torch.cat([features, outside])), torch.cat([index, torch.full((3,), -1)]),
        torch.cat([~test, torch.zeros(3, dtype=torch.bool)]), torch.cat([test, torch.ones(3, dtype=torch.bool)]),
        tuple(f"c{i}" for i in range(classes)), names, names.roll(1, 1),
    )


def photos(classes: int = 4, count: int = 6, side: int = 32) -> ClassImages:
    """Noise about a tint of each class."""
    chance = torch.Generator().manual_seed(0)
    tint = torch.randint(0, 200, (classes, 1, 3, 1, 1), generator=chance)
    noise = torch.randint(0, 55, (classes, count, 3, side, side), generator=chance)
    return ClassImages((tint + noise).to(torch.uint8), [str(i) for i in range(classes)])
