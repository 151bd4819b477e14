"""Meta-training of the geometry generator on made sets, and the table that measures it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ltdi.denoisers.geometry import GeometryConfig
from ltdi.experts import EXPERTS, logits
from ltdi.generator import GeometryGenerator
from ltdi.schedule import ScheduleConfig
from tests.training.made import made_set
from training.geometry import GeometryTraining, describe_bank, task_loss, train_geometry
from training.history_table import measure_history
from training.tasks import Mixture, draw_bank, whole_task
from training.text_comparators import LOGISTIC, NEEDS, comparators, ridge
from training.text_report import markdown_report, plot
from training.text_table import (
    Resampling,
    answer_set,
    area,
    base_statistics,
    calibration_error,
    choose,
    other_answers,
    outside_scores,
    table,
)

SETS = [made_set(f"set{i}", classes=5 + i, items=24, spread=1.2, seed=i) for i in range(3)]
SHORT = GeometryTraining(tasks=40, mixing_steps=40, mixing_batch=8, chain_steps=6, chain_batch=2)


@pytest.fixture(scope="module")
def bank():
    return describe_bank(draw_bank(SETS, [1, 1, 1], 40, Mixture(pools=(10, 40)), seed=0))


@pytest.fixture(scope="module")
def trained(bank) -> GeometryGenerator:
    return train_geometry(bank, GeometryConfig(), ScheduleConfig(), SHORT)


def loss_of(generator: GeometryGenerator, bank) -> float:
    with torch.no_grad():
        return float(np.mean([
            float(task_loss(logits(generator.generate_one(b.task, torch.zeros(1, *b.task.base.shape)), b.queries), b.targets))
            / b.reference for b in bank
        ]))  # fmt: skip


def test_training_lowers_the_loss(bank, trained: GeometryGenerator) -> None:
    torch.manual_seed(0)
    untrained = GeometryGenerator(ScheduleConfig(), GeometryConfig()).eval()
    assert loss_of(trained, bank) < loss_of(untrained, bank)


def test_training_is_reproducible_and_seeds_differ(bank, trained: GeometryGenerator) -> None:
    again = train_geometry(bank, GeometryConfig(), ScheduleConfig(), SHORT)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trained.parameters(), strict=True))
    other = train_geometry(bank, GeometryConfig(), ScheduleConfig(), GeometryTraining(**{**SHORT.__dict__, "seed": 1}))
    assert not torch.equal(other.denoiser.by_task.weight, trained.denoiser.by_task.weight)


def test_the_curve_is_written(bank, tmp_path: Path) -> None:
    train_geometry(bank, GeometryConfig(), ScheduleConfig(), SHORT, tmp_path / "curve.jsonl")
    assert "chain_loss" in (tmp_path / "curve.jsonl").read_text() or "mixing_loss" in (tmp_path / "curve.jsonl").read_text()


def test_comparators_use_what_they_say() -> None:
    task = whole_task(SETS[0], 2, 0)
    found = {one.name: one for one in comparators(task, base_statistics(SETS, "set0"))}
    assert {one.needs for one in found.values()} == set(NEEDS.values())
    assert all(torch.isfinite(one.head).all() and one.head.shape == (5, 17) for one in found.values())
    assert LOGISTIC in found and "ridge 1" in found and "LDA, shrunk 0.9" in found
    no_shots = {one.name for one in comparators(whole_task(SETS[0], 0, 0), None)}
    assert "name-means 1" in no_shots and not any(name.startswith("class means") for name in no_shots)


def test_ridge_is_scikit_learns() -> None:
    from sklearn.linear_model import Ridge

    task = whole_task(SETS[1], 3, 0)
    targets = torch.nn.functional.one_hot(task.class_index, 6).float()
    reference = Ridge(0.5).fit(task.examples.numpy(), targets.numpy())
    own = logits(ridge(task.examples, targets, 0.5), task.queries)
    assert np.allclose(own.numpy(), reference.predict(task.queries.numpy()), atol=1e-4)


def test_the_whole_table(trained: GeometryGenerator, tmp_path: Path) -> None:
    cells = {}
    for data in SETS:
        cells |= answer_set(data, {0: trained, 1: trained}, base_statistics(SETS, data.name), range(3), shots=(0, 1, 5))
    assert ("set0", 0, "names", False) in cells and ("set0", 0, "names", True) in cells
    assert ("set0", 1, "examples", True) not in cells
    result = table(cells, seeds=3)
    assert len(result["cells"]) == len(cells)
    row = next(r for r in result["cells"] if (r["set"], r["shots"], r["information"], r["raw_labels"]) == ("set1", 5, "all", False))
    assert row["generated"] > 60 and row["ways"] == 6 and row["examples"] == 30
    right = np.stack(cells["set1", 5, "all", False].right[row["closed_form"]["name"]])
    expected = row["generated"] - 100 * right.mean()
    assert row["difference_closed_form"]["mean"] == pytest.approx(expected, abs=0.02)
    low, high = row["difference_closed_form"]["low"], row["difference_closed_form"]["high"]
    assert low <= expected <= high
    result |= {"config": "made", "seeds": 3, "own_history": {}, "none_of_these_auroc": {}, "commit": "x",
               "controls_one_shot_all": {"set0": other_answers(whole_task(SETS[0], 1, 0), trained, 0)}}  # fmt: skip
    report = markdown_report(result)
    assert "set1 (6)" in report and "mean over cells" in report
    plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_closed_form_is_chosen_on_other_groups_alone(trained: GeometryGenerator) -> None:
    cells = {}
    for data in SETS:
        cells |= answer_set(data, {0: trained}, None, range(2), raw_too=False, shots=(1,))
    key = ("set0", 1, "examples", False)
    chosen = choose(cells, key, strict=False)
    for method in cells[key].right:
        if method != chosen:
            cells[key].right[method] = [np.ones_like(r) for r in cells[key].right[method]]
    assert choose(cells, key, strict=False) == chosen


def test_controls_fall_to_chance(trained: GeometryGenerator) -> None:
    controls = other_answers(whole_task(SETS[2], 5, 0), trained, 0)
    assert controls["generated"] > 70
    assert controls["another task's support"] < 35
    assert controls["generated"] > controls["shuffled labels"] + 30


def test_outside_items_are_scored(trained: GeometryGenerator) -> None:
    scores = outside_scores(SETS[0], {0: trained}, range(2), shots=3)
    assert "logistic: max probability" in scores and "generated 0, all: energy" in scores
    assert all(0 <= value <= 1 for value in scores.values())


def test_area_under_the_curve_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    chance = np.random.default_rng(0)
    positive, negative = chance.integers(0, 9, 40), chance.integers(0, 7, 60)
    expected = roc_auc_score(np.r_[np.ones(40), np.zeros(60)], np.r_[positive, negative])
    assert area(positive.astype(float), negative.astype(float)) == pytest.approx(expected)


def test_calibration_error_of_the_sure_and_wrong_is_one() -> None:
    answers = 50.0 * torch.eye(3)
    assert calibration_error(answers, torch.tensor([0, 1, 2])) == pytest.approx(0, abs=1e-6)
    assert calibration_error(answers, torch.tensor([1, 2, 0])) == pytest.approx(1, abs=1e-6)
    assert calibration_error(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])) == pytest.approx(0, abs=1e-6)


def test_intervals_cover_what_they_should() -> None:
    chance = np.random.default_rng(1)
    covered = 0
    for trial in range(40):
        resampling = Resampling(8)
        differences = 0.1 + 0.05 * chance.standard_normal((8, 1)) + 0.2 * chance.standard_normal((1, 60)) + 0.3 * chance.standard_normal((8, 60))
        estimate = resampling.estimate(100 * float(differences.mean()), resampling.means(f"t{trial}", differences))
        covered += estimate.low <= 10 <= estimate.high
    assert covered >= 33


def test_own_history_is_measured_on_new_classes(trained: GeometryGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.history_table as history

    monkeypatch.setattr(history, "PAST", 14)
    found = measure_history(made_set("past", classes=20, items=16, seed=5), {0: trained}, supports=2)
    assert set(found) >= {"0 examples, names", "1 examples, names", "0 examples, names, raw labels"}
    assert all(row["difference"]["low"] <= row["difference"]["mean"] <= row["difference"]["high"] for row in found.values())


def test_experts_of_the_bank_are_all_there(bank) -> None:
    assert all(one.task.experts.shape[0] == len(EXPERTS) for one in bank)
