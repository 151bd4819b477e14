"""No body at all: callers send the features of an encoder of their own."""

from __future__ import annotations

from torch import nn

MAX_FEATURE = 1e6  # far beyond any body's features; squares and sums of what lies within stay finite


class FeatureBody(nn.Module):
    """Stands where a bundle has no body.

    Args:
        feature_size: D, or 0 for any.
    """

    kind = "features"
    remote = False

    def __init__(self, feature_size: int = 0) -> None:
        super().__init__()
        self.feature_size = feature_size
