"""Conv-4 for colour photographs: wider towards the end, averaged over the plane, features of one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH = 4.0  # of features: their dot products, up to 16, are logits as they are
LEAST = 1e-3  # under the root, whose slope at 0 is infinite


class PhotoConv4(nn.Module):
    """Four blocks of convolution, pooling (not in the last), batch normalisation and ReLU, averaged over the plane.

    Features are brought to the form that closed forms do best with: the square root of the averages, less their
    mean over the base classes, brought to one length.

    Args:
        widths: channels of the four blocks; D is the last.
        image_size: side of the square image, pixels.
    """

    kind = "images"
    remote = False
    colours = 3

    def __init__(self, widths: Sequence[int] = (64, 96, 128, 256), image_size: int = 48) -> None:
        super().__init__()
        self.image_size, self.feature_size = image_size, widths[-1]
        inputs = (3, *widths[:-1])
        self.blocks = nn.Sequential(
            *(_block(a, b, pool=place < 3) for place, (a, b) in enumerate(zip(inputs, widths, strict=True)))
        )
        self.register_buffer("centre", torch.zeros(widths[-1]))
        self.to(memory_format=torch.channels_last)

    def roots(self, images: Tensor) -> Tensor:
        """Square roots of the averages, before centring: `[M, D]`, float32."""
        images = images.contiguous(memory_format=torch.channels_last)
        return (self.blocks(images).float().mean((2, 3)) + LEAST).sqrt()

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: `[M, 3, H, W]`, float in 0..1.

        Returns:
            `[M, D]`, rows of length 4.
        """
        return LENGTH * F.normalize(self.roots(images) - self.centre, dim=1)


def _block(inputs: int, outputs: int, pool: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        *([nn.MaxPool2d(2, ceil_mode=True)] if pool else []),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
