"""Where the stages of an experiment leave their results, and how the next stage finds them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ltdi.bodies.loader import build_body
from ltdi.bundle import Bundle, BundleConfig, build_generator
from ltdi.errors import DataMissing
from ltdi.files import read_safetensors, write_json, write_safetensors
from ltdi.generator import Generator
from training import meta_train as default_recipe
from training import meta_train_paper as paper_recipe
from training.body import train_body
from training.checkpoint import load_checkpoint, save_checkpoint, with_prefix, without_prefix
from training.classify import ClassifyConfig, train_classifier
from training.configs.experiment import Experiment
from training.data.dataset import ClassImages
from training.episodes import embed_all, embed_bank
from training.prepare import body_digest, data_digest
from training.trajectories import Trajectories
from training.virtual import virtual_classes

BODY = "body.ckpt.safetensors"


class Workspace:
    """The folder `runs/NAME` of an experiment, and the one that holds its body.

    Args:
        root: `runs`.
        data: where the data set lies.
    """

    def __init__(self, experiment: Experiment, root: Path, data: Path) -> None:
        self.experiment, self.data = experiment, data
        self.folder = root / experiment.name
        self.body_folder = root / (experiment.body_run or experiment.name)

    def record(self, stage: str, **facts: object) -> None:
        """Write what a stage chose beside its outputs, with the commit."""
        values = {"stage": stage, "commit": commit(), "experiment": asdict(self.experiment), **facts}
        write_json(self.folder / f"{stage}.json", values)

    def train_body(self) -> nn.Module:
        """The body, trained where that is not finished yet; one that was adopted stays as it is."""
        path = self.body_folder / BODY
        if path.exists() and "adopted_from" in load_checkpoint(path)[1]:
            return self.body()
        images = self.experiment.load(self.data, "train")
        config = self.experiment.body
        if not isinstance(config, ClassifyConfig):
            return train_body(config, images, self.body_folder)
        start = self._averaged(self.body_folder.parent / config.start / BODY) if config.start else None
        return train_classifier(config, images, self.body_folder, start)

    def adopt_body(self, bundle: Bundle) -> nn.Module:
        """The body of a bundle in place of one trained here."""
        tensors = with_prefix("average.", bundle.body.state_dict())
        save_checkpoint(self.body_folder / BODY, tensors, {"adopted_from": bundle.digest})
        return self.body()

    def body(self) -> nn.Module:
        """The trained body.

        Raises:
            DataMissing: `ltdi prepare` has not run.
        """
        return self._body(self._averaged(self.body_folder / BODY))

    def _averaged(self, path: Path) -> dict[str, Tensor]:
        """What a checkpoint of a body holds of the averaged one."""
        if not path.exists():
            raise DataMissing(f"no trained body at {path}; run `ltdi prepare --config {path.parent.name}` first")
        return without_prefix("average.", load_checkpoint(path)[0])

    def _body(self, tensors: dict[str, Tensor]) -> nn.Module:
        body = build_body(self.experiment.bundled_body)
        body.load_state_dict(tensors)
        return body.eval().requires_grad_(False)

    def features(self, body: nn.Module, part: str) -> Tensor:
        """Features of every image of a part, `[classes, drawings, D]`; kept beside the body for the next stage."""
        images = self.experiment.load(self.data, part)
        return self._kept(f"features-{part}", body, images, lambda: embed_all(body, images))

    def bank(self, body: nn.Module, part: str) -> Tensor:
        """Features with what views say of them, `[classes, drawings, 3, D]`, kept; `[classes, drawings, 1, D]` without."""
        return self.bank_of(body, self.experiment.load(self.data, part), part)

    def some_of_train(self, body: nn.Module, most: int = 600) -> Tensor:
        """The bank of training classes; where there are more than `most`, of as many, spread over all."""
        images = self.experiment.load(self.data, "train")
        if len(images) <= most:
            return self.bank(body, "train")
        step = -(-len(images) // most)
        return self.bank_of(body, ClassImages(images.images[::step], images.names[::step]), "train-some")

    def bank_of(self, body: nn.Module, images: ClassImages, name: str) -> Tensor:
        """The bank of any images, kept under `name`."""
        maps = self.experiment.view_maps
        return self._kept(f"bank{self.experiment.views}-{name}", body, images, lambda: embed_bank(body, images, maps))

    def _kept(self, name: str, body: nn.Module, images: ClassImages, make: Callable[[], Tensor]) -> Tensor:
        path = self.body_folder / f"{name}-{body_digest(body)[:12]}-{data_digest(images)[:12]}.safetensors"
        if path.exists():
            return read_safetensors(path, "kept features")[0]["features"]
        features = make()
        write_safetensors(path, {"features": features}, {"format": "ltdi.features"})
        return features

    def virtual_banks(self, body: nn.Module) -> list[Tensor]:
        """A bank for each change that makes further classes of the training classes; none where the config has none."""
        count = self.experiment.virtual
        if not count:
            return []
        images = self.experiment.load(self.data, "train")
        some = ClassImages(images.images[:, :count], images.names)
        return [self.bank_of(body, changed, f"virtual-{name}") for name, changed in virtual_classes(some)]

    def trajectories(self) -> Trajectories:
        """The prepared trajectories.

        Raises:
            DataMissing: `ltdi prepare` has not run.
        """
        if not self.store.exists():
            raise DataMissing(
                f"no trajectories at {self.store}; run `ltdi prepare --config {self.experiment.name}` first"
            )
        return Trajectories(self.store)

    @property
    def store(self) -> Path:
        """The folder of trajectories."""
        return self.folder.parent / (self.experiment.store_run or self.experiment.name) / "trajectories"

    def generator_folder(self, seed: int) -> Path:
        """Where the generator of a training seed lies."""
        return self.folder / f"seed{seed}"

    def generator(self, seed: int) -> Generator:
        """A trained generator.

        Raises:
            DataMissing: `ltdi meta-train` has not run for this seed.
        """
        default = self.experiment.recipe == "default"
        path = self.generator_folder(seed) / (default_recipe if default else paper_recipe).CHECKPOINT
        if not path.exists():
            raise DataMissing(
                f"no generator at {path}; run `ltdi meta-train --config {self.experiment.name} --seed {seed}` first"
            )
        generator = build_generator(self.bundle_config())
        state = without_prefix("average.", load_checkpoint(path)[0])
        if default:
            state = {"metric": generator.metric} | state  # fitted at export, so a checkpoint need not hold it
        generator.load_state_dict(state)
        return generator.eval().requires_grad_(False)

    def bundle_config(self) -> BundleConfig:
        """What the bundle will be, before validation has had its say."""
        train = self.experiment.meta_train
        size = build_body(self.experiment.bundled_body).feature_size
        common = BundleConfig(
            name=self.experiment.name,
            recipe=self.experiment.recipe,
            schedule=train.schedule,
            body=self.experiment.bundled_body,
        )
        if self.experiment.recipe == "default":
            return replace(common, class_tokens=train.denoiser, head_sizes=(size, 0), views=self.experiment.views, view_share=self.experiment.view_share)
        prepare = self.experiment.prepare
        return replace(common, unet=train.denoiser, head_sizes=(size, prepare.hidden, prepare.ways))


def seeded(experiment: Experiment, seed: int) -> Experiment:
    """The experiment with another training seed of the generator."""
    return replace(experiment, meta_train=replace(experiment.meta_train, seed=seed))


def centre_and_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of features `[classes, drawings, D]`, each `[D]`."""
    flat = features.flatten(0, 1)
    return flat.mean(0), flat.std(0).clamp_min(1e-4)


def commit() -> str:
    """The commit of the working tree; outside a checkout, what `GIT_COMMIT` says, or `unknown`."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or os.environ.get("GIT_COMMIT", "unknown")


def threads(count: int) -> None:
    """Let torch use this many threads; 0 leaves the default."""
    if count:
        torch.set_num_threads(count)
