"""Images as another domain might have them: grey, negative, drawn by their edges, bent, blurred and the like."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Change = Callable[[Tensor], Tensor]


def grey(images: Tensor) -> Tensor:
    """All channels the mean of the three; `[M, 3, H, W]` in 0..1, as all of these."""
    return images.mean(1, keepdim=True).expand_as(images)


def negative(images: Tensor) -> Tensor:
    """Dark for light."""
    return 1 - images


def edges(images: Tensor) -> Tensor:
    """Dark lines on white where the grey value changes (Sobel)."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    plane = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    slope = F.conv2d(plane, torch.stack([kernel, kernel.T]).unsqueeze(1)).square().sum(1, keepdim=True).sqrt()
    return (1 - slope).clamp(0, 1).expand_as(images)


def few_tones(images: Tensor) -> Tensor:
    """Four values of each channel."""
    return (images * 3).round() / 3


def mixed_channels(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel a random mean of the three, one mixture an image."""
    shares = torch.rand(len(images), 3, 3, generator=generator).square()
    shares = shares / shares.sum(2, keepdim=True)
    return (shares @ images.flatten(2)).view_as(images)


CHANGES: dict[str, Change] = {"grey": grey, "negative": negative, "edges": edges, "few-tones": few_tones}


def estrange(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the images changed, each in one of the five ways: `[M, 3, H, W]`, float in 0..1."""
    ways: list[Change] = [*CHANGES.values(), lambda some: mixed_channels(some, generator)]
    chosen = torch.randint(len(ways), (len(images),), generator=generator)
    chosen[torch.rand(len(images), generator=generator) >= share] = len(ways)
    changed = images.clone()
    for place, way in enumerate(ways):
        rows = (chosen == place).nonzero().squeeze(1)
        if len(rows):
            changed[rows] = way(images[rows])
    return changed


def blurred(images: Tensor, pixels: int) -> Tensor:
    """As if taken with `pixels` a side."""
    small = F.interpolate(images, size=(pixels, pixels), mode="area")
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


def two_tones(images: Tensor) -> Tensor:
    """White where an image is lighter than its median, else black."""
    plane = images.mean(1, keepdim=True)
    return (plane > plane.flatten(1).median(1).values[:, None, None, None]).float().expand_as(images)


def waved(images: Tensor) -> Tensor:
    """Bent along two waves."""
    places = torch.linspace(-1, 1, images.shape[-1])
    down, across = torch.meshgrid(places, places, indexing="ij")
    grid = torch.stack([across + 0.12 * torch.sin(5 * down), down + 0.12 * torch.sin(5 * across + 1)], dim=-1)
    return _sampled(images, grid.expand(len(images), -1, -1, -1))


def zoomed(images: Tensor, side: float) -> Tensor:
    """The middle of images, `side` of their length; above 1 the border goes on around them."""
    maps = torch.tensor([[side, 0.0, 0], [0, side, 0]]).expand(len(images), 2, 3)
    return _sampled(images, F.affine_grid(maps, list(images.shape), align_corners=False))


def noisy(images: Tensor) -> Tensor:
    """With noise of standard deviation 0.2, the same for every call."""
    return (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


VIRTUAL_DOMAINS: dict[str, Change] = {
    "two-tones": two_tones,
    "coarse-edges": lambda images: edges(blurred(images, 20)),
    "white-lines": lambda images: negative(edges(images)),
    "blurred": lambda images: blurred(images, 14),
    "close": lambda images: zoomed(images, 0.6),
    "far": lambda images: zoomed(images, 1.5),
    "noisy": noisy,
    "exchanged-negative": lambda images: negative(images[:, [1, 2, 0]]),
    "waved": waved,
    "waved-edges": lambda images: edges(waved(images)),
    "grey-tones": lambda images: few_tones(grey(blurred(images, 24))),
    "silhouette": lambda images: two_tones(blurred(images, 10)),
}
