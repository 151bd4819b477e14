"""Trains a body for class means: every drawing of a batch is a one-shot support and a query at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.bodies.conv4 import Conv4
from ltdi.views import warp
from training.augment import new_class_matrices, random_matrices
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


@dataclass(frozen=True)
class BodyConfig:
    """How a body is trained.

    Args:
        channels: width of Conv-4.
        image_size: side of its images, pixels.
        steps: batches.
        classes, drawings: a batch holds `drawings` images of each of `classes` classes.
        whole_groups: whether a batch takes the classes of one group (an alphabet) after the other, so that it holds what
            looks alike, in place of any.
        bfloat16: whether convolutions are computed in it.
        lr: peak learning rate of AdamW, cosine to zero.
        new_classes_from: the step from which classes are changed as wholes (`new_class_matrices`), so that the
            body cannot learn them by heart; never where absent.
        ema: decay of the average of parameters that becomes the body.
        checkpoint_every: steps between checkpoints.
        seed: of initialisation, batches and augmentation.
    """

    channels: int = 64
    image_size: int = 28
    steps: int = 4000
    classes: int = 128
    drawings: int = 5
    whole_groups: bool = False
    bfloat16: bool = False
    lr: float = 2e-3
    weight_decay: float = 1e-4
    ema: float = 0.99
    new_classes_from: int | None = None
    checkpoint_every: int = 200
    seed: int = 0


def squared_distances(queries: Tensor, prototypes: Tensor) -> Tensor:
    """`[..., Q, D]` and `[..., N, D]` to `[..., Q, N]`."""
    return (
        queries.square().sum(-1, keepdim=True)
        - 2 * queries @ prototypes.transpose(-1, -2)
        + prototypes.square().sum(-1).unsqueeze(-2)
    )


def class_mean_loss(features: Tensor) -> Tensor:
    """Softmax over negative squared distances to class means, from one and from all other drawings.

    The episodic loss of prototypical networks (Snell et al., 2017), over every choice of the support
    in the batch: each drawing is once the one-shot support of all the others, and once a query against
    the mean of the other drawings of its class.

    Args:
        features: `[drawings, classes, D]`.

    Returns:
        Scalar: mean one-shot loss plus mean leave-one-out loss.
    """
    drawings, classes, _ = features.shape
    target = torch.arange(classes, device=features.device)
    pairs = [(s, q) for s in range(drawings) for q in range(drawings) if s != q]
    support, query = (features[list(side)] for side in zip(*pairs, strict=True))
    one_shot = F.cross_entropy(
        -squared_distances(query, support).flatten(0, 1), target.repeat(len(pairs))
    )
    others = (features.sum(0) - features) / (drawings - 1)
    left_out = F.cross_entropy(-squared_distances(features, others).flatten(0, 1), target.repeat(drawings))
    return one_shot + left_out


def draw_batch(
    data: ClassImages, classes: int, drawings: int, generator: torch.Generator, *, new_classes: bool = False,
    whole_groups: bool = False,
) -> Tensor:
    """Augmented images of random classes: `[classes * drawings, 1, H, W]`, float, class by class.

    Args:
        new_classes: mirror, turn and stretch all drawings of a class alike, so that it becomes another class.
        whole_groups: one group of classes after the other, each in random order, as far as there is room.
    """
    chosen = torch.randperm(len(data), generator=generator)
    if whole_groups:
        place = torch.randperm(int(data.groups.max()) + 1, generator=generator)
        chosen = chosen[place[data.groups[chosen]].argsort(stable=True)]
    chosen = chosen[:classes]
    which = torch.rand(classes, data.images.shape[1], generator=generator).argsort(1)[:, :drawings]
    device = data.images.device
    images = data.images[chosen.unsqueeze(1).to(device), which.to(device)].flatten(0, 1).unsqueeze(1)
    matrices = random_matrices(len(images), generator, strength=1.0)
    if new_classes:
        matrices = new_class_matrices(classes, generator).repeat_interleave(drawings, dim=0) @ matrices
    return warp(images.float() / 255, matrices.to(device))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `model`; the decay warms up so that early steps are forgotten."""
    decay = min(decay, (step + 1) / (step + 10))
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    real = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([kept for kept, _ in real], [new for _, new in real], 1 - decay)
    for kept, new in pairs:
        if not kept.is_floating_point():
            kept.copy_(new)


def train_body(
    config: BodyConfig, data: ClassImages, out: Path, build: Callable[[], nn.Module] | None = None, device: str = "cpu"
) -> nn.Module:
    """Train, writing `body.ckpt.safetensors` under `out`; goes on from it where it is there.

    Args:
        build: makes another body than `Conv4`.
        device: of torch; chance is drawn on the processor everywhere.

    Returns:
        The averaged body, in evaluation mode, on the device.
    """
    torch.manual_seed(config.seed)
    build = build or (lambda: Conv4(config.channels, data.images.shape[-1]))
    body, average, data = build().to(device), build().to(device), data.to(device)
    average.load_state_dict(body.state_dict())
    optimizer = torch.optim.AdamW(body.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    checkpoint, first = out / "body.ckpt.safetensors", 0
    if checkpoint.exists():
        tensors, state = load_checkpoint(checkpoint)
        body.load_state_dict(without_prefix("body.", tensors))
        average.load_state_dict(without_prefix("average.", tensors))
        restore_optimizer(optimizer, tensors)
        first = state["step"]
    log = RunLog(out / "body.log.jsonl", "body", total=config.steps, first=first)
    body.train()
    for step in range(first, config.steps):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / config.steps)) / 2
        new_classes = config.new_classes_from is not None and step >= config.new_classes_from
        images = draw_batch(
            data, config.classes, config.drawings, generator, new_classes=new_classes, whole_groups=config.whole_groups
        )
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=config.bfloat16):
            features = body(images)
        loss = class_mean_loss(features.float().view(config.classes, config.drawings, -1).transpose(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_average(average, body, config.ema, step)
        log.step(step + 1, loss=loss.item())
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            save_checkpoint(
                checkpoint,
                with_prefix("body.", body.state_dict())
                | with_prefix("average.", average.state_dict())
                | optimizer_tensors(optimizer),
                {"step": step + 1},
            )
    log.close()
    return average.eval()
