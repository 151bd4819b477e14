"""`ltdi generate --kind lora`: a folder for PEFT and vLLM, and a server that loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltdi.adapters import BaseModel, read_folder
from ltdi.commands import bundles, generate
from ltdi.errors import AdapterRefused, InvalidInput
from tests.ltdi.adapters.made import LABELS, PAIRS, TEXTS, make_adapter_bundle, write_base
from tests.ltdi.adapters.test_vllm import vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bundles") / "toy"
    write_base(made / "base")
    make_adapter_bundle(BaseModel(str(made / "base"), 16), "base").save(made)
    return made


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path, [{"label": label, "text": text} for label, text in zip(LABELS, TEXTS, strict=True)])


def write_task(folder: Path, support: list, **more: object) -> Path:
    (folder / "task.json").write_text(json.dumps({"support": support, **more}))
    return folder / "task.json"


def test_a_folder_is_made_and_described(folder: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["--kind", "lora", "--bundle", str(folder), "--task", str(task), "--out", str(tmp_path / "served"), "--device", "cpu"]
    assert generate([*argv, "--name", "team/one", "--base-model-name-or-path", "org/Exact-String", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    made = read_folder(tmp_path / "served" / "team" / "one")
    assert made.base_model_name_or_path == facts["base_model_name_or_path"] == "org/Exact-String"
    assert list(made.labels) == facts["labels"] == ["card", "film", "refund"]
    assert facts["checks"][:3] == ["files", "keys", "logits"] and facts["timings_ms"]["total"] > 0
    assert generate(argv) == 0
    said = capsys.readouterr().out
    assert "base      made/tiny" in said and "effect    delta" in said
    assert len([path for path in (tmp_path / "served").iterdir() if path.name.startswith("toy-lora-")]) == 1


def test_a_server_loads_what_was_made(folder: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "key").write_text("secret\n")
    argv = ["--kind", "lora", "--bundle", str(folder), "--task", str(task), "--out", str(tmp_path / "served"), "--name", "one"]
    with vllm(key="secret") as (url, loaded):
        argv += ["--load-into", url, "--load-key-file", str(tmp_path / "key")]
        assert generate(argv) == 0
        assert "server    Success: LoRA adapter 'one' added" in capsys.readouterr().out
        assert loaded == {"one": str(tmp_path / "served" / "one")}
        with pytest.raises(AdapterRefused, match="already been loaded"):
            generate(argv)
        (tmp_path / "mounted").symlink_to(tmp_path / "served")
        assert generate([*argv, "--replace", "--load-path", str(tmp_path / "mounted")]) == 0
        assert loaded == {"one": str(tmp_path / "mounted" / "one")}


def test_pairs_of_texts(folder: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, [{"label": "yn"[i % 2], "pair": pair} for i, pair in enumerate(PAIRS)])
    assert generate(["--kind", "lora", "--bundle", str(folder), "--task", str(task), "--out", str(tmp_path), "--name", "p"]) == 0
    assert read_folder(tmp_path / "p").labels == ("n", "y")


def test_what_does_not_fit_is_said(folder: Path, toy_folder: Path, task: Path, tmp_path: Path) -> None:
    argv = ["--task", str(task), "--out", str(tmp_path / "x")]
    for more, words in (
        (["--bundle", str(folder)], "say --kind lora"),
        (["--bundle", str(toy_folder), "--kind", "lora"], "needs one that makes adapters"),
        (["--bundle", str(folder), "--kind", "lora", "--draws", "2"], "no --draws"),
        (["--bundle", str(folder), "--kind", "lora", "--name", "../x"], "cannot be used"),
        (["--bundle", str(folder), "--kind", "lora", "--load-into", "http://127.0.0.1:9", "--load-key-file", "nothing"], "key file"),
    ):
        with pytest.raises(InvalidInput, match=words):
            generate([*argv, *more])
    pooled = write_task(tmp_path, [{"label": "a", "text": "x"}, {"label": "b", "text": "y"}], unlabelled=[{"text": "z"}])
    with pytest.raises(InvalidInput, match="use no pool"):
        generate(["--task", str(pooled), "--bundle", str(folder), "--kind", "lora"])


def test_the_bundle_is_described(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert bundles([str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["recipe"], facts["body"], facts["feature_size"]) == ("lora", "lora", "transformer", 32)
    assert bundles([str(folder)]) == 0 and "recipe lora, body transformer" in capsys.readouterr().out
