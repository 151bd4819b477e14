"""A head that gets more: examples, classes, steps; and what it is beyond this library."""

import pytest
import torch

from ltdi import Bundle, Head, InvalidInput, InvalidSupport, LimitExceeded, load_head
from ltdi.generator import Calibration, CalibrationRow
from ltdi.refine import refine
from tests.ltdi.test_experts import blobs

X, Y = blobs(3, 4, 20, spread=0.8)
LABELS = [f"c{i}" for i in Y.tolist()]
NEW = blobs(4, 2, 20, spread=0.8, seed=4)[0][-2:]


def same(one: Head, other: Head) -> bool:
    return one.to_bytes() == other.to_bytes()


@pytest.fixture
def head(toy_features: Bundle) -> Head:
    return toy_features.generate(X[:-1], LABELS[:-1], seed=5)


def test_an_updated_head_is_the_one_of_all_examples(toy_features: Bundle, head: Head) -> None:
    assert same(toy_features.update(head, X[-1:], LABELS[-1:]), toy_features.generate(X, LABELS, seed=5))


def test_an_update_may_bring_a_pool(toy_features: Bundle, head: Head) -> None:
    once = toy_features.update(head, unlabelled=NEW)
    twice = toy_features.update(once, unlabelled=X[:2])
    assert same(twice, toy_features.generate(X[:-1], LABELS[:-1], seed=5, unlabelled=torch.cat([NEW, X[:2]])))


def test_classes_come_and_go(toy_features: Bundle, head: Head) -> None:
    larger = toy_features.add_class(head, "a new one", NEW)
    assert larger.labels == ["c0", "c1", "c2", "a new one"]
    assert same(toy_features.remove_class(larger, "a new one"), head)
    named = toy_features.add_class(head, "named", description=NEW[0])
    assert named.labels[-1] == "named" and named.predict(NEW[:1]) == ["named"]


@pytest.mark.parametrize(
    "change",
    [
        lambda b, h: b.add_class(h, "c0", NEW),
        lambda b, h: b.add_class(h, "empty"),
        lambda b, h: b.remove_class(h, "c9"),
        lambda b, h: b.remove_class(b.remove_class(h, "c0"), "c1"),
        lambda b, h: b.update(h, X[:1], ["c9"]),
        lambda b, h: b.update(h, torch.zeros(1, 7), ["c0"]),
    ],
    ids=["there already", "nothing", "unknown", "too few left", "unknown label", "other size"],
)
def test_what_cannot_change_is_refused(toy_features: Bundle, head: Head, change) -> None:
    with pytest.raises(InvalidInput):
        change(toy_features, head)


def test_a_head_from_a_file_says_that_it_keeps_no_support(toy_features: Bundle, head: Head, toy: Bundle) -> None:
    loaded = load_head(head.to_bytes())
    with pytest.raises(InvalidInput, match="keeps no support set"):
        toy_features.update(loaded, X[:1], ["c0"])
    with pytest.raises(InvalidInput, match="another bundle"):
        toy.update(head, X[:1], ["c0"])


def test_images_have_the_same_life(toy: Bundle, images, labels) -> None:
    whole = toy.generate(images, labels)
    part = toy.generate(images[:-1], labels[:-1])
    assert same(toy.update(part, images[-1:], labels[-1:]), whole)
    with pytest.raises(InvalidInput, match="does not use descriptions"):
        toy.add_class(whole, "x", description="a word")


def test_refinement_fits_the_examples_better_step_by_step(toy_features: Bundle) -> None:
    weights = torch.randn(3, 21, generator=torch.Generator().manual_seed(0))

    def loss(steps: int) -> float:
        made = refine(weights, X, Y, steps)
        return float(torch.nn.functional.cross_entropy(X @ made[:, :-1].T + made[:, -1], Y))

    losses = [loss(steps) for steps in (0, 1, 5, 50)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    heads = [toy_features.generate(X, LABELS, refine_steps=steps, check=False) for steps in (0, 9)]
    assert not torch.equal(heads[0](X), heads[1](X))
    with pytest.raises(LimitExceeded):
        toy_features.generate(X, LABELS, refine_steps=10_000)


def test_refinement_of_image_heads(toy: Bundle, images, labels) -> None:
    plain, refined = toy.generate(images, labels), toy.generate(images, labels, refine_steps=20)
    target = torch.tensor([plain.labels.index(label) for label in labels])
    features = toy.embed(images)
    losses = [float(torch.nn.functional.cross_entropy(h(features), target)) for h in (plain, refined)]
    assert losses[1] < losses[0]


def test_refinement_is_held_by_where_it_began() -> None:
    weights = torch.randn(3, 21)
    assert torch.equal(refine(weights, X[:0], Y[:0], 9), weights)
    one = refine(weights, X[:1], Y[:1], 500)
    assert (one - weights).norm() < refine(weights, X, Y, 500).sub(weights).norm()


def test_scikit_learn_answers_alike(toy_features: Bundle, head: Head) -> None:
    head.temperature = 1.7
    model = head.to_sklearn()
    assert list(model.predict(X.numpy())) == head.predict(X)
    assert torch.allclose(torch.from_numpy(model.predict_proba(X.numpy())).float(), head.predict_proba(X), atol=1e-5)
    two = toy_features.generate(X[:8], LABELS[:8])
    model = two.to_sklearn()
    assert list(model.predict(X.numpy())) == two.predict(X)
    assert torch.allclose(torch.from_numpy(model.predict_proba(X.numpy())).float(), two.predict_proba(X), atol=1e-5)


def test_unsorted_classes_keep_their_names_in_scikit_learn(toy_features: Bundle) -> None:
    head = toy_features.generate(X, LABELS, classes=["c2", "c0", "c1"])
    assert list(head.to_sklearn().predict(X.numpy())) == head.predict(X)


def test_two_layers_are_no_logistic_regression(toy_paper: Bundle, images, labels) -> None:
    with pytest.raises(InvalidInput):
        toy_paper.generate(images, labels, fallback="none").to_sklearn()
    with pytest.raises(InvalidInput):
        toy_paper.generate(images, labels, refine_steps=3)


def test_none_of_these_is_far_from_every_class(toy_features: Bundle, head: Head) -> None:
    inside, outside = head.none_of_these(X[:-1]), head.none_of_these(-X[:-1] + torch.randn(11, 20))
    assert inside.mean() < outside.mean()
    with pytest.raises(InvalidInput, match="reject_threshold"):
        head.is_none_of_these(X)
    head.metadata["reject_threshold"] = float(inside.max())
    assert not head.is_none_of_these(X[:-1]).any()
    assert load_head(head.to_bytes()).reject_threshold == pytest.approx(float(inside.max()))


def test_one_threshold_serves_few_classes_and_many() -> None:
    """A head that says nothing scores 0 at any number of classes; classes said twice over change nothing."""
    rows, bias = torch.randn(4, 20), torch.randn(4)
    once = Head([(rows, bias)], list("abcd"))
    twice = Head([(rows.repeat(2, 1), bias.repeat(2))], list("abcdefgh"))
    assert torch.allclose(once.none_of_these(X), twice.none_of_these(X), atol=1e-4)
    for ways in (2, 150):
        silent = Head([(torch.zeros(ways, 20), torch.zeros(ways))], [str(i) for i in range(ways)])
        assert torch.allclose(silent.none_of_these(X), torch.zeros(len(X)), atol=1e-5)


def test_the_score_of_the_table_is_the_head_s() -> None:
    from training.text_table import scores_of

    head = Head([(torch.randn(4, 20), torch.randn(4))], list("abcd"), temperature=1.7)
    assert torch.allclose(scores_of(head(X).detach() / 1.7)["energy"], head.none_of_these(X), atol=1e-5)


def test_a_threshold_is_interpolated_like_the_rest() -> None:
    rows = (CalibrationRow(1, 1.0, reject_threshold=-2.0), CalibrationRow(10, 1.0, reject_threshold=-4.0))
    assert Calibration(rows).reject_threshold(1) == -2.0
    assert Calibration(rows).reject_threshold(100) == -4.0
    assert Calibration((rows[0], CalibrationRow(10, 1.0))).reject_threshold(1) is None


def test_a_removed_class_must_exist(toy_features: Bundle, head: Head) -> None:
    with pytest.raises(InvalidSupport, match="no class 'nowhere'"):
        toy_features.remove_class(head, "nowhere")
