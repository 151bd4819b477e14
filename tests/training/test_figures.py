"""The paper's figures: every one runs, what must hold of their parts does, and the page is that of the numbers kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ltdi import baselines
from ltdi.bundle import load_bundle
from ltdi.errors import DataMissing, InvalidInput
from ltdi.schedule import Schedule, ScheduleConfig
from training.figures.commands import figure
from training.figures.curvature import descend, exact_optimum, largest_eigenvalue, smoothness
from training.figures.memorisation import nearest
from training.figures.models import noise_of, visited_state
from training.figures.page import page
from training.figures.record import VERDICTS, difference, interval, sign
from training.figures.registry import FIGURES
from training.figures.rivals import _as_head, _cosine, adapt
from training.figures.rows import Rows, RowsConfig
from training.figures.setting import Setting
from training.figures.tasks import Lab, loss_of

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "results" / "figures"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(Path("none"), tmp_path_factory.mktemp("runs") / "figures-quick", (0, 1), quick=True)


@pytest.fixture(scope="module")
def lab(setting: Setting) -> Lab:
    return setting.lab()


@pytest.fixture(scope="module")
def out(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every figure of a quick run, and its page."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("out")
    assert figure(["--all", "--quick", "--out", str(folder), "--page", str(folder / "page.md"), "--runs", str(setting.kept.parent)]) == 0
    return folder


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, float):
        yield value


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_leaves_its_numbers_with_seeds_commit_and_budget_and_a_plot(name: str, out: Path) -> None:
    record = json.loads((out / f"{name}.json").read_text())
    assert record["figure"] == name and record["quick"] is True and record["commit"]
    own = name != "table4"  # which reads what others measured
    assert record["seeds"] == ([0, 1] if own else []) and (not own or record["budget"]["model"]["batches"] > 0)
    assert record["seconds"] >= 0
    found = list(numbers(record["values"]))
    assert len(found) > 5 and all(map(math.isfinite, found))
    assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert all(claim.verdict in VERDICTS for claim in FIGURES[name].claims(record["values"]))


def test_a_generator_that_is_kept_is_not_trained_again(setting: Setting, lab: Lab, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (setting.kept / "models").iterdir()}
    assert figure(["figure4", "--quick", "--out", str(out / "again"), "--runs", str(setting.kept.parent)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (setting.kept / "models").iterdir()} == before
    first, again = (json.loads((folder / "figure4.json").read_text())["values"] for folder in (out, out / "again"))
    assert first == again


def test_no_task_breaks_the_bound_with_its_factor_mended(out: Path) -> None:
    rows = json.loads((out / "curvature.json").read_text())["values"]["bound"]["by_epochs"]
    assert [row["violations"] for row in rows] == [0] * len(rows)


def test_the_page_of_the_repository_is_that_of_its_numbers() -> None:
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == page(KEPT)


def test_figures_are_listed_and_an_unknown_one_names_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert figure(["--list"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(FIGURES)
    with pytest.raises(InvalidInput, match="did you mean 'figure3'"):
        figure(["figur3", "--runs", str(tmp_path)])
    with pytest.raises(InvalidInput, match="name a figure"):
        figure([])


def test_all_goes_on_where_data_is_missing_and_one_figure_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md"), "--runs", str(tmp_path / "runs")]
    assert figure(["--all", "--seeds", "1", *where]) == 0
    said = capsys.readouterr().out
    assert "table7-gpu: skipped, its bodies take a GPU" in said
    assert "table1: skipped, " in said and "table1-mini: skipped, no mini-ImageNet at" in said and "table4: " in said
    assert (tmp_path / "page.md").exists()
    with pytest.raises(DataMissing):
        figure(["table1-mini", *where])


def test_a_figure_that_was_not_made_stands_on_the_page_as_not_measured(tmp_path: Path) -> None:
    assert page(tmp_path).count("Not measured yet") == len(FIGURES)


def test_the_optimum_is_one_point_wherever_a_task_starts(setting: Setting, lab: Lab) -> None:
    other = setting.lab(start="shared", steps=150)
    own, shared = (exact_optimum(one.config, one.measured("val")) for one in (lab, other))
    assert not torch.allclose(lab.measured("val").path[0], other.measured("val").path[0], atol=0.1)
    torch.testing.assert_close(own, shared, atol=2e-3, rtol=0)


def test_a_trajectory_runs_from_the_optimum_to_the_start(lab: Lab) -> None:
    tasks = lab.measured("val")
    for m in (1, 3, 5):
        trajectory = tasks.trajectory(m)
        assert trajectory.shape[1] == m + 1
        assert torch.equal(trajectory[:, 0], tasks.optimum) and torch.equal(trajectory[:, -1], tasks.path[0])


def test_support_and_queries_share_no_drawing(lab: Lab) -> None:
    tasks = lab.measured("val")
    assert float(torch.cdist(tasks.support.flatten(0, 1), tasks.query.flatten(0, 1)).min()) > 1e-6


def test_targets_of_errors_do_not_depend_on_how_training_heads_were_prepared(setting: Setting, lab: Lab) -> None:
    changed = setting.lab(sam_radius=0.5, noise=0.3)
    assert torch.equal(changed.measured("val").optimum, lab.measured("val").optimum)
    assert not torch.equal(changed.train.optimum, lab.train.optimum)


def test_the_largest_eigenvalue_is_that_of_the_whole_hessian(lab: Lab) -> None:
    config, tasks = lab.config, lab.tasks("val", 2)
    losses = loss_of(config, tasks)
    shape = tasks.optimum.shape[1:]

    def first(flat: torch.Tensor) -> torch.Tensor:
        return losses(torch.stack([flat.view(shape), tasks.optimum[1]]))[0]

    whole = torch.autograd.functional.hessian(first, tasks.optimum[0].flatten())
    found = largest_eigenvalue(losses, tasks.optimum, iterations=300)
    assert float(found[0]) == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-3)


def test_descent_of_rate_one_over_l_obeys_the_first_lemma(lab: Lab) -> None:
    tasks, mu = lab.measured("val"), lab.config.weight_decay
    losses, smooth = loss_of(lab.config, tasks), smoothness(lab.config, tasks)
    best, start = losses(exact_optimum(lab.config, tasks)), losses(tasks.path[0])
    for steps in (1, 10, 40):
        left = losses(descend(losses, tasks.path[0], smooth, steps)) - best
        assert bool((left <= (1 - mu / smooth) ** steps * (start - best) + 1e-5).all())


def test_a_permuted_training_head_is_its_own_nearest(lab: Lab) -> None:
    known = lab.codec.encode(lab.train.optimum)
    distance, found = nearest(known[:7, torch.tensor([2, 0, 4, 1, 3])], known)
    assert float(distance.max()) < 1e-6
    torch.testing.assert_close(found, known[:7, torch.tensor([2, 0, 4, 1, 3])])


def test_a_visited_state_is_the_waypoint_and_its_noise() -> None:
    schedule, chance = Schedule(ScheduleConfig(segments=3)), torch.Generator().manual_seed(0)
    trajectory, x = torch.randn(20, 4, 6, generator=chance), torch.randn(20, 6, generator=chance)
    t = torch.arange(1, 21)
    state = visited_state(schedule, trajectory, x, t)
    kept = schedule.alpha_bar_from(schedule.start_of_step[t], t).float().unsqueeze(1)
    torch.testing.assert_close(kept.sqrt() * state.waypoint + (1 - kept).sqrt() * state.noise, x)


def test_permuting_the_classes_permutes_the_denoiser_s_answer() -> None:
    torch.manual_seed(0)
    network = Rows(RowsConfig(width=16), Schedule(ScheduleConfig()), 4, 6, 7)
    torch.nn.init.normal_(network.answer.weight)
    x, task, order = torch.randn(3, 4, 7), torch.randn(3, 4, 6), torch.tensor([2, 0, 3, 1])
    answer = network(x.flatten(1), 9, task.flatten(1)).view(3, 4, 7)
    moved = network(x[:, order].flatten(1), 9, task[:, order].flatten(1)).view(3, 4, 7)
    torch.testing.assert_close(moved, answer[:, order])


def test_every_generator_starts_from_the_same_noise(setting: Setting, lab: Lab) -> None:
    tasks = lab.measured("test")
    assert torch.equal(noise_of(tasks, 0), noise_of(tasks, 0)) and not torch.equal(noise_of(tasks, 0), noise_of(tasks, 1))
    first, again = (setting.model(lab, 3).generate(lab, tasks).heads for _ in range(2))
    assert torch.equal(first, again)


def test_cosine_means_are_a_linear_head(lab: Lab) -> None:
    tasks, matrix = lab.measured("val"), torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    query = tasks.query.flatten(1, 2)
    answers = baselines.logits(_as_head(matrix, tasks.support), query)
    assert torch.equal(answers.argmax(-1), _cosine(matrix, tasks.support, query).argmax(-1))


def test_adapting_a_head_lowers_the_loss_of_its_examples(lab: Lab) -> None:
    tasks = lab.measured("val")
    config = replace(lab.config, weight_decay=0.0)
    losses = loss_of(config, replace(tasks, items=tasks.support))
    start = torch.zeros_like(tasks.optimum[0])
    assert bool((losses(adapt(start, tasks.support, 0.5, 5)) < losses(start.expand_as(tasks.optimum))).all())


def test_an_interval_is_students_and_differences_are_paired() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["half"] == pytest.approx(4.303 / math.sqrt(3))
    apart = difference(interval([1.1, 2.1, 3.1]), interval([1.0, 2.0, 3.0]))
    assert apart["mean"] == pytest.approx(0.1) and sign(apart) == 1
    assert sign(interval([-1.0, 1.0, 0.2])) == 0 and sign(interval([1.0])) == 0


def test_the_laboratory_s_body_is_the_shipped_one(setting: Setting, lab: Lab) -> None:
    shipped = load_bundle("omniglot", device="cpu").body.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in lab._bodies.body("omniglot", "conv4").state_dict().items())
