"""What the stages of adapters do with another encoder than the shipped one."""

from __future__ import annotations

from pathlib import Path

from ltdi.files import write_json
from training.adapters.commands import MODEL, hub_name, table_of


def test_a_table_of_another_model_makes_no_card(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"model": MODEL, "accuracy": {}})
    assert table_of(tmp_path / "results.json", MODEL) == {"model": MODEL, "accuracy": {}}
    assert table_of(tmp_path / "results.json", "models/roberta-base") is None
    assert table_of(tmp_path / "none.json", MODEL) is None


def test_the_shipped_encoder_is_named_as_the_hub_has_it_and_a_path_as_it_is() -> None:
    assert hub_name(MODEL) == f"sentence-transformers/{MODEL}"
    assert hub_name("models/roberta-base") == "models/roberta-base"


def test_the_committed_table_is_of_the_shipped_encoder() -> None:
    assert table_of(Path(__file__).parents[2] / "results/adapters.json", MODEL) is not None
