"""What lies on disk becomes a task, or an error that names the file and the remedy; errors become exit codes."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.cli import main, missing, overview, run
from ltdi.commands import measured, read_features, read_folder, read_task
from ltdi.errors import EmptySupport, InvalidInput, InvalidSupport
from ltdi.files import write_safetensors
from service.client import png


@pytest.fixture
def folder(tmp_path: Path, images: torch.Tensor, labels: list[str]) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "task" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "task" / label / f"{i:02d}.png").write_bytes(png(image))
    return tmp_path / "task"


def test_hidden_files_and_other_files_are_left_out(folder: Path, labels: list[str]) -> None:
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("")
    (folder / "ka" / "Thumbs.db").write_bytes(b"")
    (folder / "ka" / "._00.png").write_bytes(b"")
    assert read_folder(folder).labels == labels


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, InvalidInput, "is not a folder; give one"),
        (lambda path: path.mkdir(), EmptySupport, "put the images of each class into a folder of its name"),
        (lambda path: (path / "ka").mkdir(parents=True), InvalidSupport, "class 'ka' has no image"),
    ],
)
def test_a_folder_that_is_no_task_says_what_to_do(make, error, message: str, tmp_path: Path) -> None:
    make(tmp_path / "task")
    with pytest.raises(error, match=message):
        read_folder(tmp_path / "task")


def test_a_damaged_image_is_named(folder: Path, toy_folder: Path, tmp_path: Path, capsys) -> None:
    (folder / "ra" / "05.png").write_bytes(b"GIF89a, or so it says")
    out = tmp_path / "head.safetensors"
    assert main(["generate", str(folder), "--bundle", str(toy_folder), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert str(Path("ra") / "05.png") in said and said.count("\n") == 1
    assert not out.exists()


def test_features_from_a_file_give_the_same_head_as_their_images(toy_folder: Path, tmp_path: Path, images, labels) -> None:
    bundle = ltdi.load_bundle(toy_folder, device="cpu")
    names = sorted(set(labels))
    tensors = {"features": bundle.embed(images), "labels": torch.tensor([names.index(label) for label in labels])}
    write_safetensors(tmp_path / "task.safetensors", tensors, {"classes": json.dumps(names)})
    out = tmp_path / "head.safetensors"
    command = ["--features", str(tmp_path / "task.safetensors"), "--bundle", str(toy_folder), "--out", str(out)]
    assert main(["generate", *command, "--seed", "3"]) == 0
    expected = bundle.generate(tensors["features"], labels, seed=3)
    assert out.read_bytes() == expected.to_bytes()


def test_features_without_names_are_labelled_by_their_numbers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "f", {"features": torch.ones(2, 4), "labels": torch.tensor([7, 2])}, {})
    assert read_features(tmp_path / "f").labels == ["7", "2"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"features": torch.ones(2, 4)}, {}, "it needs `features`"),
        ({"features": torch.ones(2, 4), "labels": torch.ones(2)}, {}, "must be a row of integers"),
        ({"features": torch.ones(2, 4), "labels": torch.tensor([0, 2])}, {"classes": '["a", "b"]'}, r"must lie in 0\.\.1"),
        ({"features": torch.ones(2, 4), "labels": torch.tensor([0, 1])}, {"classes": '{"a": 1}'}, "not a list of names"),
    ],
)
def test_a_feature_file_that_does_not_fit_says_why(tensors, metadata, message: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "f", tensors, metadata)
    with pytest.raises(InvalidInput, match=message):
        read_features(tmp_path / "f")


@pytest.mark.parametrize("both", [True, False])
def test_generate_takes_a_folder_or_features_and_not_both(both: bool, folder: Path, capsys) -> None:
    assert main(["generate", *([str(folder), "--features", "f"] if both else [])]) == 2
    assert "one of a folder of images, --features" in capsys.readouterr().err


def test_generate_prints_its_facts_as_json(folder: Path, toy_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "head.safetensors"
    assert main(["generate", str(folder), "--bundle", str(toy_folder), "--out", str(out), "--json"]) == 0
    facts, head = json.loads(capsys.readouterr().out), ltdi.load_head(out)
    assert facts["examples"] == {"ka": 4, "ra": 4, "ta": 4}
    assert (facts["support_accuracy"], facts["baseline_support_accuracy"]) == (
        head.support_accuracy, head.baseline_support_accuracy,
    )
    assert facts["bytes"] == out.stat().st_size
    assert {"embed", "sample", "check", "total"} <= set(facts["timings_ms"])


def test_one_bundle_is_shown_with_its_card(toy: ltdi.Bundle, toy_folder: Path, capsys) -> None:
    assert main(["bundles", str(toy_folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["digest"], shown["card"]) == ("toy", toy.digest, toy.card)
    assert shown["ways"] == [2, toy.limits.max_ways]


def test_the_figures_of_a_card_stand_beside_the_closed_form_s() -> None:
    row = {"generated": {"mean": 98.9}, "closed_form": {"mean": 98.8, "name": "ridge"}, "difference": {"mean": 0.1}}
    shown = measured({"accuracy": {"5-way 1-shot": row}})
    assert shown == {"5-way 1-shot": {"generated": 98.9, "closed_form": 98.8, "difference": 0.1}}
    assert measured({}) == {}


def test_a_damaged_bundle_is_a_fault_and_exits_1(toy_folder: Path, tmp_path: Path, capsys) -> None:
    for file in toy_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "digest").write_text("0" * 64)
    assert main(["bundles", str(tmp_path)]) == 1
    assert "does not match its digest" in capsys.readouterr().err


def interrupted(argv: list[str]) -> int:
    """A command that is interrupted."""
    raise KeyboardInterrupt


def lacking(argv: list[str]) -> int:
    """A command that needs what is not installed."""
    raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")


def command(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="ltdi.commands")


def test_an_interrupted_command_exits_130(capsys) -> None:
    assert run(command("stop", f"{__name__}:interrupted"), []) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_package_that_is_missing_is_named_with_its_extra(capsys) -> None:
    assert run(command("lack", f"{__name__}:lacking"), []) == 1
    assert capsys.readouterr().err == (
        "error: `ltdi lack` needs the package 'sklearn', which is missing: pip install 'ltdi[dev]'\n"
    )
    assert "'ltdi[vision-data]'" in missing(ModuleNotFoundError(name="torchvision"))
    assert missing(ModuleNotFoundError(name="PIL.Image")).endswith("pip install 'ltdi'")


def test_help_lists_a_command_that_does_not_import_as_such() -> None:
    page = overview({"gone": command("gone", "no_such_package.commands:gone")})
    assert "gone  (not available: does not import: No module named 'no_such_package')" in page


def test_a_task_of_features_in_a_file(tmp_path: Path, toy_features: ltdi.Bundle, toy_features_folder: Path) -> None:
    rows = torch.randn(6, 5).tolist()
    task = {
        "classes": [{"label": "b"}, {"label": "a"}],
        "support": [{"label": "ab"[i % 2], "features": row} for i, row in enumerate(rows)],
        "unlabelled": [{"features": row} for row in rows],
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    out = tmp_path / "head.safetensors"
    arguments = ["generate", "--task", str(tmp_path / "task.json"), "--bundle", str(toy_features_folder), "--out", str(out)]
    assert main(arguments) == 0
    own = toy_features.generate(
        torch.tensor(rows), [row["label"] for row in task["support"]], classes=["b", "a"], unlabelled=torch.tensor(rows)
    )
    assert out.read_bytes() == own.to_bytes()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{", "not a readable JSON file"),
        ('{"suport": []}', "and nothing else"),
        ('{"support": [{"text": "x"}]}', "object with a `label`"),
        ('{"support": [{"label": "a", "text": "x"}, {"label": "b", "features": [1]}]}', "of one size"),
        ('{"support": [{"label": "a", "features": [1]}, {"label": "b", "features": [1, 2]}]}', "of one size"),
    ],
)
def test_a_task_file_that_is_none_is_refused(tmp_path: Path, task: str, message: str) -> None:
    (tmp_path / "task.json").write_text(task)
    with pytest.raises(InvalidInput, match=message):
        read_task(tmp_path / "task.json")
