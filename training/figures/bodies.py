"""The frozen bodies that figures stand on, by name: what ships, what a config trains, or a network of torchvision."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ltdi.bundle import load_bundle
from ltdi.errors import InvalidConfig
from ltdi.files import read_safetensors, write_safetensors
from training.checkpoint import load_checkpoint
from training.configs import experiment
from training.configs.experiment import ELSEWHERE, READERS
from training.data.dataset import ClassImages
from training.figures.backbones import LAST, trained_backbone
from training.prepare import PrepareConfig, body_digest, embed_views
from training.runs import BODY, Workspace

CONV4 = "conv4"
BODIES = (CONV4, *LAST)
SIDES = {"omniglot": 28, "mini-imagenet": 48, "made": 28}  # pixels
LONG_SIDES = SIDES | {"mini-imagenet": 84}
QUICK_STEPS = 2


@dataclass(frozen=True)
class Bodies:
    """Images, bodies and the features of both, each made once and kept.

    Args:
        data: the folder of the data sets.
        kept: the folder of what figures keep; the run of mini-ImageNet's own body lies beside it.
        quick: two steps of training, for tests.
        long: networks of torchvision trained as only a GPU can, on larger photographs.
        device: of torch, for networks of torchvision.
    """

    data: Path
    kept: Path
    quick: bool = False
    long: bool = False
    device: str = "cpu"

    @property
    def sides(self) -> dict[str, int]:
        """Of images, pixels."""
        return LONG_SIDES if self.long else SIDES

    def features(self, images: str, body: str, part: str, views: int = 1) -> Tensor:
        """Features of each image of a part, or of another set of `ELSEWHERE`, and its views, `[classes, images, V, F]`.

        Raises:
            InvalidConfig: an unknown body or set.
        """
        if images not in SIDES or body not in BODIES:
            raise InvalidConfig(f"no body {body!r} on {images!r}; known: {', '.join(BODIES)} on {', '.join(SIDES)}", field="body")
        return _features(self, images, body, part, views)

    def trained_digest(self, images: str, body: str) -> dict[str, str]:
        """`body_digest` of a body that no bundle ships."""
        return {} if body == CONV4 and images != "mini-imagenet" else {"body_digest": body_digest(self.body(images, body))}

    def body(self, images: str, body: str) -> nn.Module:
        """A body, trained where it is not yet."""
        return _body(self, images, body)


@functools.cache
def _images(name: str, data: Path, part: str, side: int) -> ClassImages:
    if part in ELSEWHERE:
        return READERS[name](data, "test", side) if name == "made" else ELSEWHERE[part](data, side)
    return READERS[name](data, part, side)


@functools.cache
def _body(bodies: Bodies, images: str, name: str) -> nn.Module:
    if name != CONV4:
        train = _images(images, bodies.data, "train", bodies.sides[images])
        out, steps = bodies.kept / "bodies" / f"{name}-{images}", QUICK_STEPS if bodies.quick else None
        return trained_backbone(name, train, out, steps, long=bodies.long, device=bodies.device)
    if images == "mini-imagenet":
        return _of_config(Workspace(experiment("mini-imagenet"), bodies.kept.parent, bodies.data))
    return load_bundle("omniglot", device="cpu").body


def _of_config(workspace: Workspace) -> nn.Module:
    """The body of a config's run, trained where it is not yet; without a look at the images where it is."""
    path, steps = workspace.body_folder / BODY, workspace.experiment.body.steps
    done = path.exists() and load_checkpoint(path)[1].get("step") == steps
    return workspace.body() if done else workspace.train_body()


@functools.cache
def _features(bodies: Bodies, images: str, body: str, part: str, views: int) -> Tensor:
    read = _body(bodies, images, body)
    path = bodies.kept / "features" / f"{body}-{images}-{part}-{views}-{body_digest(read)[:12]}.safetensors"
    if path.exists():
        return read_safetensors(path, "kept features")[0]["features"]
    own = _images(images, bodies.data, part, bodies.sides[images]).to(next(read.parameters()).device.type)
    made = embed_views(read, own, PrepareConfig(views=views)).cpu()
    write_safetensors(path, {"features": made}, {"format": "ltdi.features"})
    return made
