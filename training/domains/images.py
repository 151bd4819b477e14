"""Images of several domains with the same classes in each, and which of them a body is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from ltdi.errors import DataMissing
from training.data.dataset import ClassImages
from training.data.photos import read_domainnet, read_pacs

SOURCES = {"pacs": read_pacs, "domainnet": read_domainnet}


@dataclass(frozen=True)
class DomainImages:
    """A data set of domains.

    Args:
        images: by domain, for each class in the order of `classes` `[M, 3, S, S]`, uint8, M as the data set has it.
        classes: their names.
    """

    images: dict[str, list[Tensor]]
    classes: tuple[str, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """In alphabetical order."""
        return tuple(sorted(self.images))

    def for_training(self, domains: tuple[str, ...], most: int) -> ClassImages:
        """The classes with `most` images from each of `domains`: spread over what there is, or again where there are fewer."""
        rows = [
            torch.cat([self.images[domain][place][spread_over(len(self.images[domain][place]), most)] for domain in domains])
            for place in range(len(self.classes))
        ]
        return ClassImages(torch.stack(rows), list(self.classes))


def spread_over(count: int, most: int) -> Tensor:
    """`most` places of `count`, evenly spread; each several times where there are fewer."""
    return torch.arange(most) % count if count < most else (torch.arange(most) * count) // most


def load_domains(data: Path, image_size: int, source: str = "pacs") -> DomainImages:
    """A data set by domain.

    Args:
        source: one of `SOURCES`.

    Raises:
        DataMissing: it does not lie at `data`, or a domain lacks a class of another.
    """
    found = SOURCES[source](data, image_size)
    classes = sorted({name.split("/")[1] for name in found})
    domains = sorted({name.split("/")[0] for name in found})
    missing = [f"{d}/{c}" for d in domains for c in classes if f"{d}/{c}" not in found]
    if missing:
        raise DataMissing(f"{source} at {data} has no {missing[0]}; each domain needs every class", field="data")
    return DomainImages({d: [found[f"{d}/{c}"] for c in classes] for d in domains}, tuple(classes))


def bodies_needed(domains: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The sets of domains that a body is trained on: each domain left out, and each two left out for the choice of settings."""
    outer = [tuple(d for d in domains if d != left) for left in domains]
    return outer + list(combinations(domains, len(domains) - 2))
