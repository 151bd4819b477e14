"""Networks of torchvision as bodies: what stands before their last layer, trained on the classes that generators learn from."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.bodies.photos import LEAST, LENGTH
from ltdi.files import digest
from ltdi.torchvision_ops import import_torchvision
from training.body import BodyConfig, train_body
from training.classify import ClassifyConfig, train_classifier
from training.data.dataset import ClassImages

CENTRING = 0.02  # by which the centre that is kept moves to a batch's
LAST = {"resnet18": "fc", "mobilenet_v2": "classifier", "swin_t": "head"}  # the layer that is left out
DRAWINGS = BodyConfig(steps=400, classes=48, drawings=4, lr=3e-3, new_classes_from=200, checkpoint_every=50)
LONGER = {"mobilenet_v2": 3}  # times the steps on drawings: it is slow to start on 28 pixels
PHOTOS = ClassifyConfig(steps=1500, batch=96, lr=2e-3, checkpoint_every=100)
LONG_DRAWINGS = BodyConfig(steps=4000, classes=192, drawings=4, lr=2e-3, new_classes_from=800, checkpoint_every=1000)
LONG_PHOTOS = ClassifyConfig(steps=9000, batch=256, crop_size=72, lr=2e-3, checkpoint_every=1000)
RATES = {"swin_t": 5e-4}  # long on photographs; at 2e-3 its loss stayed where it began, 5.2 of log 256 = 5.5, for 4000 steps
SLOWER = {"mobilenet_v2": 2 / 3, "swin_t": 4 / 9}  # the share of those steps that takes ResNet-18's time on a GPU


class Backbone(nn.Module):
    """A network of torchvision without its last layer, from random weights.

    Features are brought to one length about their mean, as `PhotoConv4`'s are; while it is trained, about that of the batch.

    Args:
        name: of `LAST`.
        colours: 1 or 3.
        image_size: side of the square image, pixels.
    """

    kind = "images"
    remote = False

    def __init__(self, name: str, colours: int, image_size: int) -> None:
        super().__init__()
        self.net = getattr(import_torchvision().models, name)(weights=None)
        head = getattr(self.net, LAST[name])
        self.feature_size = (head if isinstance(head, nn.Linear) else head[-1]).in_features
        setattr(self.net, LAST[name], nn.Identity())
        self.colours, self.image_size, self._signed = colours, image_size, name == "swin_t"
        self._half = name == "resnet18"  # quicker on a processor
        self.register_buffer("centre", torch.zeros(self.feature_size))
        self.to(memory_format=torch.channels_last)

    def roots(self, images: Tensor) -> Tensor:
        """The network's features of images `[M, 1 or 3, H, W]`, roots where none is negative: `[M, D]`, float32."""
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        quicker = self._half or images.device.type == "cuda"
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=quicker and self.training):
            found = self.net(images).float()
        return found if self._signed else (found + LEAST).sqrt()

    def forward(self, images: Tensor) -> Tensor:
        """Features `[M, D]` of images in 0..1."""
        found = self.roots(images)
        if self.training:
            mean = found.detach().mean(0)
            self.centre.lerp_(mean, CENTRING)
            return LENGTH * F.normalize(found - mean, dim=1)
        return LENGTH * F.normalize(found - self.centre, dim=1)


def trained_backbone(
    name: str, images: ClassImages, out: Path, steps: int | None = None, *, long: bool = False, device: str = "cpu"
) -> nn.Module:
    """A body of torchvision trained on classes of drawings or photographs; what is kept under `out` of the same config is gone on from.

    Args:
        steps: in place of the config's own.
        long: the configs that are made for a GPU.
        device: of torch, where it is trained and stays.
    """
    colours, side = (3 if images.images.ndim == 5 else 1), images.images.shape[-1]
    own, train = (config_of(name, long, colours), train_classifier if colours == 3 else train_body)
    changes = {"image_size": side} | ({} if steps is None else {"steps": steps})
    if colours == 1:
        changes["classes"] = min(own.classes, len(images))
    config = replace(own, **changes)  # type: ignore[type-var]
    own_folder = out / digest(json.dumps(asdict(config), sort_keys=True).encode())[:8]
    body = train(config, images, own_folder, build=lambda: Backbone(name, colours, side), device=device)  # type: ignore[operator]
    return body.eval().requires_grad_(False)


def config_of(name: str, long: bool, colours: int) -> BodyConfig | ClassifyConfig:
    """How a body is trained on drawings (1 colour) or photographs (3)."""
    short = PHOTOS if colours == 3 else replace(DRAWINGS, steps=DRAWINGS.steps * LONGER.get(name, 1))
    own = (LONG_PHOTOS if colours == 3 else LONG_DRAWINGS) if long else short
    if not long:
        return own
    rate = RATES.get(name, own.lr) if colours == 3 else own.lr
    return replace(own, steps=round(own.steps * SLOWER.get(name, 1)), lr=rate)
