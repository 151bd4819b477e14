"""No body at all: callers send the features of an encoder of their own."""

from __future__ import annotations

from torch import nn


class FeatureBody(nn.Module):
    """Stands where a bundle has no body.

    Args:
        feature_size: D, or 0 for any.
    """

    kind = "features"

    def __init__(self, feature_size: int = 0) -> None:
        super().__init__()
        self.feature_size = feature_size
