"""Descriptions, examples and a pool in one task: what comes back, and what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ltdi import Bundle, InvalidFeatures, InvalidInput, InvalidSupport, LimitExceeded, UnsupportedInput, load_head
from ltdi.bodies.loader import BodyConfig, build_body
from ltdi.bodies.sentence import model_folder, weights_digest
from ltdi.denoisers.geometry import GeometryConfig
from ltdi.errors import BodyMissing, InvalidConfig, InvalidText
from ltdi.support import Limits
from tests.conftest import SENTENCES, make_geometry
from tests.ltdi.test_experts import blobs

X, Y = blobs(4, 3, 20, spread=0.6)
LABELS = [f"c{i}" for i in Y.tolist()]
NAMES = {f"c{i}": row for i, row in enumerate(blobs(4, 1, 20, spread=0.6, seed=8)[0])}
POOL = blobs(4, 20, 20, spread=0.6, seed=5)[0]
TEXTS = ["where is my money?", "I want my money back", "my card is gone", "somebody stole my card"]
OF_TEXTS = ["refund", "refund", "lost_card", "lost_card"]


def same(one, other) -> bool:
    return one.to_bytes() == other.to_bytes()


@pytest.mark.parametrize(
    "task",
    [
        {"inputs": X, "labels": LABELS},
        {"descriptions": NAMES},
        {"descriptions": NAMES, "unlabelled": POOL},
        {"inputs": X, "labels": LABELS, "unlabelled": POOL},
        {"inputs": X[:5], "labels": LABELS[:5], "descriptions": NAMES, "unlabelled": POOL},  # uneven, none for two classes
        {"inputs": X[:6], "labels": LABELS[:6], "descriptions": {"c3": NAMES["c3"], "c2": NAMES["c2"]}},
    ],
    ids=["examples", "names", "names and pool", "examples and pool", "uneven", "either"],
)
def test_any_mix_makes_a_head(toy_features: Bundle, task: dict) -> None:
    head = toy_features.generate(**task)
    assert head.labels == ["c0", "c1", "c2", "c3"] and head.normalise == "l2" and head.feature_size == 20
    assert same(head, toy_features.generate(**task))
    assert torch.equal(load_head(head.to_bytes())(X), head(X))
    assert torch.isfinite(head(X)).all()


def test_order_changes_nothing_and_labels_only_move_rows(toy_features: Bundle) -> None:
    head = toy_features.generate(X, LABELS, descriptions=NAMES, unlabelled=POOL, seed=3)
    order, pool = torch.randperm(len(X)), torch.randperm(len(POOL))
    again = toy_features.generate(
        X[order], [LABELS[i] for i in order], descriptions=dict(reversed(NAMES.items())), unlabelled=POOL[pool], seed=3
    )
    assert same(head, again)
    back = {"c0": "z", "c1": "y", "c2": "x", "c3": "w"}
    renamed = toy_features.generate(
        X, [back[label] for label in LABELS], descriptions={back[k]: v for k, v in NAMES.items()}, unlabelled=POOL, seed=3
    )
    assert torch.equal(renamed.layers[0].weight.flip(0), head.layers[0].weight)
    assert torch.equal(renamed.layers[0].bias.flip(0), head.layers[0].bias)


def test_scale_of_features_does_not_matter(toy_features: Bundle) -> None:
    head = toy_features.generate(X, LABELS, unlabelled=POOL, check=False)
    larger = toy_features.generate(8 * X, LABELS, unlabelled=POOL * 8, check=False)
    assert torch.allclose(head(X), larger(8 * X), atol=1e-3)


def test_two_classes_and_a_hundred_and_fifty(toy_features: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_features, "config", replace(toy_features.config, limits=Limits(max_ways=150)))
    assert toy_features.generate(X[:4], LABELS[:4]).labels == ["c0", "c1"]
    x, y = blobs(150, 1, 32)
    head = toy_features.generate(x, [f"{i:03d}" for i in y.tolist()], check=False)
    assert len(head.labels) == 150


def test_single_examples_beside_names_are_held_out_in_turn(toy_features: Bundle) -> None:
    head = toy_features.generate(X[::3], LABELS[::3], descriptions=NAMES)
    assert head.support_accuracy is not None
    assert toy_features.generate(X[::3], LABELS[::3]).support_accuracy is None


@pytest.mark.parametrize("centre", [False, True])
def test_items_that_tell_nothing_apart_still_make_a_finite_head(tmp_path, centre: bool) -> None:
    bundle = make_geometry(tmp_path / "b", BodyConfig("features", 0, 0), geometry=GeometryConfig(centre=centre))
    for features in (torch.zeros(4, 6), torch.ones(4, 6), torch.eye(6)[:1].expand(4, -1)):
        head = bundle.generate(features, ["a", "b", "a", "b"], unlabelled=features, fallback="none")
        assert torch.isfinite(head(torch.randn(5, 6))).all()


def test_centred_heads_say_so_and_work_from_their_file(tmp_path) -> None:
    bundle = make_geometry(tmp_path / "b", BodyConfig("features", 0, 0), geometry=GeometryConfig(centre=True))
    head = bundle.generate(X + 5, LABELS, unlabelled=POOL + 5)
    assert head.normalise == "center_l2"
    ways, everything = len(head.labels), torch.cat([POOL + 5, X + 5]).mean(0)
    drawn_to_examples = ((X + 5).sum(0) + ways * everything) / (len(X) + ways)
    assert torch.allclose(head.feature_mean, drawn_to_examples, atol=1e-5)
    loaded = load_head(head.to_bytes())
    assert torch.equal(loaded(X + 5), head(X + 5))
    moved = bundle.generate(X, LABELS, unlabelled=POOL)
    assert torch.allclose(moved(X), head(X + 5), atol=2e-2)


REFUSED = [
    ("description of no class", {"inputs": X, "labels": LABELS, "classes": ["c0", "c1", "c2", "c3"],
                                 "descriptions": {"c9": X[0]}}, InvalidSupport, "descriptions"),
    ("pool of another size", {"inputs": X, "labels": LABELS, "unlabelled": torch.zeros(3, 7)}, InvalidFeatures, "unlabelled"),
    ("description of another size", {"inputs": X, "labels": LABELS, "descriptions": {"c0": torch.zeros(3)}},
     InvalidFeatures, "descriptions/c0"),
    ("pool with NaN", {"inputs": X, "labels": LABELS, "unlabelled": torch.full((3, 20), float("nan"))},
     InvalidFeatures, "unlabelled"),
    ("a class with nothing", {"inputs": X, "labels": LABELS, "classes": ["c0", "c1", "c2", "c3", "c4"]}, InvalidSupport, "support"),
    ("too large a pool", {"inputs": X, "labels": LABELS, "unlabelled": torch.zeros(10_001, 20)}, LimitExceeded, "unlabelled"),
    ("text without a body", {"inputs": ["a", "b"], "labels": ["a", "b"]}, UnsupportedInput, "support"),
    ("named by text without a body", {"descriptions": {"a": "x", "b": "y"}}, UnsupportedInput, "descriptions"),
    ("one class", {"descriptions": {"a": X[0]}}, InvalidSupport, "support"),
    ("nothing", {}, InvalidInput, "support"),
    ("no dimension", {"inputs": torch.zeros(2, 0), "labels": ["a", "b"]}, InvalidFeatures, "support"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "error", "field"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_is_refused(toy_features: Bundle, task: dict, error: type, field: str) -> None:
    with pytest.raises(error) as caught:
        toy_features.generate(**task)
    assert caught.value.field == field


def test_texts_names_and_a_pool(toy_text: Bundle) -> None:
    head = toy_text.generate(TEXTS, OF_TEXTS, descriptions={"refund": "refund", "lost_card": "I lost my card"},
                             unlabelled=["is my parcel lost?", "card stolen, help", "give it back"] * 4)  # fmt: skip
    assert head.labels == ["lost_card", "refund"]
    assert head.predict(toy_text.embed(["my bank card was stolen", "please pay me back"])) == ["lost_card", "refund"]
    named = toy_text.generate(descriptions={"refund": "money back", "lost_card": "I lost my card"})
    assert named.predict(toy_text.embed(["my card is gone"])) == ["lost_card"]


def test_texts_and_their_features_give_one_head(toy_text: Bundle) -> None:
    named = {"refund": "money back", "lost_card": "I lost my card"}
    by_text = toy_text.generate(TEXTS, OF_TEXTS, descriptions=named)
    features = {label: toy_text.embed([text])[0] for label, text in named.items()}
    by_features = toy_text.generate(toy_text.embed(TEXTS), OF_TEXTS, descriptions=features)
    queries = toy_text.embed(["where is it?", "a new card please"])
    assert torch.allclose(by_text(queries), by_features(queries), atol=2e-2)


def test_odd_labels_are_fine(toy_text: Bundle) -> None:
    head = toy_text.generate(TEXTS[1:3], ["7", "a b 😀"])
    assert head.labels == ["7", "a b 😀"]
    assert load_head(head.to_bytes()).labels == head.labels


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"inputs": ["x", " "], "labels": ["a", "b"]}, "support/1"),
        ({"inputs": ["x", 3], "labels": ["a", "b"]}, "support/1"),
        ({"inputs": ["x", "y"], "labels": ["a", "b"], "descriptions": {"a": ""}}, "descriptions/a/0"),
        ({"inputs": ["x", "y"], "labels": ["a", "b"], "unlabelled": ["z", ""]}, "unlabelled/1"),
        ({"inputs": ["x", "long " * 300], "labels": ["a", "b"]}, "support/1"),
        ({"inputs": ["x", "half \ud83d"], "labels": ["a", "b"]}, "support/1"),
    ],
    ids=["blank", "no string", "empty description", "empty pool item", "too long", "half a pair"],
)
def test_texts_that_cannot_be_read_are_refused(toy_text: Bundle, task: dict, field: str) -> None:
    with pytest.raises(InvalidText) as caught:
        toy_text.generate(**task)
    assert caught.value.field == field


def test_long_texts_are_cut_where_that_is_asked(toy_text: Bundle) -> None:
    long = ["money back " * 200, "my card is gone " * 200]
    assert toy_text.generate(long, ["a", "b"], truncate=True).labels == ["a", "b"]
    assert toy_text.generate(["word " * 200, "b"], ["a", "b"]).labels == ["a", "b"]  # 202 tokens are not too long


def test_mixed_forms_are_refused(toy_text: Bundle) -> None:
    with pytest.raises(InvalidInput):
        toy_text.generate("one text", ["a"])
    with pytest.raises(InvalidInput):
        toy_text.generate(torch.zeros(2, 5), ["a", "b"])


def test_numpy_texts_are_texts(toy_text: Bundle) -> None:
    assert toy_text.generate(np.array(TEXTS), OF_TEXTS).labels == ["lost_card", "refund"]


def test_a_missing_encoder_is_named_with_its_remedy(tmp_path) -> None:
    body = build_body(BodyConfig("sentence", 0, 0, str(tmp_path / "nowhere"), 384))
    assert not body.installed
    with pytest.raises(BodyMissing, match="ltdi\\[text\\]"):
        body.embed(["x"])
    with pytest.raises(InvalidConfig):
        build_body(BodyConfig("sentence"))


@pytest.mark.skipif(not SENTENCES, reason="the extra `text` is not installed")
def test_a_model_by_its_path_and_weights(toy_text: Bundle, tmp_path) -> None:
    copy = tmp_path / "a model of mine"
    shutil.copytree(model_folder("all-MiniLM-L6-v2"), copy)
    body = build_body(BodyConfig("sentence", 0, 0, str(copy), 384, weights_digest(copy)))
    assert body.installed and body.max_tokens == 256
    assert torch.allclose(body.embed(TEXTS).cpu(), toy_text.embed(TEXTS), atol=1e-6)


@pytest.mark.skipif(not SENTENCES, reason="the extra `text` is not installed")
def test_features_do_not_depend_on_company(toy_text: Bundle) -> None:
    alone = torch.cat([toy_text.embed([text]) for text in TEXTS])
    together = toy_text.embed([*TEXTS, "a much longer line that makes the batch wider than it would be " * 3])[:4]
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.allclose(alone.norm(dim=1), torch.ones(4), atol=1e-5)


@pytest.mark.skipif(not SENTENCES, reason="the extra `text` is not installed")
def test_an_encoder_of_other_weights_is_refused() -> None:
    body = build_body(BodyConfig("sentence", 0, 0, "all-MiniLM-L6-v2", 384, digest="0" * 64))
    with pytest.raises(UnsupportedInput, match="other weights"):
        body.embed(["x"])
