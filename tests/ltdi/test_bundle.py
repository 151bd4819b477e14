"""Bundles: saved, loaded, and refused where they must not be used; every check at a bundle's face."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

import ltdi
from ltdi.bundle import CARD, CONFIG, DIGEST, WEIGHTS, Bundle
from ltdi.errors import (
    BundleNotFound,
    DamagedFile,
    EmptySupport,
    InvalidFeatures,
    InvalidImage,
    InvalidInput,
    InvalidSupport,
    LimitExceeded,
    LtDiError,
    TooFewClasses,
    UnsupportedInput,
)
from ltdi.files import digest
from tests.conftest import make_bundle

NAN = float("nan")


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle, to damage."""
    return Path(shutil.copytree(toy_folder, tmp_path / "toy"))


def sign(folder: Path) -> str:
    """Make the digest fit again, so that the checks behind it are reached."""
    found = digest(*((folder / name).read_bytes() for name in (CONFIG, WEIGHTS)))
    (folder / DIGEST).write_text(found + "\n")
    return found


def reconfigure(folder: Path, change: Callable[[dict], object]) -> None:
    values = json.loads((folder / CONFIG).read_text())
    change(values)
    (folder / CONFIG).write_text(json.dumps(values))
    sign(folder)


def reweigh(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    (folder / WEIGHTS).write_bytes(save(tensors))
    sign(folder)


def test_a_loaded_bundle_generates_what_the_saved_one_did(toy_folder: Path, toy: Bundle, tmp_path: Path) -> None:
    assert toy.digest == (toy_folder / DIGEST).read_text().strip()
    assert toy.save(tmp_path / "again") == toy.digest
    for name in (CONFIG, WEIGHTS, DIGEST):
        assert (tmp_path / "again" / name).read_bytes() == (toy_folder / name).read_bytes()


def test_two_trainings_alike_give_the_same_digest(toy: Bundle, tmp_path: Path) -> None:
    assert ltdi.load_bundle(make_bundle(tmp_path / "toy")).digest == toy.digest


def test_a_card_of_this_digest_is_read(folder: Path) -> None:
    (folder / CARD).write_text(json.dumps({"bundle_digest": sign(folder), "accuracy": 1}))
    assert ltdi.load_bundle(folder).card["accuracy"] == 1


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS, DIGEST])
def test_a_bundle_that_lacks_a_file_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(DamagedFile, match=missing):
        ltdi.load_bundle(folder)


@pytest.mark.parametrize("touched", [CONFIG, WEIGHTS, DIGEST])
def test_a_changed_byte_is_refused_by_the_digest(folder: Path, touched: str) -> None:
    content = bytearray((folder / touched).read_bytes())
    content[-3] ^= 1
    (folder / touched).write_bytes(content)
    with pytest.raises(DamagedFile, match="does not match its digest; fetch or export it again"):
        ltdi.load_bundle(folder)


CONFIGS = {
    "an unknown key": (lambda c: c.update(recipee="x"), "unknown key 'recipee'; did you mean 'recipe'"),
    "an unknown key inside": (lambda c: c["schedule"].update(step=3), "unknown key 'step'; did you mean 'steps'"),
    "an unknown version": (lambda c: c.update(format_version=1), "format_version 1; this library reads 2"),
    "no version": (lambda c: c.pop("format_version"), "format_version None"),
    "an unknown recipe": (lambda c: c.update(recipe="other"), "recipe 'other' is unknown"),
    "an unknown body": (lambda c: c["body"].update(name="resnet999"), "body 'resnet999' is unknown"),
    "no denoiser": (lambda c: c.update(class_tokens=None), "needs `class_tokens`"),
    "a recipe without its denoiser": (lambda c: c.update(recipe="paper"), "lacks its denoiser"),
    "heads of another size than the body's features": (lambda c: c.update(head_sizes=[255, 0]), "begin with 255"),
    "no head sizes": (lambda c: c.update(head_sizes=[]), "config that cannot be used"),
    "a negative size": (lambda c: c["body"].update(channels=-1), "config that cannot be used"),
    "a size of nothing": (lambda c: c["body"].update(image_size=0), "config that cannot be used"),
    "a width that heads cannot share": (lambda c: c["class_tokens"].update(width=33), "must be a multiple of heads"),
    "an impossible schedule": (lambda c: c["schedule"].update(segments=21), "segments is 21"),
    "more views than it can look at": (lambda c: c.update(views=65), r"views is 65; it lies in 0\.\.64"),
    "views of a recipe that has none": (lambda c: c.update(recipe="paper", views=1), "views is 1.* is 0 for other"),
    "no calibration": (lambda c: c["calibration"].update(rows=[]), "rows of ascending shots"),
    "a strength that is no number": (lambda c: c["calibration"]["rows"][0].update(strength=NAN), "finite strength"),
    "a temperature of 0": (lambda c: c["calibration"]["rows"][0].update(temperature=0), "temperatures above 0"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_cannot_be_used_is_refused(folder: Path, case: str) -> None:
    change, reason = CONFIGS[case]
    reconfigure(folder, change)
    with pytest.raises(DamagedFile, match=reason):
        ltdi.load_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\udcff"])
def test_a_config_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    sign(folder)
    with pytest.raises(DamagedFile, match="config"):
        ltdi.load_bundle(folder)


ANSWER = "generator.denoiser.answer.weight"
TENSORS = {
    "a missing tensor": (lambda t: t.pop(ANSWER), f"lack tensor '{ANSWER}'"),
    "a missing tensor of the body": (lambda t: t.pop("body.blocks.0.0.weight"), "lack tensor 'body.blocks.0.0.weight'"),
    "an extra tensor": (lambda t: t.update(more=torch.ones(1)), r"holds tensors it should not: \['more'\]"),
    "NaN": (lambda t: t[ANSWER].fill_(NAN), f"tensor '{ANSWER}' of the bundle's weights holds NaN or infinity"),
    "another shape": (lambda t: t.update({ANSWER: torch.ones(3, 3)}), rf"tensor '{ANSWER}' is \[3, 3\] .*; expected"),
    "another type": (lambda t: t.update({ANSWER: t[ANSWER].double()}), f"tensor '{ANSWER}' is .* torch.float64"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_do_not_fit_are_refused(folder: Path, case: str) -> None:
    change, reason = TENSORS[case]
    reweigh(folder, change)
    with pytest.raises(DamagedFile, match=reason):
        ltdi.load_bundle(folder)


def test_a_pickle_in_disguise_is_not_opened(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(load_file(folder / WEIGHTS)))
    sign(folder)
    with pytest.raises(DamagedFile, match="pickle or zip archive, not safetensors; it was not opened"):
        ltdi.load_bundle(folder)


@pytest.mark.parametrize("text", ['{"bundle_digest": "0"}', "[]", "{}"])
def test_a_card_of_another_digest_is_refused(folder: Path, text: str) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(DamagedFile, match="speaks of another digest"):
        ltdi.load_bundle(folder)


def test_a_card_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / CARD).write_text("{")
    with pytest.raises(DamagedFile, match="is not JSON"):
        ltdi.load_bundle(folder)


def test_a_name_that_is_neither_shipped_nor_a_folder_is_not_found() -> None:
    with pytest.raises(BundleNotFound, match="no bundle 'absent': shipped are"):
        ltdi.load_bundle("absent")


def test_an_unknown_device_is_refused(toy_folder: Path) -> None:
    with pytest.raises(InvalidInput, match="device is 'tpu'; known: auto, cpu, cuda"):
        ltdi.load_bundle(toy_folder, device="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused(toy_folder: Path) -> None:
    with pytest.raises(InvalidInput, match="torch sees no CUDA device"):
        ltdi.load_bundle(toy_folder, device="cuda")


def test_embedding_gives_features_and_leaves_features_as_they_are(toy: Bundle, images: torch.Tensor) -> None:
    features = toy.embed(images)
    assert features.shape == (12, toy.feature_size) and features.dtype == torch.float32
    assert torch.equal(toy.embed(features), features)
    assert toy.embed([]).shape == (0, toy.feature_size)


def test_images_as_wide_as_a_feature_are_images(toy: Bundle) -> None:
    assert toy.prepare(torch.zeros(2, toy.feature_size, toy.feature_size, dtype=torch.uint8)).shape == (2, 28, 28)


def test_every_form_of_features_is_the_same_features(toy: Bundle) -> None:
    features = torch.randn(4, toy.feature_size)
    forms = {
        "NumPy": features.numpy(),
        "float64": features.double().numpy(),
        "big-endian": features.numpy().astype(">f4"),
        "a flipped view": features.numpy()[::-1].copy()[::-1],
        "rows": list(features),
        "rows of NumPy": list(features.numpy()),
        "with a gradient": features.clone().requires_grad_(),
    }
    for form, value in forms.items():
        assert torch.equal(toy.prepare(value), features), form


FEATURES = {
    "another size": (lambda d: torch.zeros(2, d + 1), r"shape \[2, \d+\] .*; bundle 'toy' takes floats \[M, \d+\]"),
    "integers": (lambda d: torch.zeros(2, d, dtype=torch.long), "torch.int64"),
    "one feature alone": (lambda d: torch.zeros(d), "takes floats"),
    "text": (lambda d: np.full((2, d), "a"), "takes floats"),
    "NaN": (lambda d: torch.full((2, d), NAN), "NaN or infinity"),
    "rows of several sizes": (lambda d: [torch.zeros(d), torch.zeros(d + 1)], "is not a feature"),
    "rows and other things": (lambda d: [torch.zeros(d), "a"], "is not a feature"),
    "beyond float32": (lambda d: np.full((2, d), 1e300), r"1e\+300; every number must lie within"),
    "huge": (lambda d: torch.full((2, d), 1e30), "must lie within"),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features_that_are_none_are_refused(toy: Bundle, case: str) -> None:
    make, message = FEATURES[case]
    with pytest.raises(InvalidFeatures, match=message) as caught:
        toy.generate(make(toy.feature_size), ["a", "b"])
    assert caught.value.field.startswith("support")


TASKS = {
    "empty": ([], [], {}, EmptySupport, "support set is empty", "support"),
    "one class": ([0, 1], ["a", "a"], {}, TooFewClasses, "has 1 class", "support"),
    "labels missing": ([0, 1], None, {}, InvalidSupport, "2 examples and 0 labels", "labels"),
    "damaged image": ([b"x", 0], ["a", "b"], {}, InvalidImage, "not a readable", "support/0"),
    "too many classes": (range(65), [str(i) for i in range(65)], {}, LimitExceeded, "65 classes; .* at most 64", "classes"),
    "descriptions": ([0, 1], ["a", "b"], {"descriptions": {"a": "x"}}, UnsupportedInput, "does not use descr", "descriptions"),
    "a pool": ([0, 1], ["a", "b"], {"unlabelled": [0]}, UnsupportedInput, "does not use unlabelled", "unlabelled"),
    "a seed below 0": ([0, 1], ["a", "b"], {"seed": -1}, InvalidInput, "seed is -1; it must be an integer in", "seed"),
    "a seed too large": ([0, 1], ["a", "b"], {"seed": 2**63}, InvalidInput, "must be an integer in", "seed"),
    "half a seed": ([0, 1], ["a", "b"], {"seed": 0.5}, InvalidInput, "seed is 0.5", "seed"),
    "no draws": ([0, 1], ["a", "b"], {"draws": 0}, LimitExceeded, r"draws is 0; it must lie in 1\.\.64", "options/draws"),
    "too many draws": ([0, 1], ["a", "b"], {"draws": 65}, LimitExceeded, "draws is 65", "options/draws"),
    "draws as text": ([0, 1], ["a", "b"], {"draws": "2"}, InvalidInput, "draws is '2'", "options/draws"),
    "unknown fallback": (
        [0, 1], ["a", "b"], {"fallback": "x"}, InvalidInput, "fallback is 'x'; known: baseline, none", "options/fallback",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TASKS)
def test_what_makes_no_task_generates_nothing(toy: Bundle, case: str) -> None:
    inputs, labels, more, kind, message, field = TASKS[case]
    drawings = [np.full((28, 28), 3 * i, dtype=np.uint8) if isinstance(i, int) else i for i in inputs]
    with pytest.raises(LtDiError, match=message) as caught:
        toy.generate(drawings, labels, **more)
    assert type(caught.value) is kind and caught.value.field == field


def test_a_bundle_of_fixed_ways_refuses_others(toy_paper: Bundle) -> None:
    with pytest.raises(UnsupportedInput, match="2 classes; bundle 'toy-paper' makes heads of 3 classes only") as caught:
        toy_paper.generate(torch.zeros(2, 256), ["a", "b"])
    assert caught.value.field == "classes"
