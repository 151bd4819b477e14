"""Figures that are read from the tables of `ltdi evaluate`: what they take, what they conclude, and what they say where none is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltdi.errors import DataMissing
from training.figures import table2, table4
from training.figures.evaluated import left_out_domains, seeds_sign, seeds_text, table, transfers, without_labels
from training.figures.page import page
from training.figures.published import DOMAIN_NET, ZERO_SHOT, ZERO_SHOT_SETS
from training.figures.record import CONDITION, HOLDS, NOT_HERE, counted

ROOT = Path(__file__).parents[2]


def estimate(mean: float, half_width: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "half_width": half_width}


def cell(shots: int, information: str, raw_labels: bool, difference: float) -> dict[str, Any]:
    return {
        "set": "made", "ways": 3, "pool": 0, "shots": shots, "information": information, "raw_labels": raw_labels, "generated": 50.0,
        "closed_form": {"name": "weak", "accuracy": 10.0}, "difference_closed_form": {"mean": 40.0, "low": 39.0, "high": 41.0},
        "strict": {"name": "strong", "accuracy": 50.0 - difference},
        "difference_strict": {"mean": difference, "low": difference - 1, "high": difference + 1},
    }  # fmt: skip


def domain(differences: tuple[float, ...], chain: float) -> dict[str, Any]:
    seeds = range(len(differences))
    return {
        "domain": "made", "shots": 1, "closed_form": "both: means", "beyond_estimate": estimate(chain),
        "accuracy": {"both: means": estimate(60)} | {f"generated, seed {s}": estimate(61 + s) for s in seeds}
        | {f"estimated means, no chain, seed {s}": estimate(61) for s in seeds},
        "validation": {"both: means": 55.0, "examples: means": 40.0, "examples: ridge": 41.0, "training domains: means": 50.0},
        "difference_by_seed": {str(s): estimate(found) for s, found in zip(seeds, differences, strict=True)},
    }  # fmt: skip


def write(folder: Path, name: str, found: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(found))


def test_heads_without_labels_are_read_from_cells_with_no_example_against_the_strict_bar(tmp_path: Path) -> None:
    cells = [cell(0, "names", False, 2), cell(0, "all", False, -2), cell(0, "names", True, 9), cell(1, "names", False, 9)]
    write(tmp_path, "minilm", {"cells": cells})
    found = without_labels("minilm", tmp_path)
    assert {kind: [row["difference"]["mean"] for row in rows] for kind, rows in found.items()} == {"names": [2], "names and unlabelled texts": [-2]}
    assert found["names"][0]["closed_form"] == {"name": "strong", "accuracy": 48.0}


def test_a_domain_s_row_is_the_mean_of_seeds_and_the_best_of_the_examples_alone(tmp_path: Path) -> None:
    write(tmp_path, "pacs", {"rows": [domain((1.0, 1.2, 0.9), 0.0)], "mean_difference": {"1": {"all": estimate(1.03)}}})
    row = left_out_domains(tmp_path)["rows"][0]
    assert row["generated"] == 62 and row["no_chain"] == 61 and row["closed_form"] == {"name": "both: means", "accuracy": 60}
    assert row["inner"] == {"closed_form": 55.0, "examples alone": 41.0}


@pytest.mark.parametrize(
    ("rows", "ahead", "chain"),
    [
        ([((1.0, 1.0), 0.5)], HOLDS, HOLDS),
        ([((1.0, 1.0), 0.0), ((-1.0, -1.0), 0.5)], NOT_HERE, CONDITION),
        ([((1.0, 1.0), 0.5), ((1.0, 1.0), 0.5), ((-1.0, -1.0), 0.5)], CONDITION, HOLDS),
        ([((1.0, 0.05), -0.5)], NOT_HERE, NOT_HERE),
    ],
)
def test_the_claims_of_table_4_follow_its_numbers(tmp_path: Path, rows: list[Any], ahead: str, chain: str) -> None:
    write(tmp_path, "pacs", {"rows": [domain(*row) for row in rows], "mean_difference": {"1": {"all": estimate(0.5)}}})
    assert [claim.verdict for claim in table4.claims(left_out_domains(tmp_path))] == [ahead, chain]


def test_the_claims_of_table_2_follow_its_numbers() -> None:
    ahead, behind = ({"mean": way, "half": 0.5, "values": [way]} for way in (1.0, -1.0))
    row = {"set": "made", "difference": {"mean": 1, "low": 0.5, "high": 1.5}}
    whole = {"from": "a", "to": "b", "protocol": "5-way", "difference_by_seed": {"0": estimate(1)}, "on_views": {"difference": estimate(-1)}}
    values = {
        "texts": {"names": [row | {"difference": {"mean": 0, "low": 0.0, "high": 0.1}}], "names and unlabelled texts": [row]},
        "whole": [whole], "images": {"a to b": {"difference": behind, "trajectory": ahead}},
    }  # fmt: skip
    found = table2.claims(values)
    assert [claim.verdict for claim in found] == [NOT_HERE, HOLDS, NOT_HERE, HOLDS]
    assert "below on laboratory, a to b" in found[2].why and "above on 0, below on 1 of 1" in found[2].why


def test_a_table_that_is_not_there_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"no omniglot-on-digits\.json; make it by `ltdi evaluate --config omniglot --on digits`"):
        table("omniglot-on-digits", "ltdi evaluate --config omniglot --on digits", tmp_path)
    with pytest.raises(DataMissing, match="--config mini-imagenet --on cifar10"):
        transfers(tmp_path)


def test_the_tables_that_are_kept_are_whole() -> None:
    texts, domains = without_labels("minilm"), left_out_domains()["rows"]
    assert len({row["set"] for row in texts["names"]}) == len(texts["names"]) == 7
    assert [row["set"] for row in texts["names"]] == [row["set"] for row in texts["names and unlabelled texts"]]
    assert {(row["domain"], row["shots"]) for row in domains} == {(d, k) for d in ("art_painting", "cartoon", "photo", "sketch") for k in (1, 5)}
    for row in (*texts["names"], *texts["names and unlabelled texts"]):
        assert row["generated"] - row["closed_form"]["accuracy"] == pytest.approx(row["difference"]["mean"], abs=0.02)
    for row in (*domains, *transfers()):
        means = [found["mean"] for found in row["difference_by_seed"].values()]
        assert row["generated"] - row["closed_form"]["accuracy"] == pytest.approx(sum(means) / len(means), abs=1e-3)


def test_the_page_tells_zero_shot_from_few_shot_and_prints_the_paper_s_numbers() -> None:
    values = {"texts": without_labels("minilm"), "whole": transfers(), "images": {}}
    said = "\n".join(table2.see(values))
    assert said.index("**Zero-shot**") < said.index("hint3_curekart") < said.index("**Not zero-shot**") < said.index("omniglot to digits")
    assert "| Lt-Di | 62.07 | 51.73 | 81.64 | 28.69 | 31.88 |" in said
    assert all(len(row) == len(ZERO_SHOT_SETS) for row in ZERO_SHOT.values())
    lines = table4.see(left_out_domains())
    assert all(any(line.startswith(f"| {name} | {one:.2f} | {five:.2f} |") for line in lines) for name, (one, five) in DOMAIN_NET.items())


def test_a_figure_that_is_read_says_what_made_it(tmp_path: Path) -> None:
    values = left_out_domains()
    write(tmp_path, "table4", {"seeds": [0, 1, 2, 3, 4], "part": "test", "values": values})
    said = page(tmp_path)
    assert table4.MADE in said and "`ltdi figure table4`, " not in said


def test_seeds_agree_only_where_every_interval_is_on_one_side() -> None:
    assert seeds_sign({"0": estimate(1), "1": estimate(0.2)}) == 1 and seeds_sign({"0": estimate(-1), "1": estimate(-0.2)}) == -1
    assert seeds_sign({"0": estimate(1), "1": estimate(0.05)}) == 0 and seeds_sign({"0": estimate(1), "1": estimate(-1)}) == 0
    assert seeds_text({"0": estimate(1, 0.1), "1": estimate(-0.2, 0.3)}) == "+1.00, -0.20 ± 0.30"
    assert (counted([1, 1]), counted([1, 0]), counted([0, -1]), counted([])) == (HOLDS, CONDITION, NOT_HERE, NOT_HERE)
