"""Episodes: few-shot tasks drawn by a fixed seed, the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi.views import all_views, summarise
from training.data.dataset import ClassImages
from training.data.omniglot import OneShotRuns


@dataclass(frozen=True)
class Protocol:
    """How tasks are drawn.

    Args:
        ways, shots, queries: classes, examples and queries a class.
        episodes: how many tasks.
        seed: of the drawing.
        within: whether all classes of a task are of one group, an alphabet for example.
    """

    ways: int
    shots: int
    queries: int = 15
    episodes: int = 2000
    seed: int = 0
    within: bool = False

    @property
    def name(self) -> str:
        """`5-way 1-shot`."""
        return f"{self.ways}-way {self.shots}-shot{', one group' if self.within else ''}"


COLUMNS = ((5, 1), (5, 5), (20, 1), (20, 5))


@dataclass(frozen=True)
class Episodes:
    """A batch of tasks as features.

    Args:
        support: `[B, N, K, D]`.
        query: `[B, N, Q, D]`.
        views: `[B, N, K, 2, D]`, mean and spread of the views of each example, where the bank has them.
    """

    support: Tensor
    query: Tensor
    views: Tensor | None = None

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
    return _embed_rows(body, data, batch)


@torch.inference_mode()
def embed_bank(body: nn.Module, data: ClassImages, maps: Tensor, batch: int = 200) -> Tensor:
    """Features of every image with mean and spread of its views, `[classes, images, 3, D]`; `[..., 1, D]` without maps.

    Args:
        maps: `[V, 2, 3]`, of the views.
    """

    def embed(pixels: Tensor) -> Tensor:
        features = body(pixels)
        if not len(maps):
            return features.unsqueeze(1)
        return summarise(features, body(all_views(pixels, maps)).unflatten(0, (len(pixels), -1)))

    return _embed_rows(embed, data, batch)


def _embed_rows(embed: Callable[[Tensor], Tensor], data: ClassImages, batch: int) -> Tensor:
    parts = [embed(images.float() / 255) for images in data.pixels.split(batch)]
    return torch.cat(parts).unflatten(0, data.images.shape[:2]).clone()


def draw(bank: Tensor, protocol: Protocol, batch: int = 100, groups: Tensor | None = None) -> Iterator[Episodes]:
    """The episodes of a protocol over a bank `[classes, images, D]` or `[classes, images, S, D]`, in batches.

    S is 3 where mean and spread of views stand beside the features, else 1.

    Args:
        groups: `[classes]`, for protocols within one.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    left = protocol.episodes
    while left > 0:
        yield random_episodes(bank, protocol, min(batch, left), generator, groups)
        left -= batch


def random_classes(
    classes: int, ways: int, batch: int, generator: torch.Generator, groups: Tensor | None = None
) -> Tensor:
    """Distinct classes of each of `batch` tasks, `[batch, ways]`; of one group of at least `ways` where there are groups."""
    order = torch.rand(batch, classes, generator=generator)
    if groups is not None:
        large = (torch.bincount(groups) >= ways).nonzero().squeeze(1)
        if not len(large):
            raise ValueError(f"no group has {ways} classes")
        own = large[torch.randint(len(large), (batch,), generator=generator)]
        order = order + (groups != own.unsqueeze(1))
    return order.argsort(1)[:, :ways]


def random_episodes(
    bank: Tensor, protocol: Protocol, batch: int, generator: torch.Generator, groups: Tensor | None = None
) -> Episodes:
    """A batch of tasks of random classes and random images of them."""
    own = groups if protocol.within else None
    classes = random_classes(len(bank), protocol.ways, batch, generator, own)
    images = torch.rand(batch, protocol.ways, bank.shape[1], generator=generator).argsort(2)
    examples = bank[classes.unsqueeze(2), images[..., : protocol.shots]]
    asked = bank[classes.unsqueeze(2), images[..., protocol.shots : protocol.shots + protocol.queries]]
    if bank.ndim == 3:
        return Episodes(examples, asked)
    views = examples[..., 1:, :] if bank.shape[2] > 1 else None
    return Episodes(examples[..., 0, :], asked[..., 0, :], views)


@torch.inference_mode()
def oneshot_episodes(body: nn.Module, runs: OneShotRuns, maps: Tensor) -> Episodes:
    """The official one-shot runs as episodes of one example and one query a class.

    Args:
        maps: `[V, 2, 3]`, of the views.
    """
    order = runs.target.argsort(1)
    assert torch.equal(runs.target.gather(1, order), torch.arange(order.shape[1]).expand_as(order))
    rows = torch.arange(len(order)).unsqueeze(1)
    shown = embed_bank(body, ClassImages(runs.support, [f"{n}" for n in range(len(order))]), maps)
    asked = embed_all(body, ClassImages(runs.queries[rows, order], [f"{n}" for n in range(len(order))]))
    views = shown[:, :, None, 1:] if len(maps) else None
    return Episodes(shown[:, :, None, 0], asked.unsqueeze(2), views)
