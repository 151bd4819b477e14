"""Further classes for a generator, made from the training classes: changed images, and mixed features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.dataset import ClassImages

SOFT, CLOSE = 0.5, 0.7  # of the pixels of a side; of its length
CHANNEL_ORDERS = ((1, 2, 0), (2, 0, 1), (2, 1, 0))


def virtual_classes(data: ClassImages) -> list[tuple[str, ClassImages]]:
    """Colour images changed so that a body knows their classes no better than new ones: turned, with channels exchanged, softer, and closer.

    A body tells its training classes apart too well: a generator that learns on them meets harder tasks in use.
    Softer and closer ones keep its gain where images are not as sharp, or things fill them.
    """
    softened = [("soft", softer(data.images, SOFT)), ("close", closer(data.images, CLOSE))]
    turned = [(f"turn{90 * turn}", torch.rot90(data.images, turn, (3, 4))) for turn in (1, 2, 3)]
    exchanged = [("order" + "".join(map(str, order)), data.images[:, :, list(order)]) for order in CHANNEL_ORDERS]
    return [(name, ClassImages(images.contiguous(), data.names)) for name, images in turned + exchanged + softened]


def softer(images: Tensor, share: float) -> Tensor:
    """Images `[classes, drawings, 3, S, S]` as if they had been taken with `share` of the pixels a side."""
    size = round(share * images.shape[-1])
    flat = F.interpolate(images.flatten(0, 1).float(), size=(size, size), mode="area")
    return _again(flat, images)


def closer(images: Tensor, share: float) -> Tensor:
    """The middle of images, `share` of each side, at their own size."""
    side = images.shape[-1]
    kept = round(share * side)
    first = (side - kept) // 2
    return _again(images[..., first : first + kept, first : first + kept].flatten(0, 1).float(), images)


def _again(flat: Tensor, images: Tensor) -> Tensor:
    resized = F.interpolate(flat, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).byte().view(images.shape)


def mix_classes(batch: Tensor, other: Tensor, share: float, chance: torch.Generator) -> Tensor:
    """New classes from two batches `[classes, drawings, S, D]`: channels of one class, the rest of another, for all drawings alike.

    A share of the classes takes up to half of its channels from `other`; features keep their length.
    """
    classes, size = len(batch), batch.shape[-1]
    most = torch.rand(classes, 1, generator=chance) / 2 * (torch.rand(classes, 1, generator=chance) < share)
    taken = torch.rand(classes, size, generator=chance) < most
    mixed = torch.where(taken[:, None, None], other, batch)
    seen = mixed[:, :, :2]  # features and mean of views, which are of about one length; spreads stay as they are
    lengths = batch[:, :, :2].norm(dim=-1, keepdim=True) / seen.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.cat([seen * lengths, mixed[:, :, 2:]], dim=2)


def around_their_means(banks: Sequence[Tensor]) -> Tensor:
    """Banks as one, each less its mean features, cut to as many drawings as the smallest has."""
    fewest = min(bank.shape[1] for bank in banks)
    return torch.cat([bank[:, :fewest] - bank[:, :fewest, :1].mean((0, 1)) for bank in banks])
