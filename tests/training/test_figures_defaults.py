"""The section on defaults: what it says of the bundles is theirs, and what it says of a row follows the row's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltdi.schedule import ScheduleConfig
from training.figures.defaults import ADAPTERS, COLUMNS, IMAGES, TEXTS, WAYS, defaults
from training.figures.record import interval

ROOT = Path(__file__).parents[2]
AGAINST, NOTHING, FOR = WAYS[-1], WAYS[0], WAYS[1]


def found(error: float, accuracy: float = 90.0) -> dict[str, Any]:
    return {"error": interval([error, error + 0.001]), "accuracy": interval([accuracy, accuracy])}


def said(name: str, row: str, values: dict[str, Any]) -> str:
    lines = [line for line in defaults({name: {"values": values}}) if line.startswith(f"| {row}")]
    assert len(lines) == 1
    return lines[0]


def bundle_rows() -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in defaults({}) if line.startswith("| `")]
    return {row[0].strip("`"): row for row in rows}


def test_every_bundle_that_ships_has_a_row_of_its_own_schedule() -> None:
    rows = bundle_rows()
    assert set(rows) == {*IMAGES, *TEXTS, ADAPTERS} == {path.parent.name for path in (ROOT / "bundles").glob("*/weights.safetensors")}
    for name, row in rows.items():
        assert len(row) == len(COLUMNS)
        config = ROOT / "bundles" / name / "config.json"
        own = json.loads(config.read_text())["schedule"] if config.exists() else vars(ScheduleConfig())
        assert row[1:4] == [str(own["steps"]), str(own["segments"]), own["shape"]]


def test_what_the_chain_adds_is_read_from_the_tables_of_the_bundles() -> None:
    table = json.loads((ROOT / "results" / "omniglot-background.json").read_text())
    added = [column["beyond_estimate"]["mean"] for column in table["columns"]]
    assert bundle_rows()["omniglot-background"][-1] == f"{min(added):+.2f} to {max(added):+.2f}"


@pytest.mark.parametrize(("twenty", "verdict"), [(0.5, AGAINST), (0.4, NOTHING), (0.3, FOR)])
def test_the_row_of_t_speaks_for_20_where_every_other_has_a_higher_error(twenty: float, verdict: str) -> None:
    values = {"by_steps": {"5": {"Lt-Di": found(0.4)}, "20": {"Lt-Di": found(twenty)}}}
    assert verdict in said("figure5", "T = 20, Omniglot", values)


@pytest.mark.parametrize(("three", "verdict"), [((0.5, 0.5), AGAINST), ((0.3, 0.3), FOR), ((0.5, 0.3), "Columns disagree")])
def test_the_row_of_m_speaks_for_3_where_it_has_the_lower_error_in_every_column(three: tuple[float, ...], verdict: str) -> None:
    columns = {f"{shots}-shot": {"by_segments": {"1": found(0.4, 91.0), "3": found(error)}} for shots, error in zip((1, 5), three, strict=True)}
    line = said("figure3", "m = 3", columns)
    assert verdict in line and "Omniglot 5-shot" in line and "-1.00 ± 0.00 points" in line


@pytest.mark.parametrize(("reptile", "verdict"), [(0.6, FOR), (0.4, NOTHING), (0.3, AGAINST)])
def test_a_variant_speaks_for_the_default_where_it_is_worse(reptile: float, verdict: str) -> None:
    values = {"as elsewhere": {"Lt-Di": found(0.4)}, "REPTILE": {"Lt-Di": found(reptile)}}
    assert verdict in said("variants", "Adam on plain batches", values)


def test_preparation_names_what_is_better_than_both() -> None:
    rows = {name: {"difference": interval([points, points])} for name, points in (("neither", 0), ("SAM", 0.3), ("augmentation", -0.2), ("both", 0.1))}
    line = said("figure6", "SAM and augmentation", {"many_shot": rows})
    assert FOR in line and line.endswith("better than both: SAM |")


def test_weights_of_eq_2_are_those_of_the_card() -> None:
    card = json.loads((ROOT / "bundles" / "omniglot" / "card.json").read_text(encoding="utf-8"))
    (line,) = (line for line in defaults({}) if line.startswith("| Eq. 2"))
    for weight, columns in card["validation_difference_by_eq2_weight"].items():
        assert f" {weight}" in line and all(f"{column['mean']:+.3f}" in line for column in columns.values())


def test_a_default_whose_figure_was_not_made_says_so() -> None:
    assert sum(line.endswith("| not measured |") for line in defaults({})) == 9


@pytest.mark.parametrize(("lead", "verdict"), [(0.1, AGAINST), (0.0, NOTHING), (-0.1, FOR)])
def test_the_row_of_long_training_is_that_of_the_longest_and_without_the_unet(lead: float, verdict: str) -> None:
    def row(less: float) -> dict[str, Any]:
        return {"error less 1": {"3": interval([less - 0.001, less + 0.001])}, "3": found(0.4, 91.0), "1": found(0.4, 90.0)}

    line = said("budget", "three segments", {"Omniglot": {"rows": [row(0.3), row(lead)]}, "Omniglot, the U-Net": {"rows": [row(9.0)]}})
    assert verdict in line and "+1.00" in line and "9.0" not in line and "U-Net" not in line
