"""Episodes: few-shot tasks drawn by a fixed seed, the same for every method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.augment import new_class_matrices, warp
from training.data.dataset import ClassImages


@dataclass(frozen=True)
class Protocol:
    """How tasks are drawn.

    Args:
        ways, shots, queries: classes, examples and queries a class.
        episodes: how many tasks.
        seed: of the drawing.
    """

    ways: int
    shots: int
    queries: int = 15
    episodes: int = 2000
    seed: int = 0

    @property
    def name(self) -> str:
        """`5-way 1-shot`."""
        return f"{self.ways}-way {self.shots}-shot"


COLUMNS = ((5, 1), (5, 5), (20, 1), (20, 5))


@dataclass(frozen=True)
class Episodes:
    """A batch of tasks as features.

    Args:
        support: `[B, N, K, D]`.
        query: `[B, N, Q, D]`.
    """

    support: Tensor
    query: Tensor

    @property
    def queries(self) -> Tensor:
        """All queries of a task in a row, class by class: `[B, N Q, D]`."""
        return self.query.flatten(1, 2)

    @property
    def target(self) -> Tensor:
        """The class of each of `queries`: `[N Q]`."""
        return torch.arange(self.query.shape[1]).repeat_interleave(self.query.shape[2])


@torch.inference_mode()
def embed_all(body: nn.Module, data: ClassImages, batch: int = 1000) -> Tensor:
    """Features of every image, `[classes, images, D]`."""
    flat = data.images.flatten(0, 1)
    device = next(body.parameters()).device
    parts = [body(part.to(device).unsqueeze(1).float() / 255).cpu() for part in flat.split(batch)]
    return torch.cat(parts).unflatten(0, data.images.shape[:2])


@torch.inference_mode()
def embed_changed(body: nn.Module, data: ClassImages, seed: int, batch: int = 1000) -> Tensor:
    """Features of every image after its class was turned into another one, `[classes, images, D]`.

    The body has not seen these classes: its one-shot mistakes on them are like those on classes to come.
    """
    chance = torch.Generator().manual_seed(seed)
    classes, drawings = data.images.shape[:2]
    matrices = new_class_matrices(classes, chance).repeat_interleave(drawings, dim=0)
    flat, device = data.images.flatten(0, 1), next(body.parameters()).device
    parts = [
        body(warp(images.unsqueeze(1).float() / 255, maps).to(device)).cpu()
        for images, maps in zip(flat.split(batch), matrices.split(batch), strict=True)
    ]
    return torch.cat(parts).unflatten(0, (classes, drawings))


def draw(features: Tensor, protocol: Protocol, batch: int = 100) -> Iterator[Episodes]:
    """The episodes of a protocol over a bank of features `[classes, images, D]`, in batches."""
    generator = torch.Generator().manual_seed(protocol.seed)
    left = protocol.episodes
    while left > 0:
        yield random_episodes(features, protocol, min(batch, left), generator)
        left -= batch


def random_episodes(features: Tensor, protocol: Protocol, batch: int, generator: torch.Generator) -> Episodes:
    """A batch of tasks of random classes and random images of them."""
    classes = torch.rand(batch, len(features), generator=generator).argsort(1)[:, : protocol.ways]
    images = torch.rand(batch, protocol.ways, features.shape[1], generator=generator).argsort(2)
    images = images[..., : protocol.shots + protocol.queries]
    drawn = features[classes.unsqueeze(2), images]
    return Episodes(drawn[:, :, : protocol.shots], drawn[:, :, protocol.shots :])
