"""From tasks to heads: symmetries, folds, fallback, and task embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import ltdi
from ltdi import baselines
from ltdi.bundle import Bundle, HeadRequest
from ltdi.errors import DamagedFile, GenerationFailed, LimitExceeded, UnsupportedInput
from ltdi.heads import Head, load_head
from ltdi.pipeline import Options, TaskEmbedding, folds
from tests.conftest import make_bundle

SHOTS = {"ka": 3, "ra": 1, "ta": 4}


@pytest.fixture(params=["toy", "toy_paper"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return request.getfixturevalue(request.param)


def features(count: int, seed: int = 0, size: int = 256) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def uneven(seed: int = 0) -> tuple[Tensor, list[str]]:
    """Features and labels of three classes of 3, 1 and 4 examples."""
    labels = [label for label, shots in SHOTS.items() for _ in range(shots)]
    return features(len(labels), seed), labels


def row_bytes(head: Head) -> dict[str, bytes]:
    """The last layer's weight and bias of each label, as bytes."""
    last = head.layers[-1]
    rows = torch.cat([last.weight, last.bias.unsqueeze(1)], dim=1).detach().numpy()
    return {label: rows[i].tobytes() for i, label in enumerate(head.labels)}


def task_bytes(task: TaskEmbedding, tensors: dict | None = None, **facts: str) -> bytes:
    return save(task.tensors() | (tensors or {}), task.metadata() | facts)


def test_the_order_of_examples_changes_no_byte(bundle: Bundle) -> None:
    inputs, labels = uneven()
    head = bundle.generate(inputs, labels, fallback="none").to_bytes()
    for seed in range(3):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = bundle.generate(inputs[order], [labels[i] for i in order], fallback="none")
        assert shuffled.to_bytes() == head


def test_the_order_of_images_changes_no_byte(toy: Bundle, images: Tensor, labels: list[str]) -> None:
    head = toy.generate(images, labels).to_bytes()
    order = torch.randperm(len(labels)).tolist()
    assert toy.generate(images[order], [labels[i] for i in order]).to_bytes() == head


def test_relabelling_the_classes_permutes_the_rows(bundle: Bundle) -> None:
    inputs, labels = uneven()
    renamed = {"ka": "ta", "ra": "zz", "ta": "a"}
    rows = row_bytes(bundle.generate(inputs, labels, fallback="none"))
    other = row_bytes(bundle.generate(inputs, [renamed[label] for label in labels], fallback="none"))
    assert other == {renamed[label]: row for label, row in rows.items()}


def test_reordering_the_classes_permutes_the_rows(bundle: Bundle) -> None:
    inputs, labels = uneven()
    head = bundle.generate(inputs, labels, fallback="none")
    other = bundle.generate(inputs, labels, classes=["ta", "ka", "ra"], fallback="none")
    assert other.labels == ["ta", "ka", "ra"] and head.labels == ["ka", "ra", "ta"]
    assert row_bytes(other) == row_bytes(head)
    assert other.metadata == head.metadata
    for own, same in zip(head.layers[:-1], other.layers[:-1], strict=True):
        assert torch.equal(own.weight, same.weight) and torch.equal(own.bias, same.bias)


def test_relabelling_permutes_the_rows_where_two_classes_hold_the_same(bundle: Bundle) -> None:
    inputs = features(4)[[0, 1, 2, 3, 0, 1]]
    head = row_bytes(bundle.generate(inputs, list("aabbcc"), fallback="none"))
    assert head["a"] == head["c"] != head["b"]
    other = row_bytes(bundle.generate(inputs, list("ccaabb"), fallback="none"))
    assert other == {"c": head["a"], "a": head["b"], "b": head["c"]}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(bundle: Bundle) -> None:
    inputs, labels = uneven()
    first = bundle.generate(inputs, labels, seed=7, fallback="none")
    assert bundle.generate(inputs, labels, seed=7, fallback="none").to_bytes() == first.to_bytes()
    assert row_bytes(bundle.generate(inputs, labels, seed=8, fallback="none")) != row_bytes(first)
    assert bundle.generate(inputs, labels, seed=2**63 - 1).metadata["seed"] == 2**63 - 1


def test_a_head_alone_has_the_bytes_that_it_has_among_others(toy: Bundle) -> None:
    options = [Options(), Options(seed=3, fallback="none"), Options(check=False), Options(draws=3)]
    requests = []
    for i, (ways, shots) in enumerate([(2, 1), (5, 1), (5, 1), (3, 2), (20, 5), (2, 7), (5, 5), (2, 1), (64, 1)]):
        labels = [f"{n:02d}" for n in range(ways) for _ in range(shots)]
        requests.append(HeadRequest(toy.support(features(len(labels), seed=i), labels), options[i % 4]))
    together = [head.to_bytes() for head in toy.generate_many(requests)]
    assert together == [toy.generate_many([request])[0].to_bytes() for request in requests]
    assert together == [head.to_bytes() for head in toy.generate_many(requests[::-1])][::-1]


def test_a_head_of_the_paper_recipe_has_the_same_bytes_among_others(toy_paper: Bundle) -> None:
    requests = [
        HeadRequest(toy_paper.support(*uneven(seed)), Options(seed=seed, check=seed % 2 == 0, fallback="none"))
        for seed in range(6)
    ]
    together = [head.to_bytes() for head in toy_paper.generate_many(requests)]
    assert together == [toy_paper.generate_many([request])[0].to_bytes() for request in requests]


@pytest.mark.parametrize("ways", [2, 3, 17, 64])
def test_one_bundle_serves_any_ways_and_uneven_shots(toy: Bundle, ways: int) -> None:
    labels = [f"{n:02d}" for n in range(ways) for _ in range(1 + n % 4)]
    head = toy.generate(features(len(labels)), labels)
    assert head(features(3, seed=9)).shape == (3, ways) and head.labels == sorted(set(labels))


def test_the_generated_head_is_the_baseline_plus_something(toy: Bundle) -> None:
    inputs, labels = features(4), ["a", "a", "b", "b"]
    head = toy.generate(inputs, labels, fallback="none")
    means = baselines.class_means(inputs.reshape(1, 2, 2, -1))[0]
    assert head.method == "generated" and not torch.allclose(head.layers[0].weight, means[:, :-1])


def test_the_head_says_what_made_it(toy: Bundle) -> None:
    head = toy.generate(*uneven(), seed=4)
    facts = {"model": "toy", "bundle_digest": toy.digest, "body": "conv4", "seed": 4}
    assert facts.items() <= head.metadata.items()
    assert {"method", "support_accuracy", "baseline_support_accuracy", "support_digest"} <= head.metadata.keys()


def test_every_stage_is_timed(toy: Bundle) -> None:
    seen: list[tuple[str, float]] = []
    toy.generate(*uneven(), on_stage=lambda name, seconds: seen.append((name, seconds)))
    assert [name for name, _ in seen] == ["embed", "sample", "check"] and all(seconds >= 0 for _, seconds in seen)


@pytest.mark.parametrize("counts", [[2, 2], [5, 5, 5], [1, 2], [3, 9, 1, 6], [20, 2]])
def test_every_class_stays_in_every_fold(counts: list[int]) -> None:
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    masks = folds(index, len(counts))
    assert 2 <= len(masks) <= 5
    for mask in masks:
        assert mask.any() and set(index[~mask].tolist()) == set(range(len(counts)))
    held = torch.stack(masks).sum(0)
    assert torch.equal(held, (torch.tensor(counts)[index] > 1).long())


def test_there_is_no_fold_where_every_class_has_one_example() -> None:
    assert folds(torch.arange(4), 4) == []


def test_support_accuracy_is_none_at_one_shot_and_without_the_check(toy: Bundle) -> None:
    one = toy.generate(features(3), list("abc"))
    unchecked = toy.generate(*uneven(), check=False)
    for head in (one, unchecked, load_head(one.to_bytes())):
        assert head.support_accuracy is None and head.baseline_support_accuracy is None


def test_the_baseline_s_support_accuracy_is_that_of_class_means_on_the_folds(toy: Bundle) -> None:
    inputs = torch.cat([features(10), features(10, seed=1) + 0.1])
    head = toy.generate(inputs, ["a"] * 10 + ["b"] * 10)
    support = toy.support(inputs, ["a"] * 10 + ["b"] * 10)
    inputs, index = inputs[support.canonical.example_order], support.canonical.class_index
    right = 0
    for mask in folds(index, 2):
        means = torch.stack([inputs[~mask & (index == n)].mean(0) for n in range(2)])
        right += int((torch.cdist(inputs[mask], means).argmin(1) == index[mask]).sum())
    assert head.baseline_support_accuracy == right / 20


def separated() -> tuple[Tensor, list[str]]:
    """Two classes that class means never confuse."""
    return torch.cat([features(5) + 3, features(5, seed=1) - 3]), ["a"] * 5 + ["b"] * 5


@pytest.fixture(scope="module")
def terrible(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose answers are large and random."""
    bundle = ltdi.load_bundle(make_bundle(tmp_path_factory.mktemp("bundles") / "toy", fallback_margin=0.0))
    denoiser = bundle.generator.denoiser
    denoiser.read_x.weight.zero_()  # else the classes' large answers drown what tells them apart
    torch.manual_seed(1)
    torch.nn.init.normal_(denoiser.answer.weight, std=1e4)
    return bundle


def test_a_head_that_the_baseline_beats_on_the_folds_is_not_returned(terrible: Bundle) -> None:
    inputs, labels = separated()
    head = terrible.generate(inputs, labels)
    assert head.method == "baseline" and head.baseline_support_accuracy == 1 > head.support_accuracy
    means = baselines.class_means(inputs.reshape(1, 2, 5, -1))[0]
    torch.testing.assert_close(head.layers[0].weight, means[:, :-1])
    assert head.predict(inputs) == labels


def test_without_fallback_the_generated_head_is_returned_whatever_the_folds_say(terrible: Bundle) -> None:
    head = terrible.generate(*separated(), fallback="none")
    assert head.method == "generated" and head.baseline_support_accuracy > head.support_accuracy


def test_weights_that_are_not_finite_fall_back_or_fail(terrible: Bundle) -> None:
    kept = terrible.generator.denoiser.answer.bias.clone()
    terrible.generator.denoiser.answer.bias.fill_(float("nan"))
    try:
        assert terrible.generate(*separated(), check=False).method == "baseline"
        with pytest.raises(GenerationFailed, match="NaN or infinity; use fallback='baseline'"):
            terrible.generate(*separated(), check=False, fallback="none")
    finally:
        terrible.generator.denoiser.answer.bias.copy_(kept)


def test_features_at_the_limit_give_a_finite_head(toy: Bundle) -> None:
    assert toy.generate(features(4).sign() * 1e6, list("aabb")).method in ("generated", "baseline")


def test_a_task_embedding_gives_the_same_head_later(bundle: Bundle) -> None:
    inputs, labels = uneven()
    inputs[0] = inputs[3]
    for one_shot in (False, True):
        task = (
            bundle.support(features(3), list("cab"))
            if one_shot
            else bundle.support(inputs, labels, classes=["ta", "ka", "ra"])
        )
        stored = TaskEmbedding.from_bytes(task_bytes(bundle.embed_task(task)))
        options = Options(seed=5, fallback="none")
        later, now = bundle.generate_many([HeadRequest(stored, options), HeadRequest(task, options)])
        assert later.support_accuracy is None
        assert later.baseline_support_accuracy == now.baseline_support_accuracy
        later.metadata["support_accuracy"] = now.support_accuracy
        assert later.to_bytes() == now.to_bytes()


def test_a_task_embedding_of_classes_that_hold_the_same_gives_the_same_head(bundle: Bundle) -> None:
    task = bundle.support(features(4)[[0, 1, 0]], list("abc"))
    stored = TaskEmbedding.from_bytes(task_bytes(bundle.embed_task(task)))
    later, now = bundle.generate_many([HeadRequest(stored), HeadRequest(task)])
    assert later.to_bytes() == now.to_bytes()


def test_a_task_embedding_of_another_bundle_is_refused(toy: Bundle, toy_paper: Bundle) -> None:
    task = toy.embed_task(toy.support(*uneven()))
    with pytest.raises(UnsupportedInput, match=r"made by bundle \w{12}, this one is \w{12}; make it again") as caught:
        toy_paper.generate_many([HeadRequest(task)])
    assert caught.value.field == "task_embedding"


def test_a_task_embedding_of_more_classes_than_the_bundle_takes_is_refused(toy: Bundle) -> None:
    ways = 65
    task = TaskEmbedding(
        torch.zeros(ways, 515), torch.zeros(ways, 257), torch.ones(ways).long(), torch.zeros(ways, 257), torch.arange(ways),
        tuple(map(str, range(ways))), tuple(map(str, range(ways))), "", toy.digest,
    )  # fmt: skip
    with pytest.raises(LimitExceeded, match="65 classes; this bundle takes at most 64"):
        toy.generate_many([HeadRequest(TaskEmbedding.from_bytes(task_bytes(task)))])


@pytest.mark.parametrize("tensors", [("tokens",), ("base", "hint")])
def test_a_task_embedding_of_another_size_is_refused(toy: Bundle, tensors: tuple[str, ...]) -> None:
    task = toy.embed_task(toy.support(*uneven()))
    stored = TaskEmbedding.from_bytes(task_bytes(task, {name: torch.zeros(3, 9) for name in tensors}))
    with pytest.raises(UnsupportedInput, match="made for features of another size"):
        toy.generate_many([HeadRequest(stored)])


HOSTILE: dict[str, tuple[dict, dict, str]] = {
    "another format": ({}, {"format": "ltdi.head"}, "format='ltdi.head', expected 'ltdi.task'"),
    "another version": ({}, {"format_version": "1"}, "not a task embedding"),
    "NaN": ({"tokens": torch.full((3, 515), np.nan)}, {}, "tensor 'tokens' of the task embedding holds NaN"),
    "huge": ({"base": torch.full((3, 257), 1e30)}, {}, "do not fit each other"),
    "a hint of another size": ({"hint": torch.zeros(3, 9)}, {}, "do not fit each other"),
    "one way": ({"base": torch.zeros(1, 257)}, {}, "do not fit each other"),
    "float64": ({"tokens": torch.zeros(3, 515).double()}, {}, "do not fit each other"),
    "counts that are floats": ({"counts": torch.ones(3)}, {}, "do not fit each other"),
    "counts below 0": ({"counts": torch.tensor([1, -1, 1])}, {}, "do not fit each other"),
    "noise from outside": ({"noise_row": torch.tensor([0, 1, 3])}, {}, "do not fit each other"),
    "fewer labels": ({}, {"labels": '["ka"]', "rows": '["ka"]'}, "do not fit each other"),
    "other rows": ({}, {"rows": '["ka", "ra", "x"]'}, "do not fit each other"),
    "a label twice": ({}, {"labels": '["a", "a", "b"]', "rows": '["a", "a", "b"]'}, "do not fit each other"),
    "labels of several types": ({}, {"labels": '[1, "a", null]', "rows": '[1, "a", null]'}, "do not fit each other"),
    "labels that are lists": ({}, {"labels": "[[], [1], [2]]", "rows": "[[], [1], [2]]"}, "do not fit each other"),
    "labels that are a number": ({}, {"labels": "5"}, "is incomplete"),
    "labels without end": ({}, {"rows": "[" * 100_000}, "is incomplete: JSON nested too deep"),
    "an accuracy that is none": ({}, {"baseline_support_accuracy": '{"a": 1}'}, "lies in 0..1 or is null"),
    "an accuracy beyond 1": ({}, {"baseline_support_accuracy": "NaN"}, "lies in 0..1 or is null"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_task_embedding_is_refused_with_the_reason(toy: Bundle, case: str) -> None:
    tensors, facts, reason = HOSTILE[case]
    task = toy.embed_task(toy.support(*uneven()))
    with pytest.raises(DamagedFile, match=reason):
        TaskEmbedding.from_bytes(task_bytes(task, tensors, **facts))


def test_bytes_that_are_no_task_embedding_are_refused(toy: Bundle) -> None:
    task = toy.embed_task(toy.support(*uneven()))
    incomplete = {name: tensor for name, tensor in task.tensors().items() if name != "counts"}
    for content in (b"", b"PK\x03\x04", task_bytes(task)[:-1], save(incomplete, task.metadata())):
        with pytest.raises(DamagedFile, match="the task embedding is"):
            TaskEmbedding.from_bytes(content)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_equals_the_cpu_to_1e_4(toy_folder: Path, images: Tensor, labels: list[str]) -> None:
    cpu, cuda = (ltdi.load_bundle(toy_folder, device=device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(cuda.embed(images), cpu.embed(images), atol=1e-4, rtol=1e-4)
    ours, theirs = (bundle.generate(images, labels, fallback="none") for bundle in (cpu, cuda))
    torch.testing.assert_close(theirs.layers[0].weight, ours.layers[0].weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.layers[0].bias, ours.layers[0].bias, atol=1e-4, rtol=1e-4)
