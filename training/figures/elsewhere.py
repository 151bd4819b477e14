"""A figure on another set of images, or on bodies that only a GPU can train."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from training.figures.record import Claim
from training.figures.setting import Setting

NAMES = {"mini-imagenet": "mini-ImageNet", "omniglot": "Omniglot"}


@dataclass(frozen=True)
class Elsewhere:
    """What a figure's module is to the registry, on another set.

    Args:
        of: the figure.
        images: the set.
        long: whether its bodies are trained as only a GPU can.
    """

    of: ModuleType
    images: str
    long: bool = False

    @property
    def where(self) -> str:
        """The set, and whether bodies are trained long, for titles and claims."""
        return NAMES[self.images] + (", bodies trained on a GPU" if self.long else "")

    @property
    def TITLE(self) -> str:
        """The figure's, with the set's name."""
        return f"{self.of.TITLE}: {self.where}"

    @property
    def PAPER(self) -> str:
        """What the paper says of the figure."""
        return self.of.PAPER

    @property
    def MOST_SEEDS(self) -> int:
        """At most so many seeds."""
        return getattr(self.of, "MOST_SEEDS", 99)

    def on(self, setting: Setting) -> Setting:
        """A setting of this set."""
        return replace(setting, images=self.images, long=self.long)

    def measure(self, setting: Setting) -> dict[str, Any]:
        """The figure's numbers on this set."""
        return self.of.measure(self.on(setting))

    def draw(self, values: dict[str, Any], path: Path) -> None:
        """The figure's plot."""
        self.of.draw(values, path)

    def see(self, values: dict[str, Any]) -> list[str]:
        """The figure's tables."""
        return self.of.see(values)

    def claims(self, values: dict[str, Any]) -> list[Claim]:
        """The figure's claims, of this set."""
        return [replace(claim, says=f"{self.where}: {claim.says}") for claim in self.of.claims(values)]
