"""The bodies that a bundle can name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ltdi.bodies.conv4 import Conv4
from ltdi.errors import InvalidConfig

BODIES = ("conv4",)


@dataclass(frozen=True)
class BodyConfig:
    """Which body, and its sizes.

    Args:
        name: `conv4`.
        channels: width.
        image_size: side of its images, pixels.
    """

    name: str = "conv4"
    channels: int = 64
    image_size: int = 28


def build_body(config: BodyConfig) -> nn.Module:
    """A body with fresh parameters; it has `feature_size` and maps `[M, 1, S, S]` to `[M, D]`."""
    if config.name not in BODIES:
        raise InvalidConfig(f"body {config.name!r} is unknown; known: {', '.join(BODIES)}", field="body")
    return Conv4(config.channels, config.image_size)
