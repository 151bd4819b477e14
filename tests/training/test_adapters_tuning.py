"""Tuning by gradient descent on a tiny BERT, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ltdi.bodies.adapted import Tokens
from tests.ltdi.adapters.made import transformers, write_base
from training.adapters.encoded import EncodedTask, Part
from training.adapters.tuned import FEW, MANY, STEPS, chosen_rates, rows_of, run_file, tune_all
from training.adapters.tuning import (
    METHODS,
    TuneConfig,
    answers,
    inputs,
    optimisers,
    shuffled,
    take_step,
    tune,
    tuned_model,
)
from training.adapters.tuning_table import after, make_tuning_table, reached, read_targets, tuning_lines

RATES = {"full": 1e-3, "lora": 1e-2, "adalora": 1e-1, "fourierft": 1e-1}
CURVE = [
    {"step": step, "core_seconds": time, "seconds": 2 * time, "accuracy": accuracy}
    for step, time, accuracy in ((2, 1.1, 50.0), (9, 5.2, 64.0), (30, 17.0, 72.0), (60, 33.0, 70.0))
]


def a_part(rows: int, seed: int) -> Part:
    """Tokens of the tiny vocabulary; the class is a word that stands twice in each row. Every other row is two shorter."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, 8, dtype=torch.long)
    mask[1::2, -2:] = 0
    labels = torch.arange(rows) // 2 % 2
    ids = torch.randint(8, 24, (rows, 8), generator=draw)
    ids[:, 1:3] = (5 + labels)[:, None]
    return Part(Tokens(ids * mask, torch.zeros_like(ids), mask), labels)


def a_task(name: str = "sst2") -> EncodedTask:
    return EncodedTask(name, "sst2", ("a", "b"), False, a_part(1200, 1), a_part(40, 2), a_part(40, 3))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    transformers()
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    return write_base(tmp_path / "base")


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_change_what_the_method_learns_and_nothing_else(base: Path, method: str) -> None:
    config = TuneConfig(method, 2, RATES[method])
    model = tuned_model(base, 2, config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimiser, _ = optimisers(model, config)
    batches = shuffled(a_part(40, 1), config)
    for step in (1, 2):
        take_step(model, next(batches), optimiser, step)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert changed <= learned
    mark = {"full": "query.weight", "lora": "lora_B", "adalora": "lora_E", "fourierft": "fourierft_spectrum"}[method]
    assert {name for name in learned if mark in name} <= changed
    assert any("classifier" in name for name in changed)
    if method != "full":
        assert all("classifier" in name or "query" in name or "value" in name for name in learned)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_is_the_same_again(base: Path, method: str) -> None:
    config = TuneConfig(method, 60, RATES[method])
    said, again = (tune(base, 2, a_part(64, 1), a_part(40, 3), config) for _ in range(2))
    assert [point["step"] for point in said["curve"]] == [30, 60]
    assert said["curve"][-1]["accuracy"] > 90
    assert [point["accuracy"] for point in said["curve"]] == [point["accuracy"] for point in again["curve"]]
    assert said["curve"][0]["core_seconds"] < said["curve"][-1]["core_seconds"]


def test_adalora_ends_with_eight_ranks_in_the_mean(base: Path) -> None:
    config = TuneConfig("adalora", 20, 1e-2)
    model, ranks = tuned_model(base, 2, config), []
    optimiser, _ = optimisers(model, config)
    batches = shuffled(a_part(40, 1), config)
    for step in range(1, 21):
        take_step(model, next(batches), optimiser, step)
        ranks.append([int((weight != 0).sum()) for name, weight in model.named_parameters() if "lora_E" in name])
    assert ranks[0] == [12] * 4
    assert sum(ranks[-1]) == 8 * 4


def test_answers_are_those_of_each_row_alone(base: Path) -> None:
    model, part = tuned_model(base, 3, TuneConfig("lora", 2, 1e-3)).eval(), a_part(9, 1)
    with torch.no_grad():
        alone = torch.cat([model(**inputs(model, part.take(torch.tensor([i])))).logits for i in range(9)])
    found = answers(model, part)
    assert (found - alone).norm() < 0.03 * alone.norm()
    assert torch.corrcoef(torch.stack([found.flatten(), alone.flatten()]))[0, 1] > 0.999


def test_the_rate_rises_over_a_tenth_of_the_steps_and_falls_to_0(base: Path) -> None:
    config = TuneConfig("lora", 40, 1e-2, head_rate=1e-3)
    optimiser, schedule = optimisers(tuned_model(base, 2, config), config)
    rates = []
    for _ in range(40):
        rates.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.step()
    assert rates[0] == pytest.approx([1e-2 / 4, 1e-3 / 4])
    assert max(rates) == rates[3] == pytest.approx([1e-2, 1e-3])
    assert optimiser.param_groups[0]["lr"] == 0


def test_batches_bring_each_row_once_before_any_comes_again() -> None:
    part = Part(a_part(32, 1).tokens, torch.arange(32))
    batches = shuffled(part, TuneConfig("full", 4, 1e-3))
    seen = [torch.cat([next(batches).labels, next(batches).labels]).tolist() for _ in range(2)]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(32))
    assert seen[0] != seen[1]


def test_few_rows_are_the_support_set_of_all_methods_and_many_are_a_thousand() -> None:
    task = a_task()
    assert torch.equal(rows_of(task, FEW, 1).tokens.ids, task.train.take(task.draw(1, 16)).tokens.ids)
    many = rows_of(task, MANY, 0)
    assert len(many) == 1000
    assert torch.equal(many.tokens.ids, rows_of(task, MANY, 0).tokens.ids)
    assert not torch.equal(many.tokens.ids, rows_of(task, MANY, 1).tokens.ids)


def test_runs_that_are_kept_are_not_made_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, FEW, 2)
    lines: list[str] = []
    tune_all(base, [a_task()], FEW, [0], RATES, tmp_path, lines.append)
    path = run_file(tmp_path, "sst2", "lora", FEW, 0)
    kept = path.read_text(encoding="utf-8")
    tune_all(base, [a_task()], FEW, [0, 1], RATES, tmp_path, lines.append)
    assert [line.split(":")[0] for line in lines] == [f"sst2 few {seed} {method}" for seed in (0, 1) for method in METHODS]
    assert path.read_text(encoding="utf-8") == kept


def test_as_good_is_the_first_point_that_is_not_below() -> None:
    assert reached(CURVE, 64.0) == 5.2
    assert reached(CURVE, 70.5) == 17.0
    assert reached(CURVE, 72.5) is None


def test_after_a_time_is_the_first_point_that_is_not_before_it() -> None:
    assert [after(CURVE, seconds) for seconds in (0.0, 1.1, 1.2, 16.0, 99.0)] == [50.0, 50.0, 64.0, 72.0, 70.0]


def write_runs(out: Path) -> None:
    """Two draws of SST-2 by all methods, one of MRPC, one of TREC that a method is not done with, one of MR at other rates."""
    for task, seed, methods in (("sst2", 0, 4), ("sst2", 1, 4), ("mrpc", 0, 4), ("trec", 0, 3), ("mr", 0, 4)):
        for i, method in enumerate(list(METHODS)[:methods]):
            path = run_file(out, task, method, FEW, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            curve = [point | {"accuracy": point["accuracy"] + i + 2 * seed} for point in CURVE]
            rate = RATES[method] * (2 if task == "mr" else 1)
            config = {"seed": seed, "rate": rate, "steps": STEPS[FEW]}
            path.write_text(json.dumps({"config": config, "curve": curve}), encoding="utf-8")


def test_the_table_takes_draws_that_all_methods_have(tmp_path: Path) -> None:
    write_runs(tmp_path)
    rates, results = tmp_path / "rates.json", tmp_path / "adapters.json"
    rates.write_text(json.dumps({FEW: {"methods": {method: {"rate": rate} for method, rate in RATES.items()}}}), encoding="utf-8")
    results.write_text(json.dumps({"accuracy": {"generated": {"mean": 71.0, "sst2": 73.5}}}), encoding="utf-8")
    assert chosen_rates(rates, FEW) == RATES
    table = make_tuning_table(tmp_path, rates, read_targets(results))
    full, lora = table[FEW]["full"], table[FEW]["lora"]
    assert list(full) == ["sst2", "mrpc", "mean"]
    assert full["sst2"]["draws"] == [70.0, 72.0]
    assert full["sst2"]["accuracy"] == 71.0
    assert full["sst2"]["after"] == {"1": 51.0, "5": 65.0, "20": 71.0}
    assert full["sst2"]["reached"] == [None, 17.0]
    assert "reached" not in full["mrpc"]
    assert full["mean"]["accuracy"] == 70.5
    assert full["mean"]["reached"] == {"runs": 1, "of": 2, "core_seconds": 17.0}
    assert lora["mean"]["accuracy"] == 71.5
    assert lora["mean"]["accuracy_beside_target"] == 72.0
    lines = tuning_lines(table)
    assert lines[2] == "| sst2 | 2 | 73.5 | 71.0 | 72.0 | 73.0 | 74.0 |"
    assert lines[5] == "| mean of tasks that have the target | | 73.5 | 71.0 | 72.0 | 73.0 | 74.0 |"
    assert lines[-4] == "| full | 0.001 | 50.5 | 64.5 | 70.5 | 70.5 | 33.0 | 1 of 2 | 17.0 |"
    assert MANY not in table


def test_without_results_of_adapters_no_task_has_a_target(tmp_path: Path) -> None:
    assert read_targets(tmp_path / "none.json") == {}


def test_a_run_of_other_settings_is_made_anew(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, FEW, 2)
    for rate in (1e-2, 2e-2):
        tune_all(base, [a_task()], FEW, [0], RATES | {"lora": rate}, tmp_path, len)
        said = json.loads(run_file(tmp_path, "sst2", "lora", FEW, 0).read_text(encoding="utf-8"))
        assert said["config"]["rate"] == rate
