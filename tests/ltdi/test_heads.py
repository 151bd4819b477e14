"""Heads: what they compute, their file, and files that must not be used."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

import ltdi
from ltdi.errors import DamagedFile, InvalidFeatures
from ltdi.heads import Head, load_head

LABELS = ["größer", "b\n", ""]
FACTS = {"model": "toy", "seed": 7, "support_accuracy": 0.5, "baseline_support_accuracy": None, "method": "generated"}


def make_head(layers: int = 1, normalise: str = "none") -> Head:
    """A head of three classes over six features."""
    torch.manual_seed(0)
    sizes = [(3, 6)] if layers == 1 else [(4, 6), (3, 4)]
    mean = torch.randn(6) if normalise == "center_l2" else None
    weights = [(torch.randn(*size), torch.randn(size[0])) for size in sizes]
    return Head(weights, LABELS, normalise=normalise, feature_mean=mean, temperature=1.7, metadata=FACTS)


def numpy_logits(path: Path, features: np.ndarray) -> np.ndarray:
    """What the README shows: a head used without this library."""
    tensors = safetensors.numpy.load_file(path)
    content = path.read_bytes()
    facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    x = features - tensors["feature_mean"] if facts["normalise"] == "center_l2" else features
    if facts["normalise"] != "none":
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    if "weight" in tensors:
        return x @ tensors["weight"].T + tensors["bias"]
    x = np.maximum(x @ tensors["layers.0.weight"].T + tensors["layers.0.bias"], 0)
    return x @ tensors["layers.1.weight"].T + tensors["layers.1.bias"]


kinds = pytest.mark.parametrize(
    ("layers", "normalise"), [(1, "none"), (2, "none"), (1, "l2"), (1, "center_l2"), (2, "center_l2")]
)


@kinds
def test_a_head_survives_its_file(layers: int, normalise: str, tmp_path: Path) -> None:
    head, features = make_head(layers, normalise), torch.randn(5, 6)
    head.save(tmp_path / "head.safetensors")
    loaded = ltdi.load_head(tmp_path / "head.safetensors")
    assert torch.equal(loaded(features), head(features))
    assert loaded.labels == LABELS and loaded.temperature == 1.7 and loaded.metadata == head.metadata
    assert loaded.to_bytes() == head.to_bytes() == (tmp_path / "head.safetensors").read_bytes()


@kinds
def test_ten_lines_of_numpy_give_the_same_logits(layers: int, normalise: str, tmp_path: Path) -> None:
    head, features = make_head(layers, normalise), torch.randn(5, 6)
    head.save(tmp_path / "head.safetensors")
    found = numpy_logits(tmp_path / "head.safetensors", features.numpy())
    np.testing.assert_allclose(found, head(features).numpy(), atol=1e-5)


def test_labels_of_any_length_survive() -> None:
    for letters in range(0, 600, 7):
        head = Head([(torch.ones(2, 3), torch.ones(2))], ["a" * letters, "b"])
        assert load_head(head.to_bytes()).labels == head.labels


def test_logits_are_those_of_the_layers_over_normalised_features() -> None:
    head, features = make_head(2, "center_l2"), torch.randn(5, 6)
    x = F.normalize(features - head.feature_mean, dim=-1)
    torch.testing.assert_close(head(features), head.layers[1](F.relu(head.layers[0](x))))


def test_predictions_are_labels_and_probabilities_are_cooled_by_the_temperature() -> None:
    head, features = make_head(), torch.randn(5, 6)
    logits = head(features)
    assert head.predict(features) == [LABELS[row] for row in logits.argmax(-1)]
    torch.testing.assert_close(head.predict_proba(features), torch.softmax(logits / 1.7, -1))
    assert head.predict(torch.zeros(0, 6)) == []


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(InvalidFeatures, match="features have size 5; this head takes 6") as caught:
        make_head()(torch.zeros(2, 5))
    assert caught.value.field == "features"


def test_the_file_says_all_that_a_stranger_needs() -> None:
    assert make_head().file_metadata() == {
        "format": "ltdi.head", "format_version": "1", "labels": '["größer", "b\\n", ""]', "normalise": "none",
        "activation": "none", "temperature": "1.7", "model": "toy", "seed": "7", "support_accuracy": "0.5",
        "baseline_support_accuracy": "null", "method": "generated",
    }  # fmt: skip


def test_a_fact_cannot_take_the_place_of_a_field_of_the_format() -> None:
    head = Head([(torch.ones(2, 3), torch.ones(2))], ["a", "b"], metadata={"labels": "x", "format": "x"})
    assert load_head(head.to_bytes()).labels == ["a", "b"]


def tampered(tensors: dict | None = None, drop: str = "", head: Head | None = None, **facts: str) -> bytes:
    """The bytes of a sound head with tensors or metadata changed or dropped."""
    head = head or make_head()
    held = load(head.to_bytes()) | (tensors or {})
    metadata = head.file_metadata() | facts
    held.pop(drop, None)
    metadata.pop(drop, None)
    return save(held, metadata)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("head/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


DAMAGED = {
    "pickle": (pickle.dumps({"weight": [1.0]}), "the head is a pickle or zip archive"),
    "zip": (zipped(), "the head is a pickle or zip archive"),
    "truncated": (tampered()[:-4], "not a whole safetensors file"),
    "empty": (b"", "not a whole safetensors file"),
    "no metadata": (save({"weight": torch.ones(3, 6)}), "not a head: its metadata says format=None"),
    "another format": (tampered(format="ltdi.task"), "format='ltdi.task', expected 'ltdi.head'"),
    "another version": (tampered(format_version="2"), "format_version '2'; this library reads '1'"),
    "missing tensor": (tampered(drop="bias"), r"holds tensors \['weight'\]"),
    "missing layer": (tampered(drop="layers.1.weight", head=make_head(2)), "holds tensors"),
    "extra tensor": (tampered({"more": torch.ones(1)}), "holds tensors .*'more'"),
    "NaN": (tampered({"bias": torch.tensor([0.0, np.nan, 0.0])}), "tensor 'bias' of the head holds NaN"),
    "wrong shape": (tampered({"bias": torch.ones(4)}), r"weight \[3, 6\] and bias \[4\] do not make a layer"),
    "no columns": (tampered({"weight": torch.ones(3, 0)}), r"weight \[3, 0\]"),
    "layers that do not meet": (tampered({"layers.1.weight": torch.ones(3, 5)}, head=make_head(2)), "do not make a layer"),
    "float64": (tampered({"weight": torch.ones(3, 6).double()}), "not float32"),
    "integers": (tampered({"weight": torch.ones(3, 6).long()}), "not float32"),
    "two labels for three rows": (tampered(labels='["a", "b"]'), "3 rows; its labels must be as many strings"),
    "labels that are numbers": (tampered(labels="[1, 2, 3]"), "3 rows; its labels must be as many strings"),
    "labels that are one string": (tampered(labels='"abc"'), "3 rows; its labels must be as many strings"),
    "half a character": (tampered(labels='["\\ud800", "b", "c"]'), "3 rows; its labels must be as many strings"),
    "labels missing": (tampered(drop="labels"), "incomplete or malformed: 'labels'"),
    "labels no JSON": (tampered(labels="[a"), "incomplete or malformed"),
    "labels without end": (tampered(labels="[" * 100_000), "incomplete or malformed: JSON nested too deep"),
    "unknown normalisation": (tampered(normalise="l1"), "normalise='l1'"),
    "unknown activation": (tampered(activation="gelu"), "activation='gelu'"),
    "activation of one layer": (tampered(activation="relu"), "1 layers with activation 'relu'"),
    "no activation between two": (tampered(head=make_head(2), activation="none"), "2 layers with activation 'none'"),
    "temperature 0": (tampered(temperature="0"), "temperature=0.0"),
    "temperature NaN": (tampered(temperature="nan"), "temperature=nan"),
    "temperature infinite": (tampered(temperature="inf"), "temperature=inf"),
    "temperature no number": (tampered(temperature="warm"), "malformed: could not convert"),
    "mean missing": (tampered(drop="feature_mean", head=make_head(1, "center_l2")), r"feature_mean \[6\] must be there exactly"),
    "mean of another size": (
        tampered({"feature_mean": torch.ones(5)}, head=make_head(1, "center_l2")), r"feature_mean \[6\] must be there exactly",
    ),
    "mean of no use": (tampered({"feature_mean": torch.ones(6)}), r"feature_mean \[6\] must be there exactly"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_head_is_refused_with_the_reason(case: str) -> None:
    content, reason = DAMAGED[case]
    with pytest.raises(DamagedFile, match=reason):
        load_head(content)


def test_a_fact_nested_without_end_stays_text() -> None:
    assert load_head(tampered(note="[" * 100_000)).metadata["note"].startswith("[[")
