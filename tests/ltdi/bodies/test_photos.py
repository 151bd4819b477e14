"""The body for photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.bodies.loader import BodyConfig, build_body
from ltdi.errors import InvalidConfig
from ltdi.images import prepare_photos
from tests.conftest import make_bundle


def test_features_are_of_one_length_and_of_the_last_width_at_any_image_size() -> None:
    body = build_body(BodyConfig("photos", widths=(4, 6, 8, 10), image_size=24)).eval()
    for size in (24, 42):
        features = body(torch.rand(3, 3, size, size))
        assert features.shape == (3, 10) == (3, body.feature_size)
        assert torch.allclose(features.norm(dim=1), torch.full((3,), 4.0))


def test_a_photo_body_without_widths_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="needs widths"):
        build_body(BodyConfig("photos"))


def test_grey_and_colour_images_become_colour_squares() -> None:
    colour = torch.zeros(2, 3, 10, 30, dtype=torch.uint8)
    colour[:, 1, :, 10:20] = 200
    prepared = prepare_photos(colour, 10)
    assert torch.equal(prepared, colour[..., 10:20])
    grey = prepare_photos(torch.full((1, 12, 12), 0.5), 6)
    assert grey.shape == (1, 3, 6, 6) and bool((grey == 128).all() | (grey == 127).all())
    assert prepare_photos([], 6).shape == (0, 3, 6, 6)


def test_a_bundle_makes_heads_from_colour_images_and_their_views(tmp_path: Path) -> None:
    body = BodyConfig("photos", widths=(4, 6, 8, 10), image_size=16)
    folder = make_bundle(tmp_path / "photos", body=body, head_sizes=(10, 0), views=3, view_share=0.5)
    bundle = ltdi.load_bundle(folder, device="cpu")
    assert bundle.config.view_share == bundle.generator.view_share == 0.5
    images = torch.randint(256, (6, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    head = bundle.generate(images, ["a", "b"] * 3)
    assert head.feature_size == 10 and len(head.predict(bundle.embed(images[:2]))) == 2
    plain = bundle.generate(bundle.embed(images), ["a", "b"] * 3)
    assert not torch.equal(plain.layers[0].weight, head.layers[0].weight)  # features have no views
