"""What every image reader returns: the same number of images for each class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassImages:
    """Images by class.

    Args:
        images: `[classes, images, H, W]`, uint8, ink (or light) 255.
        names: a name for each class.
    """

    images: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)
