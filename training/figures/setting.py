"""Where figures are made: the data, what is kept of earlier runs, the budget, and the seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ltdi.bundle import load_bundle
from ltdi.schedule import ScheduleConfig
from training.figures.models import Model, ModelConfig, trained
from training.figures.tasks import Lab, LabConfig, laboratory

BODY = "omniglot"
QUICK_LAB = LabConfig(data="made", size=8, tasks=80, measured=30, steps=20)
QUICK_MODEL = ModelConfig(batches=16, tasks=16, snapshots=3)


@dataclass(frozen=True)
class Setting:
    """What all figures share.

    Args:
        data: the folder of the data set.
        kept: the folder of features and trained generators; what is there is not made again.
        seeds: training seeds.
        part: classes that are measured on; `val` while choosing.
        quick: made characters and a tiny budget, for tests.
    """

    data: Path
    kept: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    part: str = "test"
    quick: bool = False

    def lab(self, **changes: Any) -> Lab:
        """The laboratory with some of its settings changed; the same object at every call."""
        config = replace(QUICK_LAB if self.quick else LabConfig(), **changes)
        return laboratory(config, _body(), self.data, self.kept / "features")

    def model(self, lab: Lab, seed: int, segments: int = 1, steps: int = 20, **changes: Any) -> Model:
        """A generator of m = `segments` and T = `steps`, trained unless it is kept already."""
        schedule = changes.pop("schedule", {})
        config = replace(
            QUICK_MODEL if self.quick else ModelConfig(),
            schedule=ScheduleConfig(steps=steps, segments=segments, **schedule), seed=seed, **changes,
        )  # fmt: skip
        return trained(config, lab, self.kept / "models", self.part)

    def some(self, values: Sequence[Any], few: int = 2) -> list[Any]:
        """All values; of a quick run, the first few."""
        return list(values)[: few if self.quick else None]

    @property
    def budget(self) -> dict[str, Any]:
        """The budget that every generator has, for the record."""
        lab, model = (QUICK_LAB, QUICK_MODEL) if self.quick else (LabConfig(), ModelConfig())
        return {"lab": asdict(lab), "model": asdict(model), "body": BODY}


@functools.cache
def _body() -> nn.Module:
    return load_bundle(BODY, device="cpu").body
