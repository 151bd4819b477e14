"""The table of adapters and the card that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

from training.adapters.card import card_of
from training.adapters.table import lines, make_table, read_results
from training.cards import WHY_DEFAULTS

HEADS = ("class means", "ridge 1")
METHODS = {
    "frozen, mean pooled": 60, "frozen, mean pooled, unit length": 62, "default adapter": 58, "multi-task": 64, "mean adapter": 61,
}  # fmt: skip


def write_results(folder: Path) -> None:
    """Two tasks of different folds; on the first every method is ten points better."""
    for name, more in (("sst2", 10), ("mr", 0)):
        def rows(value: float, more: int = more) -> list[dict]:
            return [{"class means": value + more, "ridge 1": value + more - 1} for _ in range(3)]

        (folder / f"{name}.baselines.json").write_text(json.dumps({title: rows(value) for title, value in METHODS.items()}))
        made = {
            "generated": [70.0 + more] * 3, "generated, names hidden": [69.0 + more] * 3, "generated, closed form": rows(68),
            "generated, names hidden, closed form": rows(67), "retrieved": rows(66), "condition of another task": rows(55),
        }  # fmt: skip
        (folder / f"{name}.generated.json").write_text(json.dumps(made))
        for seed in range(3):
            (folder / f"{name}.picked{seed}.json").write_text(json.dumps({"picked": rows(65)[0], "chosen": "x"}))
            (folder / f"{name}.pick{seed}.json").write_text(json.dumps({"chosen": "x"}))


def test_a_closed_form_is_chosen_on_other_folds_and_differences_are_paired(tmp_path: Path) -> None:
    write_results(tmp_path)
    table = make_table(read_results(tmp_path))
    assert table["accuracy"]["frozen body"] == {"mean": 67.0, "sst2": 72.0, "mr": 62.0}
    assert table["accuracy"]["generated"]["mean"] == 75.0
    assert table["less"]["generated"]["picked training LoRA"] == {"mean": 5.0, "interval": 0.0, "above": 2, "tasks": 2}
    assert "names hidden" not in table["less"]["names hidden"]
    assert lines(table)[2].startswith("| mean |  | 67.0 |")


def test_a_task_that_is_not_through_is_left_out(tmp_path: Path) -> None:
    write_results(tmp_path)
    (tmp_path / "mr.generated.json").unlink()
    assert list(read_results(tmp_path)) == ["sst2"]


def test_the_card_says_the_table_and_what_lists_of_bundles_read(tmp_path: Path) -> None:
    write_results(tmp_path)
    card = card_of("made", "0" * 64, "org/base", 22, make_table(read_results(tmp_path)))
    assert "| picked training LoRA | 70.0 | +5.0 ± 0.0, ahead on 2 of 2 |" in card["text"] and card["text"].endswith(WHY_DEFAULTS)
    said = next(iter(card["accuracy"].values()))
    assert (said["generated"]["mean"], said["closed_form"]["mean"], said["difference"]["mean"]) == (75.0, 67.0, 8.0)
