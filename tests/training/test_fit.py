"""`ltdi fit`: the history file line by line, a history that helps, one that is too small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ltdi
from ltdi.cli import main
from ltdi.errors import InvalidInput
from ltdi.experts import unit
from training.directions import DirectionsTraining, fit_directions
from training.fit import History, as_set, read_history, split_classes

shipped = ltdi.shipped_bundles()
GOOD = {"label": "refund", "text": "money back", "task": "bank"}


def write(path: Path, rows: list) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_history_is_read_by_task_and_label(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"task": "shop"}, GOOD | {"text": "😀", "label": "a_b", "description": "a friendly name"}, GOOD]
    history = read_history(write(tmp_path / "tasks.jsonl", rows))
    assert history.labels == ["a_b", "refund", "refund"] and history.tasks == ["bank", "bank", "shop"]
    assert history.class_index == [1, 2, 0, 1]
    assert history.names == ["a friendly name", "refund", "refund"]


BAD = [
    ("no JSON", "{", "is not JSON"),
    ("a list", [1], "no object"),
    ("no label", {"text": "x"}, "no `label`"),
    ("a label that is a number", {"label": 3, "text": "x"}, "no `label`"),
    ("no item", {"label": "a"}, "one of `text` and `features`"),
    ("both", {"label": "a", "text": "x", "features": [1.0]}, "one of `text` and `features`"),
    ("empty", {"label": "a", "text": "  "}, "empty `text`"),
    ("unknown field", {"label": "a", "text": "x", "lable": "b"}, "unknown field 'lable'"),
    ("not finite", '{"label": "a", "features": [NaN]}', "list of finite numbers"),
    ("no numbers", {"label": "a", "features": ["x"]}, "list of finite numbers"),
    ("description", {"label": "a", "text": "x", "description": 4}, "`task` or `description`"),
]


@pytest.mark.parametrize(("line", "complaint"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: object, complaint: str) -> None:
    rows = [GOOD, GOOD, line if isinstance(line, str) else json.dumps(line), GOOD]
    with pytest.raises(InvalidInput, match=r"line 3 of tasks\.jsonl") as caught:
        read_history(write(tmp_path / "tasks.jsonl", rows))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("rows", [[], [GOOD, {"label": "a", "features": [1.0]}], [{"label": "a", "features": [1.0] * n} for n in (2, 3)]])
def test_what_is_no_history_is_refused(tmp_path: Path, rows: list) -> None:
    with pytest.raises(InvalidInput):
        read_history(write(tmp_path / "tasks.jsonl", rows))
    with pytest.raises(InvalidInput):
        read_history(tmp_path / "nowhere.jsonl")


def history(classes: int, tasks: int = 1) -> History:
    names = [str(i) for i in range(classes)]
    index = [i for i in range(classes) for _ in range(10)]
    return History(torch.randn(len(index), 8), index, [f"t{i % tasks}" for i in range(classes)], names, names, False)


def test_whole_tasks_are_held_out_where_there_are_some() -> None:
    one = history(20, tasks=5)
    learn, held = split_classes(one, 0.25, 0)
    assert sorted(learn + held) == list(range(20))
    assert {one.tasks[i] for i in learn}.isdisjoint({one.tasks[i] for i in held})
    learn, held = split_classes(history(20), 0.25, 0)
    assert len(held) == 5 and sorted(learn + held) == list(range(20))


def test_each_class_keeps_items_to_ask_about() -> None:
    data = as_set(history(6), torch.randn(60, 8), None)
    for row in range(6):
        mine = data.class_index == row
        assert int((mine & data.test).sum()) == 2 and int((mine & data.train).sum()) == 8


def domain(classes: int, items: int, seed: int) -> tuple[torch.Tensor, list[np.ndarray], torch.Tensor]:
    """Items differ in all directions, but classes only in the first eight; names know the first sixteen."""
    chance = torch.Generator().manual_seed(seed)
    centres = torch.zeros(classes, 32)
    centres[:, :8] = torch.randn(classes, 8, generator=chance)
    features = unit((centres[:, None] + 0.4 * torch.randn(classes, items, 32, generator=chance)).flatten(0, 1))
    names = centres.clone()
    names[:, 8:] = 1.2 * torch.randn(classes, 24, generator=chance)
    return features, [np.arange(i * items, (i + 1) * items) for i in range(classes)], unit(names)


def test_directions_of_past_classes_help_with_new_ones() -> None:
    from ltdi.experts import directed, from_means, logits

    features, rows, names = domain(60, 16, 0)
    directions = fit_directions(features, rows, [names], DirectionsTraining(steps=400, lr=5e-3, penalty=3e-4))
    new, new_rows, new_names = domain(30, 16, 1)
    target = torch.arange(30).repeat_interleave(16)

    def accuracy(prototypes: torch.Tensor) -> float:
        return float((logits(from_means(prototypes), new).argmax(1) == target).float().mean())

    assert accuracy(directed(new_names, directions)) > accuracy(new_names) + 0.05


@pytest.mark.skipif("any-embedding" not in shipped, reason="the bundle any-embedding is not shipped")
def test_a_history_of_features_makes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    features, rows, _ = domain(40, 12, 0)
    lines = [
        {"label": f"c{i}", "features": [round(x, 4) for x in features[j].tolist()]} for i, r in enumerate(rows) for j in r
    ]
    out = tmp_path / "mine"
    assert main(["fit", "--tasks", str(write(tmp_path / "t.jsonl", lines)), "--out", str(out)]) == 0
    bundle = ltdi.load_bundle(out, device="cpu")
    assert bundle.name == "mine" and bundle.feature_size == 32
    assert bundle.config.geometry.centre  # it goes on from `any-embedding`
    fit = bundle.card["fit"]
    assert fit["classes"] == 40 and fit["items"] == 480 and "held_out" in fit
    assert fit["helps"] == bundle.config.geometry.directions
    assert fit["helps"] == (fit["held_out"]["all"]["low"] > 0)
    new, new_rows, _ = domain(5, 12, 3)
    head = bundle.generate(new[::12], [f"n{i}" for i in range(5)])
    assert len(head.predict(new)) == 60
    assert "held-out" in capsys.readouterr().out


@pytest.mark.skipif("any-embedding" not in shipped, reason="the bundle any-embedding is not shipped")
def test_a_small_history_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    features, rows, _ = domain(4, 6, 0)
    lines = [{"label": f"c{i}", "features": features[j].tolist()} for i, r in enumerate(rows) for j in r]
    out = tmp_path / "small"
    assert main(["fit", "--tasks", str(write(tmp_path / "t.jsonl", lines)), "--out", str(out)]) == 0
    assert not ltdi.load_bundle(out, device="cpu").config.geometry.directions
    assert "shipped generator is kept" in capsys.readouterr().out


def test_a_bad_history_ends_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path / "t.jsonl", [GOOD, "oops"])
    assert main(["fit", "--tasks", str(file), "--out", str(tmp_path / "x")]) != 0
    assert "line 2 of t.jsonl" in capsys.readouterr().err
