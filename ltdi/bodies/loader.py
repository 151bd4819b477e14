"""The bodies that a bundle can name."""

from __future__ import annotations

from dataclasses import dataclass

from ltdi.bodies.conv4 import Conv4
from ltdi.bodies.features import FeatureBody
from ltdi.bodies.photos import PhotoConv4
from ltdi.bodies.remote import RemoteBody
from ltdi.bodies.sentence import SentenceBody
from ltdi.errors import InvalidConfig

BODIES = ("conv4", "photos", "sentence", "features")
TextBody = SentenceBody | RemoteBody
Body = Conv4 | PhotoConv4 | TextBody | FeatureBody


@dataclass(frozen=True)
class BodyConfig:
    """Which body, and its sizes.

    Args:
        name: `conv4` reads grey drawings, `photos` colour images, `sentence` reads texts, `features` reads nothing.
        channels: width of `conv4`.
        image_size: side of the images, pixels; 0 for others.
        model: of `sentence`: a packaged model's name, or a path.
        feature_size: D of `sentence`; of `features`, where 0 is any.
        digest: of the weights of `sentence`, which are not in the bundle.
        widths: of the blocks of `photos`.
    """

    name: str = "conv4"
    channels: int = 64
    image_size: int = 28
    model: str = ""
    feature_size: int = 0
    digest: str = ""
    widths: tuple[int, ...] = ()


def build_body(config: BodyConfig) -> Body:
    """A body, with fresh parameters where the bundle holds them; it has `kind` and `feature_size`."""
    if config.name == "conv4":
        return Conv4(config.channels, config.image_size)
    if config.name == "photos":
        if not config.widths:
            raise InvalidConfig("body 'photos' needs widths", field="body")
        return PhotoConv4(config.widths, config.image_size)
    if config.name == "sentence":
        if not config.model or config.feature_size < 1:
            raise InvalidConfig("body 'sentence' needs a model and a feature_size", field="body")
        return SentenceBody(config.model, config.feature_size, config.digest)
    if config.name == "features":
        return FeatureBody(config.feature_size)
    raise InvalidConfig(f"body {config.name!r} is unknown; known: {', '.join(BODIES)}", field="body")
