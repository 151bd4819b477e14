"""Heads for a domain that was left out: images, tasks, closed forms, the estimate, and the whole way on made images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltdi import baselines
from ltdi.cli import main
from ltdi.codec import Standardiser
from training.classify import ClassifyConfig
from training.configs.domains import DOMAIN_EXPERIMENTS, PACS, DomainTraining
from training.domains import choices
from training.domains.choices import example_forms, first_forms
from training.domains.comparators import Rivals
from training.domains.episodes import DomainBank, Known, Problem, Split, draw_known
from training.domains.generator import Elsewhere, KnownClassGenerator, generate_known
from training.domains.images import bodies_needed, load_domains, spread_over
from training.domains.logistic import fit_logistic
from training.domains.meta_train import train_generator
from training.domains.modes import fitted
from training.domains.table import form_accuracies
from training.episodes import Protocol
from training.strange import VIRTUAL_DOMAINS, edges, estrange

SIZE, CLASSES = 16, 6
SMALL = replace(
    PACS, name="small", body=ClassifyConfig(widths=(8, 8, 8, SIZE), image_size=16, crop_size=14, steps=30, batch=12, estranged=0.5),
    training_images=8, most=21, changed=4, training=DomainTraining(steps=3, tasks=2, queries=5), episodes=4, validation_episodes=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four domains of six classes, 21 images each but one."""
    root, chance = tmp_path_factory.mktemp("pacs"), np.random.default_rng(0)
    for shade, domain in enumerate(("art", "cartoon", "photo", "sketch")):
        for place in range(CLASSES):
            own = root / domain / f"c{place}"
            own.mkdir(parents=True)
            for number in range(20 if (shade, place) == (0, 0) else 21):
                pixels = chance.integers(0, 90, (16, 16, 3)) + 40 * shade
                pixels[2 * place : 2 * place + 4] += 80
                Image.fromarray(pixels.astype(np.uint8)).save(own / f"{number}.png")
    return root


def made_problem(name: str, seed: int, spread: float = 2.0) -> Problem:
    """Classes at fixed places, seen by two domains and, moved, by a third."""
    places = 2 * torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(7))
    chance = torch.Generator().manual_seed(seed)

    def domain(count: int) -> list[torch.Tensor]:
        moved = places * 0.7 + torch.randn(SIZE, generator=chance)
        return [own + spread * torch.randn(count + 3 * n, 3, SIZE, generator=chance) for n, own in enumerate(moved)]

    known = Known.of([[own[:, 0] for own in domain(20)] for _ in range(2)], 5)
    head = torch.cat([places, torch.zeros(CLASSES, 1)], dim=1)
    virtual = 0.1 * torch.randn(4, CLASSES, SIZE, generator=chance)
    return Problem(name, DomainBank.of(domain(25)), known, head, virtual)


def made_split() -> Split:
    return Split("d", [made_problem(name, seed) for seed, name in enumerate("abc")])


def test_every_image_is_kept_and_bodies_see_each_domain_as_often(folder: Path) -> None:
    data = load_domains(folder, 16)
    assert data.domains == ("art", "cartoon", "photo", "sketch") and data.classes == tuple(f"c{n}" for n in range(CLASSES))
    assert [len(own) for own in data.images["art"]] == [20, 21, 21, 21, 21, 21]
    images = data.for_training(("art", "photo"), 30)
    assert images.images.shape == (CLASSES, 60, 3, 16, 16)
    assert torch.equal(images.images[0, 20], images.images[0, 0]) and torch.equal(images.images[1, 0], data.images["art"][1][0])
    assert spread_over(10, 5).tolist() == [0, 2, 4, 6, 8]


def test_no_body_of_an_inner_problem_has_seen_its_domain() -> None:
    needed = bodies_needed(("art", "cartoon", "photo", "sketch"))
    assert len(needed) == 10 and all(len(own) == 3 for own in needed[:4]) and ("art", "sketch") in needed[4:]


def test_an_inner_problem_is_measured_by_what_learns_from_the_others() -> None:
    inner = made_split().without("b")
    assert inner.left == "b" and [one.name for one in inner.lessons] == ["a", "c"]


def test_tasks_hold_no_padding_and_no_example_among_the_queries() -> None:
    counts = [20, 25, 20, 22, 20, 21]
    bank = DomainBank.of([torch.arange(1.0, n + 1).view(n, 1, 1) + 100 * c for c, n in enumerate(counts)])
    for episodes in draw_known(bank, Protocol(5, 5, 15, episodes=30)):
        drawn = torch.cat([episodes.support, episodes.query], dim=2)[..., 0]
        assert torch.equal(((drawn - 1) // 100).long(), episodes.classes.unsqueeze(2).expand_as(drawn))
        assert bool((drawn.sort(2).values.diff(dim=2) > 0).all())
        assert bool((drawn - 100 * episodes.classes.unsqueeze(2) <= torch.tensor(counts)[episodes.classes].unsqueeze(2)).all())


def test_known_means_go_along_a_mode_as_far_as_the_examples_say() -> None:
    chance = torch.Generator().manual_seed(0)
    there, modes = torch.randn(2, 5, SIZE, generator=chance), torch.randn(2, 3, 5, SIZE, generator=chance)
    there, modes = there - there.mean(1, keepdim=True), modes - modes.mean(2, keepdim=True)
    here = there + 0.8 * modes[:, 1] - 0.4 * modes[:, 2]
    sure = fitted(there, here, modes, 1e4 * modes, 1)
    assert torch.allclose(sure, here, atol=1e-2)
    assert torch.allclose(fitted(there, here, modes, 1e-6 * modes, 1), there, atol=1e-3)


def test_logistic_regression_starts_from_a_head_and_stays_near_it_under_a_strong_penalty() -> None:
    support = torch.randn(3, 5, 4, SIZE, generator=torch.Generator().manual_seed(1))
    own = fit_logistic(support, torch.ones(4), 1.0, torch.zeros(1), 400)
    usual = baselines.logistic_regression(support, 1.0, 400)
    queries = torch.randn(3, 30, SIZE)
    assert torch.allclose(baselines.logits(own, queries).softmax(-1), baselines.logits(usual, queries).softmax(-1), atol=1e-3)
    start = torch.randn(3, 5, SIZE + 1)
    near = fit_logistic(support, torch.ones(4), 1e-5, start, 50)
    assert torch.allclose(near[..., :-1], start[..., :-1], atol=1e-2)
    assert torch.allclose(  # an example that counts twice is one that is there twice
        fit_logistic(support, torch.full((4,), 2.0), 1.0, torch.zeros(1), 400),
        fit_logistic(support.repeat(1, 1, 2, 1), torch.ones(8), 1.0, torch.zeros(1), 400), atol=1e-3,
    )  # fmt: skip


def test_every_closed_form_is_far_above_chance_where_classes_lie_apart() -> None:
    rivals = Rivals(made_problem("a", 0, spread=0.3))
    forms = first_forms(SIZE)
    assert len({form.name for form in forms}) == len(forms)
    measured = form_accuracies(forms, rivals, draw_known(rivals.problem.bank, Protocol(5, 2, episodes=3)))
    assert all(values.mean() > 0.6 for values in measured.values()), {name: float(v.mean()) for name, v in measured.items()}


def test_an_untrained_generator_gives_its_estimate_and_a_trained_one_is_made_again_by_its_seed() -> None:
    split, problem = made_split(), made_problem("d", 9)
    experiment = replace(SMALL, body=replace(SMALL.body, widths=(8, 8, 8, SIZE)))
    elsewhere = Elsewhere.of(problem, 0.2)
    fresh = KnownClassGenerator(experiment, Standardiser(torch.zeros(SIZE + 1), torch.ones(SIZE + 1))).eval()
    episodes = next(draw_known(problem.bank, Protocol(5, 1, 5, episodes=8)))
    with torch.inference_mode():
        heads, tasks, _ = generate_known(fresh, episodes, elsewhere, torch.randn(8, 5, SIZE + 1))
        assert torch.allclose(heads, tasks.base + tasks.hint, atol=1e-4) and tasks.hint.abs().max() > 1e-3
    first, second = (train_generator(experiment, split, 1).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = train_generator(experiment, split, 2).state_dict()
    assert not torch.equal(first["denoiser.read_task.weight"], other["denoiser.read_task.weight"])
    assert not torch.equal(first["moved"], fresh.moved)


def test_changed_images_stay_images() -> None:
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, change in VIRTUAL_DOMAINS.items():
        changed = change(images)
        assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1, name
        assert not torch.allclose(changed, images), name
    assert torch.equal(edges(torch.full((1, 3, 8, 8), 0.3)), torch.ones(1, 3, 8, 8))
    same = estrange(images, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(same, images)
    assert not any(torch.equal(a, b) for a, b in zip(estrange(images, 1.0, torch.Generator().manual_seed(0)), images, strict=True))


def test_a_small_config_goes_the_whole_way(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(DOMAIN_EXPERIMENTS, "small", SMALL)
    monkeypatch.setattr(choices, "METRICS", choices.METRICS[:2])
    monkeypatch.setattr(choices, "MOVED", choices.MOVED[:2])
    monkeypatch.setattr(choices, "example_forms", lambda size: example_forms(size)[:3])
    common = ["--config", "small", "--data", str(folder), "--runs", str(tmp_path / "runs"), "--threads", "1"]
    assert main(["evaluate", *common]) == 2 and "ltdi prepare --config small" in capsys.readouterr().err
    assert main(["prepare", *common]) == 0
    assert main(["evaluate", *common]) == 2 and "ltdi meta-train --config small" in capsys.readouterr().err
    assert main(["meta-train", *common]) == 0 and main(["meta-train", *common, "--seed", "1"]) == 0
    assert main(["export", *common]) == 2
    assert main(["evaluate", *common, "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "small.json").read_text())
    assert [(row["domain"], row["shots"]) for row in result["rows"][:2]] == [("art", 1), ("art", 5)] and len(result["rows"]) == 8
    row = result["rows"][0]
    assert set(row["difference_by_seed"]) == {"0", "1"} and row["closed_form"] == max(row["validation"], key=row["validation"].get)
    of_rows = [one["difference_by_seed"]["1"]["mean"] for one in result["rows"] if one["shots"] == 5]
    assert result["mean_difference"]["5"]["1"]["mean"] == pytest.approx(sum(of_rows) / 4)
    assert "| **mean** | 5 |" in (tmp_path / "small.md").read_text()
