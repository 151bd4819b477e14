"""Views of example images, and what bundles make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import ltdi
from ltdi.bundle import Bundle, HeadRequest
from ltdi.generator import VIEWS_UP_TO
from ltdi.pipeline import TaskEmbedding
from ltdi.views import all_views, summarise, warp
from tests.conftest import make_bundle
from tests.ltdi.test_pipeline import row_bytes, task_bytes
from training.augment import view_maps
from training.data.dataset import ClassImages
from training.episodes import embed_bank

IDENTITY = torch.eye(3)[:2]


@pytest.fixture(scope="module")
def viewing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy bundle that looks at three views."""
    bundle = ltdi.load_bundle(make_bundle(tmp_path_factory.mktemp("bundles") / "viewing", views=3), device="cpu")
    bundle.generator.view_maps.copy_(view_maps(3))
    torch.manual_seed(3)
    for estimator in (bundle.generator.from_features, bundle.generator.from_views):
        estimator.weight.normal_(std=0.05)
    return bundle


def test_the_identity_leaves_an_image_as_it_is_and_a_shift_moves_it() -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 1] = 1
    torch.testing.assert_close(warp(image, IDENTITY.unsqueeze(0)), image)
    shift = IDENTITY.clone()
    shift[0, 2] = -0.5  # a quarter of the width: one pixel
    torch.testing.assert_close(warp(image, shift.unsqueeze(0)), image.roll(1, 3))


def test_views_of_an_image_stand_together() -> None:
    images = torch.rand(2, 1, 6, 6)
    maps = view_maps(3)
    views = all_views(images, maps)
    for at in range(6):
        torch.testing.assert_close(views[at], warp(images[at // 3, None], maps[at % 3, None])[0])


def test_a_summary_is_features_mean_and_distance_of_the_views() -> None:
    features, views = torch.tensor([[1.0, 2.0]]), torch.tensor([[[2.0, 2.0], [4.0, 2.0]]])
    expected = torch.tensor([[[1.0, 2.0], [3.0, 2.0], [5.0**0.5, 0.0]]])
    torch.testing.assert_close(summarise(features, views), expected)


def test_views_of_the_examples_change_the_head(viewing: Bundle, images: Tensor, labels: list[str]) -> None:
    seen = viewing.generate(images, labels, fallback="none")
    blind = viewing.generate(viewing.embed(images), labels, fallback="none")
    assert seen.metadata["support_accuracy"] is not None
    assert not torch.allclose(seen.layers[0].weight, blind.layers[0].weight, atol=1e-3)


def test_the_order_of_images_changes_no_byte_where_views_are_seen(
    viewing: Bundle, images: Tensor, labels: list[str]
) -> None:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = viewing.generate(images[order], [labels[i] for i in order], fallback="none")
    assert row_bytes(shuffled) == row_bytes(viewing.generate(images, labels, fallback="none"))


def test_images_and_features_of_one_batch_get_the_heads_that_they_get_alone(
    viewing: Bundle, images: Tensor, labels: list[str]
) -> None:
    features = viewing.embed(images)
    requests = [HeadRequest(viewing.support(inputs, labels)) for inputs in (images, features, images.flip(0))]
    together = [head.to_bytes() for head in viewing.generate_many(requests)]
    assert together == [viewing.generate_many([request])[0].to_bytes() for request in requests]


def test_beyond_some_examples_a_class_no_views_are_made(viewing: Bundle, images: Tensor) -> None:
    many = images[:1].repeat(2 * VIEWS_UP_TO + 1, 1, 1)
    for count, wanted in ((2 * VIEWS_UP_TO, True), (2 * VIEWS_UP_TO + 1, False)):
        labels = ["a"] * VIEWS_UP_TO + ["b"] * (count - VIEWS_UP_TO)
        assert (viewing._feature_task(viewing.support(many[:count], labels)).views is not None) == wanted


def test_a_task_embedding_keeps_what_the_views_said(viewing: Bundle, images: Tensor, labels: list[str]) -> None:
    support = viewing.support(images, labels)
    stored = TaskEmbedding.from_bytes(task_bytes(viewing.embed_task(support)))
    later, now = (viewing.generate_many([HeadRequest(task)])[0] for task in (stored, support))
    assert now.method == "generated" and row_bytes(later) == row_bytes(now)


def test_a_bundle_with_views_survives_its_files(viewing: Bundle, images: Tensor, labels: list[str], tmp_path: Path) -> None:
    viewing.save(tmp_path / "again")
    again = ltdi.load_bundle(tmp_path / "again", device="cpu")
    assert row_bytes(again.generate(images, labels)) == row_bytes(viewing.generate(images, labels))


def test_a_training_bank_holds_what_a_bundle_sees_of_an_example(viewing: Bundle, images: Tensor, labels: list[str]) -> None:
    data = ClassImages(images.unflatten(0, (3, 4)), ["ka", "ra", "ta"])
    bank = embed_bank(viewing.body, data, viewing.generator.view_maps).flatten(0, 1)
    task = viewing._feature_task(viewing.support(images, labels))
    order = task.canonical.example_order
    torch.testing.assert_close(bank[order, 0], task.features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bank[order, 1:], task.views, atol=1e-4, rtol=1e-4)
