"""What every image reader returns: the same number of images for each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassImages:
    """Images by class.

    Args:
        images: `[classes, images, H, W]`, uint8, ink (or light) 255; `[classes, images, 3, H, W]` where they have colour.
        names: a name for each class; what stands before a `/` is its group, an alphabet for example.
    """

    images: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def groups(self) -> Tensor:
        """The number of each class's group, `[classes]`, in alphabetical order."""
        own = [name.split("/")[0] for name in self.names]
        places = {group: place for place, group in enumerate(sorted(set(own)))}
        return torch.tensor([places[group] for group in own])

    def to(self, device: str) -> ClassImages:
        """The same on a device of torch."""
        return ClassImages(self.images.to(device), self.names)

    @property
    def pixels(self) -> Tensor:
        """The images as bodies take them, in a row: `[classes * images, C, H, W]`, uint8."""
        flat = self.images.flatten(0, 1)
        return flat.unsqueeze(1) if flat.ndim == 3 else flat
