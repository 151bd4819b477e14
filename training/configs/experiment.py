"""An experiment: everything a run chose, under one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ltdi.bodies.loader import BodyConfig as BundledBody
from training.augment import crop_views, view_maps
from training.body import BodyConfig
from training.classify import ClassifyConfig
from training.data.dataset import ClassImages
from training.data.digits import load_digits, load_kannada
from training.data.made import load_made
from training.data.mini_imagenet import load_mini_imagenet
from training.data.omniglot import load_omniglot, load_omniglot_background
from training.data.photos import load_cifar10, load_cifar_fs, load_pacs
from training.meta_train import MetaTrainConfig
from training.meta_train_paper import PaperConfig
from training.prepare import PrepareConfig

READERS: dict[str, Callable[[Path, str, int], ClassImages]] = {
    "omniglot": load_omniglot,
    "omniglot-background": load_omniglot_background,
    "mini-imagenet": load_mini_imagenet,
    "cifar-fs": load_cifar_fs,
    "made": lambda data, part, image_size: load_made(part, image_size=image_size),
}
ELSEWHERE: dict[str, Callable[[Path, int], ClassImages]] = {
    "digits": lambda data, image_size: load_digits(data),
    "kannada": lambda data, image_size: load_kannada(data),
    "cifar10": load_cifar10,
    "pacs": load_pacs,
}


@dataclass(frozen=True)
class Experiment:
    """What `ltdi prepare`, `meta-train`, `evaluate` and `export` do for one config.

    Args:
        name: of the config, the bundle and the folder under `runs/`.
        data: which reader.
        body: how the body is trained: `BodyConfig` for class means, `ClassifyConfig` to tell photographs apart.
        body_run: the folder under `runs/` that holds it; several experiments may share one.
        store_run: the folder under `runs/` that holds the trajectories; those that differ in meta-training share one.
        prepare: trajectories.
        meta_train: `MetaTrainConfig` for the `default` recipe, `PaperConfig` for `paper`.
        views: V, how many changed copies of each example image the generator sees beside it.
        view_share: how far the baseline moves class means to the mean of the views.
        virtual: images of each training class that serve, turned, recoloured, softer and closer, as further classes.
        familiar: the share of validation tasks that are not given their baseline for strangeness; 0 for no such limit.
        rival: the config whose body, trained for class means at the same cost, bears further closed forms.
        ways: of the table's tasks.
        within: whether the table's tasks are of one group of classes each, an alphabet for example.
        episodes, validation_episodes: tasks in each column of the table, and for the choice of its closed forms.
        terms: the terms of use of the data, for the card.
        trained_on, limits: for the card: which classes served what; what the bundle reads, and where it fails.
    """

    name: str
    data: str
    meta_train: MetaTrainConfig | PaperConfig
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    body: BodyConfig | ClassifyConfig = field(default_factory=BodyConfig)
    body_run: str = ""
    store_run: str = ""
    views: int = 0
    view_share: float = 0.0
    virtual: int = 0
    familiar: float = 0.0
    rival: str = ""
    ways: tuple[int, ...] = (5, 20)
    within: bool = False
    episodes: int = 2000
    validation_episodes: int = 400
    terms: str = ""
    trained_on: str = ""
    limits: str = ""

    @property
    def recipe(self) -> str:
        """`default` or `paper`."""
        return "paper" if isinstance(self.meta_train, PaperConfig) else "default"

    def load(self, data: Path, part: str) -> ClassImages:
        """One part of the data set: `train`, `val` or `test`."""
        return READERS[self.data](data, part, self.body.image_size)

    @property
    def bundled_body(self) -> BundledBody:
        """The body as a bundle names it."""
        if isinstance(self.body, ClassifyConfig):
            return BundledBody("photos", widths=self.body.widths, image_size=self.body.image_size)
        return BundledBody(channels=self.body.channels, image_size=self.body.image_size)

    @property
    def view_maps(self) -> Tensor:
        """The maps of the views, `[V, 2, 3]`."""
        return (crop_views if isinstance(self.body, ClassifyConfig) else view_maps)(self.views)
