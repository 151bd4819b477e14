"""Features of domains under a body, and tasks whose classes are known by name from other domains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.episodes import Episodes, Protocol, random_classes


@dataclass(frozen=True)
class DomainBank:
    """One domain under one body.

    Args:
        features: `[classes, most, S, D]`, zeros where a class has fewer images; S = 3 where views stand beside the features.
        counts: `[classes]`, images of each.
    """

    features: Tensor
    counts: Tensor

    @classmethod
    def of(cls, classes: Sequence[Tensor]) -> DomainBank:
        """From the features of each class, `[M, S, D]`."""
        counts = torch.tensor([len(own) for own in classes])
        features = classes[0].new_zeros(len(classes), int(counts.max()), *classes[0].shape[1:])
        for place, own in enumerate(classes):
            features[place, : len(own)] = own
        return cls(features, counts)

    def by_class(self) -> list[Tensor]:
        """The features of each class, `[M, D]`."""
        return [own[:count, 0] for own, count in zip(self.features, self.counts.tolist(), strict=True)]


@dataclass(frozen=True)
class KnownEpisodes(Episodes):
    """Tasks whose classes are known: `classes` `[B, N]` says which."""

    classes: Tensor = torch.empty(0)


@dataclass(frozen=True)
class Known:
    """What the training domains say of the classes, under the body that was trained on them.

    Args:
        means: `[domains, classes, D]`.
        within: `[D, D]`, covariance around them.
        images: `[domains, classes, images, D]`, some of the images behind them.
    """

    means: Tensor
    within: Tensor
    images: Tensor

    @property
    def across(self) -> Tensor:
        """`within`, with what differs between domains beside the domain's own mean: `[D, D]`."""
        own = self.means - self.means.mean(1, keepdim=True)
        around = (own - own.mean(0)).flatten(0, 1)
        return self.within + around.T @ around / max(len(around) - self.means.shape[1], 1)

    @classmethod
    def of(cls, domains: Sequence[Sequence[Tensor]], images: int) -> Known:
        """From the features of each class in each domain, `[M, D]`."""
        means = torch.stack([torch.stack([own.mean(0) for own in classes]) for classes in domains])
        around = torch.cat([own - own.mean(0) for classes in domains for own in classes])
        some = torch.stack([torch.stack([own[torch.arange(images) % len(own)] for own in classes]) for classes in domains])
        return cls(means, around.T @ around / (len(around) - means.shape[0] * means.shape[1]), some)


@dataclass(frozen=True)
class Problem:
    """A domain that a body has not seen, and what the body's own domains say of its classes.

    Args:
        name: of the domain.
        bank: its features.
        known: of the body's own domains.
        classifier: `[classes, D + 1]`, the head that the body was trained with.
        virtual: `[R, classes, D]`, how the means of classes move in virtual domains (`training.domains.modes`).
    """

    name: str
    bank: DomainBank
    known: Known
    classifier: Tensor
    virtual: Tensor


@dataclass(frozen=True)
class Split:
    """What may be learned for a left-out domain: `lessons`, the inner problems of the others."""

    left: str
    lessons: list[Problem]

    def without(self, name: str) -> Split:
        """The same for an inner problem: without its own lesson."""
        return Split(name, [one for one in self.lessons if one.name != name])


def draw_known(bank: DomainBank, protocol: Protocol, batch: int = 100) -> Iterator[KnownEpisodes]:
    """The episodes of a protocol, in batches."""
    generator = torch.Generator().manual_seed(protocol.seed)
    left = protocol.episodes
    while left > 0:
        yield random_known(bank, protocol, min(batch, left), generator)
        left -= batch


def random_known(bank: DomainBank, protocol: Protocol, batch: int, generator: torch.Generator) -> KnownEpisodes:
    """A batch of tasks of random classes and random images of them."""
    classes = random_classes(len(bank.counts), protocol.ways, batch, generator)
    most = bank.features.shape[1]
    order = torch.rand(batch, protocol.ways, most, generator=generator)
    order = order + (torch.arange(most) >= bank.counts[classes].unsqueeze(-1))
    images = order.argsort(2)[..., : protocol.shots + protocol.queries]
    drawn = bank.features[classes.unsqueeze(2), images]
    examples, asked = drawn[:, :, : protocol.shots], drawn[:, :, protocol.shots :, 0]
    return KnownEpisodes(examples[..., 0, :], asked, examples[..., 1:, :] if drawn.shape[3] > 1 else None, classes)


def shown(episodes: KnownEpisodes, share: float) -> Tensor:
    """The examples `[B, N, K, D]`, moved to the mean of their views by `share`."""
    if not share or episodes.views is None:
        return episodes.support
    return torch.lerp(episodes.support, episodes.views[..., 0, :], share)


def task_centre(examples: Tensor) -> Tensor:
    """The mean of the class means of `[B, N, K, D]`: `[B, 1, D]`."""
    return examples.mean(2).mean(1, keepdim=True)


def known_means(episodes: KnownEpisodes, known: Known) -> Tensor:
    """Means over domains of the task's classes, each domain less its mean over those classes: `[B, N, D]`."""
    own = known.means[:, episodes.classes]
    return (own - own.mean(2, keepdim=True)).mean(0)
