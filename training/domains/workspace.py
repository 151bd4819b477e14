"""Where an experiment of domains leaves its bodies and features, and what a left-out domain may learn from."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ltdi.bodies.photos import PhotoConv4
from ltdi.errors import DataMissing
from ltdi.files import read_safetensors, write_safetensors
from training.augment import crop_views
from training.checkpoint import load_checkpoint, without_prefix
from training.classify import train_classifier
from training.configs.domains import DomainExperiment
from training.data.dataset import ClassImages
from training.domains.episodes import DomainBank, Known, Problem, Split
from training.domains.images import DomainImages, bodies_needed, load_domains, spread_over
from training.domains.modes import virtual_modes
from training.episodes import embed_bank
from training.strange import VIRTUAL_DOMAINS

BODY = "body.ckpt.safetensors"
KNOWN_IMAGES = 100  # of a class of a domain that logistic regression sees


class DomainWorkspace:
    """The folder `runs/NAME` of an experiment of domains.

    Args:
        root: `runs`.
        data: where the data set lies.
    """

    def __init__(self, experiment: DomainExperiment, root: Path, data: Path) -> None:
        self.experiment, self.root, self.data = experiment, root, data
        self.folder = root / experiment.name
        self._bodies: dict[tuple[str, ...], nn.Module] = {}

    @cached_property
    def images(self) -> DomainImages:
        """The data set."""
        return load_domains(self.data, self.experiment.body.image_size, self.experiment.source)

    def train_bodies(self) -> None:
        """All bodies that are not trained yet: without each domain, and on each pair."""
        first = self.experiment.body.start
        start = _averaged(self.root / first / BODY, first) if first else None
        for own in bodies_needed(self.images.domains):
            images = self.images.for_training(own, self.experiment.training_images)
            train_classifier(self.experiment.body, images, self.body_folder(own), start)

    def body_folder(self, own: tuple[str, ...]) -> Path:
        """Where the body trained on the domains `own` lies, and its features."""
        return self.folder / f"body-{'-'.join(own)}"

    def body(self, own: tuple[str, ...]) -> nn.Module:
        """The body trained on the domains `own`.

        Raises:
            DataMissing: `ltdi prepare` has not run.
        """
        if own not in self._bodies:
            config = self.experiment.body
            body = PhotoConv4(config.widths, config.image_size)
            body.load_state_dict(_averaged(self.body_folder(own) / BODY, self.experiment.name))
            self._bodies[own] = body.eval().requires_grad_(False)
        return self._bodies[own]

    def classifier(self, own: tuple[str, ...]) -> Tensor:
        """The head that a body was trained with, `[classes, D + 1]`, of upright images."""
        directions = load_checkpoint(self.body_folder(own) / BODY)[0]["model.directions"]
        upright = nn.functional.normalize(directions, dim=1)[: len(self.images.classes)]
        return nn.functional.pad(upright, (0, 1))

    def bank(self, own: tuple[str, ...], domain: str) -> DomainBank:
        """A domain under a body, with views where the body has not seen it."""
        path = self.body_folder(own) / f"bank-{domain}.safetensors"
        if not path.exists():
            maps = torch.zeros(0, 2, 3) if domain in own else crop_views(self.experiment.views)
            bank = DomainBank.of([self._embed(own, one, self.experiment.most, maps) for one in self.images.images[domain]])
            write_safetensors(path, {"features": bank.features, "counts": bank.counts}, {"format": "ltdi.features"})
        kept = read_safetensors(path, "kept features")[0]
        return DomainBank(kept["features"], kept["counts"])

    def _embed(self, own: tuple[str, ...], images: Tensor, most: int, maps: Tensor) -> Tensor:
        some = images[spread_over(len(images), min(most, len(images)))]
        return embed_bank(self.body(own), ClassImages(some.unsqueeze(0), ["one"]), maps)[0]

    def virtual_means(self, own: tuple[str, ...], domain: str) -> Tensor:
        """Class means of a body's own domain in each virtual domain made of it: `[changes, classes, D]`."""
        path = self.body_folder(own) / f"virtual-{domain}.safetensors"
        if not path.exists():
            means = [self._changed_means(own, domain, name) for name in VIRTUAL_DOMAINS]
            write_safetensors(path, {"means": torch.stack(means)}, {"format": "ltdi.features"})
        return read_safetensors(path, "kept features")[0]["means"]

    @torch.inference_mode()
    def _changed_means(self, own: tuple[str, ...], domain: str, name: str) -> Tensor:
        count, change = self.experiment.changed, VIRTUAL_DOMAINS[name]
        some = [one[spread_over(len(one), count)].float() / 255 for one in self.images.images[domain]]
        return torch.stack([self.body(own)(change(one)).mean(0) for one in some]).clone()

    def problem(self, own: tuple[str, ...], domain: str) -> Problem:
        """The tasks of a domain under a body that has not seen it."""
        banks = [self.bank(own, one) for one in own]
        known = Known.of([bank.by_class() for bank in banks], KNOWN_IMAGES)
        virtual = virtual_modes(known.means, torch.stack([self.virtual_means(own, one) for one in own]))
        return Problem(domain, self.bank(own, domain), known, self.classifier(own), virtual)

    def split(self, left: str) -> Split:
        """A domain left out, and the inner problems of the others: each unseen by the body of the other two."""
        own = tuple(one for one in self.images.domains if one != left)
        return Split(left, [self.problem(tuple(o for o in own if o != one), one) for one in own])

    def outer(self, left: str) -> Problem:
        """The tasks of the left-out domain itself."""
        return self.problem(tuple(one for one in self.images.domains if one != left), left)

    def generator_path(self, left: str, seed: int) -> Path:
        """Where the generator for a left-out domain lies."""
        return self.folder / f"without-{left}-seed{seed}.safetensors"


def _averaged(path: Path, config: str) -> dict[str, Tensor]:
    if not path.exists():
        raise DataMissing(f"no trained body at {path}; run `ltdi prepare --config {config}` first")
    return without_prefix("average.", load_checkpoint(path)[0])
