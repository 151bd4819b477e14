"""Small untrained bundles, whose denoisers do answer something, for every test."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.bodies.loader import BodyConfig
from ltdi.bodies.sentence import model_folder
from ltdi.bundle import Bundle, BundleConfig, build_body, build_generator
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.denoisers.geometry import GeometryConfig
from ltdi.denoisers.unet import UNetConfig

torch.set_num_threads(1)
SENTENCES = find_spec("sentence_transformers") is not None and model_folder("all-MiniLM-L6-v2") is not None


def make_bundle(folder: Path, **changes: object) -> Path:
    """Write an untrained bundle with a fixed seed and an answer that is not zero."""
    settings = {"name": "toy", "class_tokens": ClassTokensConfig(width=32)} | changes
    config = BundleConfig(**settings)
    torch.manual_seed(0)
    body, generator = build_body(config.body), build_generator(config)
    for parameter in generator.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    Bundle(config, body, generator).save(folder)
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> Bundle:
    return ltdi.load_bundle(toy_folder, device="cpu")


@pytest.fixture(scope="session")
def toy_paper(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "toy-paper"
    unet = UNetConfig(channels=(4, 8), embedding=16)
    make_bundle(folder, name="toy-paper", recipe="paper", class_tokens=None, unet=unet, head_sizes=(256, 4, 3))
    return ltdi.load_bundle(folder, device="cpu")


def make_geometry(folder: Path, body: BodyConfig, **changes: object) -> Bundle:
    """A bundle of the geometry recipe with an untrained denoiser that does answer something."""
    settings = {"name": folder.name, "recipe": "geometry", "class_tokens": None, "geometry": GeometryConfig(),
                "head_sizes": (body.feature_size, 0), "body": body} | changes  # fmt: skip
    return ltdi.load_bundle(make_bundle(folder, **settings), device="cpu")


@pytest.fixture(scope="session")
def toy_features_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles") / "toy-features"


@pytest.fixture(scope="session")
def toy_features(toy_features_folder: Path) -> Bundle:
    """Takes features of any size."""
    return make_geometry(toy_features_folder, BodyConfig("features", 0, 0))


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Reads texts with the real sentence encoder."""
    if not SENTENCES:
        pytest.skip("the extra `text` is not installed")
    body = BodyConfig("sentence", 0, 0, "all-MiniLM-L6-v2", 384)
    return make_geometry(tmp_path_factory.mktemp("bundles") / "toy-text", body)


@pytest.fixture
def images() -> torch.Tensor:
    """Twelve made drawings: three classes of four."""
    from training.data.made import load_made

    return load_made("test", classes=3, drawings=4).images.flatten(0, 1)


@pytest.fixture
def labels() -> list[str]:
    return [label for label in ("ka", "ra", "ta") for _ in range(4)]
