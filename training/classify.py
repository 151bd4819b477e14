"""Trains a body for photographs by telling the training classes apart, turned images as classes of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.bodies.photos import PhotoConv4
from training.augment import crop, crop_maps, jitter
from training.body import class_mean_loss, update_average
from training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from training.data.dataset import ClassImages
from training.progress import RunLog
from training.strange import estrange

CLASS_MEAN_SCALE = 2.0  # of features of unit length, about where the cross entropy of class means is least


@dataclass(frozen=True)
class ClassifyConfig:
    """How a body for photographs is trained.

    Args:
        widths: of its blocks.
        image_size: side of the images that it is used on, pixels; it is trained on crops of `crop_size`.
        steps, batch: optimiser steps, images in each.
        turned: share of a batch that is turned by 90, 180 or 270 degrees, each turn of a class a class of its own.
        lr: peak learning rate of AdamW, cosine to zero.
        smoothing: of labels.
        estranged: share of images that are made grey, negative, drawn by their edges or of mixed channels (`training.strange`).
        by_class_means: whether batches are judged by class means, as `training.body` does, in place of a classifier.
        drawings: images a class of those batches.
        start: the folder under `runs/` of a body to begin with.
        ema: decay of the average of parameters that becomes the body.
        seed: of initialisation, batches and augmentation.
    """

    widths: tuple[int, ...] = (64, 96, 128, 256)
    image_size: int = 48
    crop_size: int = 42
    steps: int = 5200
    batch: int = 128
    turned: float = 0.25
    lr: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    estranged: float = 0.0
    by_class_means: bool = False
    drawings: int = 4
    start: str = ""
    ema: float = 0.998
    checkpoint_every: int = 200
    seed: int = 0


class Classifier(nn.Module):
    """A body under training: cosine similarity to a direction for each class and turn.

    Args:
        body: has `roots`, `centre` and `feature_size`, as `PhotoConv4`.
        classes: before they are turned.
    """

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        self.directions = nn.Parameter(torch.randn(4 * classes, self.body.feature_size))
        self.sharpness = nn.Parameter(torch.tensor(math.log(12.0)))

    def features(self, images: Tensor) -> Tensor:
        """Features of unit length, in bfloat16 arithmetic; moves the body's centre a little."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            roots = self.body.roots(images)
        self.body.centre.lerp_(roots.detach().mean(0), 0.02)
        return F.normalize(roots - self.body.centre.clone(), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[M, 4 classes]`, turn by turn."""
        return self.sharpness.exp() * features @ F.normalize(self.directions, dim=1).T


def draw_images(
    data: ClassImages, config: ClassifyConfig, classes: Tensor, generator: torch.Generator
) -> Tensor:
    """An augmented image of each of `classes` `[M]`: `[M, 3, crop_size, crop_size]`, float."""
    which = torch.randint(data.images.shape[1], (len(classes),), generator=generator)
    device = data.images.device
    images = data.images[classes.to(device), which.to(device)].float() / 255
    images = jitter(crop(images, crop_maps(len(classes), generator), config.crop_size), generator)
    return estrange(images, config.estranged, generator) if config.estranged else images


def classify_loss(model: Classifier, data: ClassImages, config: ClassifyConfig, generator: torch.Generator) -> Tensor:
    """Cross entropy over classes and turns on a batch."""
    classes = torch.randint(len(data), (config.batch,), generator=generator)
    images = draw_images(data, config, classes, generator)
    turns = torch.zeros_like(classes)
    count = round(config.turned * config.batch)
    turns[:count] = torch.randint(1, 4, (count,), generator=generator)
    for turn in (1, 2, 3):
        rows = (turns == turn).nonzero().squeeze(1).to(images.device)
        images[rows] = torch.rot90(images[rows], turn, (2, 3))
    logits = model(model.features(images))
    return F.cross_entropy(logits, (turns * len(data) + classes).to(images.device), label_smoothing=config.smoothing)


def class_means_loss(model: Classifier, data: ClassImages, config: ClassifyConfig, generator: torch.Generator) -> Tensor:
    """`class_mean_loss` on a batch of several images of each of some classes."""
    ways = config.batch // config.drawings
    classes = torch.rand(len(data), generator=generator).argsort()[:ways].repeat_interleave(config.drawings)
    features = model.features(draw_images(data, config, classes, generator))
    return class_mean_loss((CLASS_MEAN_SCALE * features).unflatten(0, (ways, -1)).transpose(0, 1))


def train_classifier(
    config: ClassifyConfig, data: ClassImages, out: Path, start: dict[str, Tensor] | None = None,
    build: Callable[[], nn.Module] | None = None, device: str = "cpu",
) -> nn.Module:  # fmt: skip
    """Train, writing `body.ckpt.safetensors` under `out`; goes on from it where it is there.

    Args:
        start: a body to begin with.
        build: makes another body than `PhotoConv4`, with `roots`, `centre` and `feature_size`.
        device: of torch; chance is drawn on the processor everywhere.

    Returns:
        The averaged body, in evaluation mode, on the device.
    """
    torch.manual_seed(config.seed)
    build = build or (lambda: PhotoConv4(config.widths, config.image_size))
    model, average, data = Classifier(build(), len(data)).to(device), build().to(device), data.to(device)
    if start is not None:
        model.body.load_state_dict(start)
    average.load_state_dict(model.body.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    first = _resume(out / "body.ckpt.safetensors", model, average, optimizer)
    log = RunLog(out / "body.log.jsonl", "body", total=config.steps, first=first)
    model.train()
    for step in range(first, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1, (step + 1) / 200) * (1 + math.cos(math.pi * step / config.steps)) / 2
        loss = (class_means_loss if config.by_class_means else classify_loss)(model, data, config, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_average(average, model.body, config.ema, step)
        log.step(step + 1, loss=loss.item())
        if (step + 1) % config.checkpoint_every == 0:
            _save(out / "body.ckpt.safetensors", model, average, optimizer, step + 1)
    log.close()
    average.eval().centre.copy_(mean_roots(average, data))
    _save(out / "body.ckpt.safetensors", model, average, optimizer, config.steps)
    return average


@torch.inference_mode()
def mean_roots(body: nn.Module, data: ClassImages, most: int = 50) -> Tensor:
    """What the body's features are centred by, `[D]`: the mean over `most` images of each class, as they will be used.

    The centre that training keeps is of batches: normalised by their own statistics, cropped and coloured.
    """
    some = ClassImages(data.images[:, :most], data.names).pixels
    return torch.cat([body.roots(part.float() / 255) for part in some.split(250)]).mean(0)


def _save(
    path: Path, model: Classifier, average: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    own = with_prefix("model.", model.state_dict()) | with_prefix("average.", average.state_dict())
    save_checkpoint(path, own | optimizer_tensors(optimizer), {"step": step})


def _resume(path: Path, model: Classifier, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on from."""
    if not path.exists():
        return 0
    tensors, state = load_checkpoint(path)
    model.load_state_dict(without_prefix("model.", tensors))
    average.load_state_dict(without_prefix("average.", tensors))
    restore_optimizer(optimizer, tensors)
    return state["step"]
