"""The reader of text sets, the files of names, and the cache of features."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from ltdi.errors import DataMissing
from training.configs.text import SOURCES, TABLE
from training.data.texts import load_texts, of_rows, spaced, written_names
from training.features import embedded


def write(folder: Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


ROWS = [
    {"text": "play a song", "label": "PlayMusic", "split": "train"},
    {"text": "Play a song", "label": "PlayMusic", "split": "train"},
    {"text": "play a song", "label": "PlayMusic", "split": "test"},
    {"text": "rain?", "label": "GetWeather", "split": "train"},
    {"text": "nothing", "label": "oos", "split": "test"},
    {"text": "later", "label": "GetWeather", "split": "validation"},
]


@pytest.mark.parametrize("inside", ["", "text"])
def test_a_packed_set_is_read_and_repeats_within_a_part_are_dropped(tmp_path: Path, inside: str) -> None:
    write(tmp_path / inside, "snips", ROWS)
    read = load_texts(tmp_path, "snips")
    assert read.texts == ("play a song", "play a song", "rain?", "nothing", "later")
    assert read.parts == ("train", "test", "train", "test", "validation")
    assert read.names["PlayMusic"] == "play music" and read.raw_names["PlayMusic"] == "PlayMusic"


def test_rows_are_thinned_evenly(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "PlayMusic", "split": "train" if i % 2 else "test"} for i in range(100)]
    write(tmp_path, "snips", rows)
    assert load_texts(tmp_path, "snips", most=10).texts == tuple(f"t{i}" for i in range(0, 100, 10))


def test_a_missing_set_and_missing_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"snips.jsonl.gz"):
        load_texts(tmp_path, "snips")
    with pytest.raises(DataMissing, match="names"):
        written_names("no such set")


def test_a_set_without_a_test_part_gets_one_that_stays() -> None:
    rows = [(f"text {i}", "a", "all") for i in range(400)]
    first, again = of_rows("x", rows, {"a": "a"}), of_rows("x", rows[::-1], {"a": "a"})
    tested = {text for text, part in zip(first.texts, first.parts, strict=True) if part == "test"}
    assert 30 < len(tested) < 90
    assert tested == {text for text, part in zip(again.texts, again.parts, strict=True) if part == "test"}


def test_separators_become_spaces() -> None:
    assert spaced("ABBR:exp") == "ABBR exp" and spaced("lost_card-2") == "lost card 2"
    assert spaced("atis_flight#atis_airfare") == "atis flight and atis airfare"


@pytest.mark.parametrize("name", [source.name for source in SOURCES])
def test_every_source_has_names_for_people(name: str) -> None:
    names = written_names(name)
    assert all(value.strip() and "_" not in value and ":" not in value for value in names.values())
    assert len(set(names.values())) == len(names)


def test_the_table_is_of_sources() -> None:
    assert set(TABLE) <= {source.name for source in SOURCES}


def test_a_set_is_embedded_once(tmp_path: Path) -> None:
    calls = []

    def encode(texts):
        calls.append(len(texts))
        return torch.tensor([[len(text), 1.0] for text in texts])

    texts = of_rows("tiny", [("a", "x", "train"), ("bb", "y", "test"), ("c", "oos", "test")], {"x": "ex", "y": "why"})
    first = embedded(texts, "own", tmp_path, encode)
    assert calls == [3, 2, 2]
    again = embedded(texts, "own", tmp_path, encode)
    assert len(calls) == 3
    assert torch.equal(first.features, again.features)
    assert again.class_index.tolist() == [0, 1, -1] and again.test.tolist() == [False, True, True]
    assert torch.allclose(again.features.norm(dim=1), torch.ones(3))
