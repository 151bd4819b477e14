"""Where figures are made: the data, what is kept of earlier runs, the budget, and the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ltdi.schedule import ScheduleConfig
from training.figures.bodies import Bodies
from training.figures.models import Model, ModelConfig, trained
from training.figures.tasks import Lab, LabConfig, laboratory

QUICK_LAB = LabConfig(data="made", size=8, tasks=80, measured=30, steps=20)
QUICK_MODEL = ModelConfig(batches=16, tasks=16, snapshots=3)


@dataclass(frozen=True)
class Setting:
    """What all figures share.

    Args:
        data: the folder of the data sets.
        kept: the folder of features and trained generators; what is there is not made again.
        seeds: of tasks and starts, training and measured ones, and of training.
        part: classes that are measured on; `val` while choosing.
        quick: made characters and a tiny budget, for tests.
        images: the set that laboratories are of: `omniglot` or `mini-imagenet`.
        bodies: of torchvision, for tables 7 and 8.
        long: those trained as only a GPU can.
        device: of torch, for those.
    """

    data: Path
    kept: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    part: str = "test"
    quick: bool = False
    images: str = "omniglot"
    bodies: tuple[str, ...] = ()
    long: bool = False
    device: str = "cpu"

    @property
    def networks(self) -> tuple[str, ...]:
        """The bodies that tables 7 and 8 are of: those that were asked for, else what the compute allows."""
        return self.bodies or (("resnet18", "mobilenet_v2", "swin_t") if self.long else ("resnet18", "mobilenet_v2"))

    def lab(self, seed: int = 0, **changes: Any) -> Lab:
        """The laboratory of a seed's own tasks and starts, with some of its settings changed."""
        own = QUICK_LAB if self.quick else LabConfig(data=self.images)
        return laboratory(replace(own, seed=seed, **changes), Bodies(self.data, self.kept, self.quick, self.long, self.device))

    def model(self, lab: Lab, segments: int = 1, steps: int = 20, **changes: Any) -> Model:
        """A generator of m = `segments` and T = `steps` with the laboratory's seed, trained unless it is kept already."""
        schedule = changes.pop("schedule", {})
        config = replace(
            QUICK_MODEL if self.quick else ModelConfig(),
            schedule=ScheduleConfig(steps=steps, segments=segments, **schedule), seed=lab.config.seed, **changes,
        )  # fmt: skip
        return trained(config, lab, self.kept / "models", self.part)

    def first(self, seeds: int) -> Setting:
        """The same with the first few seeds."""
        return replace(self, seeds=self.seeds[:seeds])

    def some(self, values: Sequence[Any], few: int = 2) -> list[Any]:
        """All values; of a quick run, the first few."""
        return list(values)[: few if self.quick else None]

    @property
    def budget(self) -> dict[str, Any]:
        """The budget that every generator has, for the record."""
        lab, model = (QUICK_LAB, QUICK_MODEL) if self.quick else (LabConfig(data=self.images), ModelConfig())
        return {"lab": asdict(lab), "model": asdict(model)}
