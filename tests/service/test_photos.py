"""A bundle for colour photographs behind the service: every form, the client, and its body."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from ltdi import load_bundle, load_head
from ltdi.bodies.loader import BodyConfig
from ltdi.pool import PoolConfig
from service.client import LtDiClient
from service.settings import Settings
from tests.conftest import make_bundle
from tests.service.conftest import Running

SIDE = 16
LABELS = ["sky", "grass"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = BodyConfig("photos", widths=(4, 6, 8, 10), image_size=SIDE)
    return make_bundle(tmp_path_factory.mktemp("bundles") / "photos", name="photos", body=body, head_sizes=(10, 0), views=3)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    running = Running(Settings(bundle=(str(folder),)), None)
    yield running
    running.stop()


@pytest.fixture
def photographs() -> torch.Tensor:
    """Three of blue, three of green, in turn."""
    images = torch.randint(60, (6, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[::2, 2] += 190
    images[1::2, 1] += 190
    return images


def test_the_client_sends_colours_and_the_head_is_the_library_s(server: Running, folder: Path, photographs: torch.Tensor) -> None:
    here = load_bundle(folder, device="cpu").generate(photographs, LABELS)
    with LtDiClient(str(server.client.base_url)) as client:
        made = client.generate_head(photographs, LABELS)
    torch.testing.assert_close(made.tensors(), here.tensors(), rtol=1e-5, atol=1e-6)
    grey = photographs.float().mean(1, keepdim=True).expand_as(photographs).to(torch.uint8)
    other = load_bundle(folder, device="cpu").generate(grey, LABELS)
    assert not torch.allclose(other.layers[0].weight, here.layers[0].weight, atol=1e-3)


def test_its_document_says_that_it_reads_colours_and_its_body_comes_as_onnx(server: Running) -> None:
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    assert server.client.get("/models/photos").json()["body"]["colours"] == 3
    graph = server.client.get("/models/photos/body", headers={"Accept": "application/onnx"})
    assert graph.status_code == 200 and b"red, green, blue" in graph.content


def test_raw_images_of_either_kind_are_taken(server: Running, photographs: torch.Tensor) -> None:
    from safetensors.torch import save

    for images in (photographs, photographs[:, :1]):
        content = save({"images": images.contiguous(), "labels": torch.tensor([0, 1] * 3)})
        answer = server.client.post("/generate-head", content=content, headers={"Content-Type": "application/vnd.safetensors"})
        assert answer.status_code == 200 and load_head(answer.content).feature_size == 10


@pytest.fixture(scope="module")
def pooled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = BodyConfig("photos", widths=(4, 6, 8, 10), image_size=SIDE)
    settings = {"name": "pooled", "body": body, "head_sizes": (10, 0), "views": 3, "pool": PoolConfig()}
    return make_bundle(tmp_path_factory.mktemp("bundles") / "pooled", **settings)


@pytest.fixture(scope="module")
def pooling(pooled_folder: Path, folder: Path) -> Iterator[Running]:
    running = Running(Settings(bundle=(str(pooled_folder), str(folder)), max_total_pixels=11 * SIDE * SIDE), None)
    yield running
    running.stop()


def test_a_pool_of_images_by_every_form_is_the_library_s(pooling: Running, pooled_folder: Path, photographs: torch.Tensor) -> None:
    photographs = torch.cat([photographs, photographs[:5].flip(3)])
    here = load_bundle(pooled_folder, device="cpu").generate(photographs[:2], LABELS[:2], unlabelled=photographs[2:])
    without = load_bundle(pooled_folder, device="cpu").generate(photographs[:2], LABELS[:2])
    assert not torch.allclose(here.layers[0].weight, without.layers[0].weight, atol=1e-4)
    with LtDiClient(str(pooling.client.base_url)) as client:
        made = [client.generate_head(photographs[:2], LABELS[:2], unlabelled=photographs[2:], model="pooled")]
    pictures = [png(image) for image in photographs]
    items = [{"image": base64.b64encode(content).decode()} for content in pictures]
    task = {"model": "pooled", "support": [i | {"label": n} for i, n in zip(items, LABELS[:2], strict=False)], "unlabelled": items[2:]}
    accept = {"Accept": "application/vnd.safetensors"}
    files = [("support", (f"{label}/{i}.png", content)) for i, (content, label) in enumerate(zip(pictures, LABELS[:2], strict=False))]
    files += [("unlabelled", (f"{i}.png", content)) for i, content in enumerate(pictures[2:])]
    for answer in (
        pooling.client.post("/generate-head", json=task, headers=accept),
        pooling.client.post("/generate-head", files=files, data={"request": '{"model": "pooled"}'}, headers=accept),
    ):
        assert answer.status_code == 200, answer.text
        made.append(load_head(answer.content))
    for head in made:
        torch.testing.assert_close(head.tensors(), here.tensors(), rtol=1e-5, atol=1e-6)


def test_a_model_says_whether_it_takes_a_pool_and_pixels_of_both_are_counted(pooling: Running, photographs: torch.Tensor) -> None:
    models = {model["name"]: model for model in pooling.client.get("/models").json()["models"]}
    assert models["pooled"]["limits"]["unlabelled"] == 10_000 and models["photos"]["limits"]["unlabelled"] == 0
    pictures = [png(image) for image in photographs]
    shown = [("support", (f"{label}/{i}.png", content)) for i, (content, label) in enumerate(zip(pictures, LABELS, strict=True))]
    pool = [("unlabelled", (f"{i}.png", content)) for i, content in enumerate(pictures)]
    refused = pooling.client.post("/generate-head", files=shown + pool[:1], data={"request": '{"model": "photos"}'})
    assert (refused.status_code, refused.json()["field"]) == (422, "unlabelled")
    many = pooling.client.post("/generate-head", files=shown + pool, data={"request": '{"model": "pooled"}'})
    assert (many.status_code, many.json()["field"]) == (413, "unlabelled/5")
    assert pooling.client.post("/generate-head", files=shown + pool[:5], data={"request": '{"model": "pooled"}'}).status_code == 200


def png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()
