"""Conv-4: the four-block convolutional body of the few-shot literature, for small grey images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv4(nn.Module):
    """Four blocks of convolution, pooling, batch normalisation and ReLU; the output is flattened.

    Pooling stands before the normalisation, not after it: the block normalises and rectifies a quarter
    of the numbers, which trains twice as fast on a CPU (`DECISIONS.md`). A 28 x 28 image gives
    28, 14, 7, 4 and, rounded up, 2 x 2 cells of `channels` each.

    Args:
        channels: the width of each block.
        image_size: side of the square image, pixels.
    """

    kind = "images"
    remote = False
    colours = 1

    def __init__(self, channels: int = 64, image_size: int = 28) -> None:
        super().__init__()
        self.image_size = image_size
        self.blocks = nn.Sequential(*(_block(1 if i == 0 else channels, channels) for i in range(4)))
        cells = image_size
        for _ in range(4):
            cells = -(-cells // 2)
        self.feature_size = channels * cells * cells
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: `[M, 1, image_size, image_size]`, float, ink 1 and paper 0.

        Returns:
            `[M, feature_size]`.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        return self.blocks(images).flatten(1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
