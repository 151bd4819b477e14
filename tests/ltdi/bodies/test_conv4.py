"""The convolutional body, and the loader that names it."""

from __future__ import annotations

import pytest
import torch

from ltdi.bodies.loader import BodyConfig, build_body
from ltdi.errors import InvalidConfig


@torch.inference_mode()
@pytest.mark.parametrize(("size", "features"), [(28, 8 * 4), (14, 8), (33, 8 * 9)])
def test_features_have_the_size_that_the_body_says(size: int, features: int) -> None:
    body = build_body(BodyConfig(channels=8, image_size=size)).eval()
    assert body.feature_size == features
    assert body(torch.rand(3, 1, size, size)).shape == (3, features)


@torch.inference_mode()
def test_an_image_has_the_features_that_it_has_among_others() -> None:
    body, images = build_body(BodyConfig(channels=8)).eval(), torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(body(images)[2:3], body(images[2:3]))


def test_an_unknown_body_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="known: conv4"):
        build_body(BodyConfig(name="resnet999"))
