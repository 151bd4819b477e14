"""Made text-like feature sets: classes are blobs, names lie near them."""

from __future__ import annotations

import torch

from ltdi.experts import unit
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
