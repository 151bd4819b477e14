"""Adapters as bytes and as folders: equal to the last bit, the same each time, and nothing hostile gets in."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltdi.adapters import (
    Adapter,
    folder_of,
    from_safetensors,
    from_zip,
    read_folder,
    to_safetensors,
    to_zip,
    write_folder,
)
from ltdi.adapters.formats import CARD, CONFIG, WEIGHTS, to_files
from ltdi.errors import DamagedFile, InvalidInput
from ltdi.files import safetensors_bytes

MODULE = "base_model.model.bert.encoder.layer.0.attention.self.query"
WAYS = {"safetensors": lambda a, f: from_safetensors(to_safetensors(a)), "zip": lambda a, f: from_zip(to_zip(a)),
        "folder": lambda a, f: read_folder(write_folder(a, f / "one"))}  # fmt: skip


def adapter(**changes: object) -> Adapter:
    dice = torch.Generator().manual_seed(0)
    tensors = {f"{MODULE}.lora_A.weight": (4, 32), f"{MODULE}.lora_B.weight": (32, 4),
               "base_model.model.classifier.weight": (2, 32), "base_model.model.classifier.bias": (2,)}  # fmt: skip
    made = {name: torch.randn(*shape, generator=dice) for name, shape in tensors.items()}
    made[f"{MODULE}.lora_A.weight"][0, :3] = torch.tensor([1e-45, -0.0, 3.4e38])  # a denormal, minus zero, nearly too large
    facts = {"model": "toy", "method": "generated", "seed": 3, "support_accuracy": None, "effect": {"delta_norm": 0.5}}
    settings = {"tensors": made, "r": 4, "lora_alpha": 8, "target_modules": ("query", "value"), "modules_to_save": ("classifier",),
                "labels": ("gré\n", "b"), "base_model_name_or_path": "org/Base-1", "metadata": facts} | changes  # fmt: skip
    return Adapter(**settings)


@pytest.mark.parametrize("way", WAYS)
def test_a_round_trip_changes_no_bit(way: str, tmp_path: Path) -> None:
    before = adapter()
    after = WAYS[way](before, tmp_path)
    assert {n: t.numpy().tobytes() for n, t in after.tensors.items()} == {n: t.numpy().tobytes() for n, t in before.tensors.items()}
    assert after.config() == before.config() and after.labels == before.labels
    assert dict(after.metadata) == dict(before.metadata)
    assert WAYS[way](replace(before, use_rslora=True, lora_alpha=7.5), tmp_path).scale == 7.5 / 2


def test_the_same_adapter_gives_the_same_bytes() -> None:
    assert to_zip(adapter()) == to_zip(adapter()) and to_safetensors(adapter()) == to_safetensors(adapter())
    assert to_zip(adapter()) != to_zip(adapter(lora_alpha=9))


def test_the_config_says_every_field_also_the_defaults() -> None:
    assert json.loads(to_files(adapter())[CONFIG]) == {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "org/Base-1", "revision": None,
        "inference_mode": True, "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"], "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "init_lora_weights": True, "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {}, "alpha_pattern": {},
        "auto_mapping": None,
    }  # fmt: skip


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(adapter(), tmp_path / "root" / "one")
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, WEIGHTS, CARD])
    assert [path.name for path in folder.parent.iterdir()] == ["one"]
    assert list(to_files(adapter()))[-1] == CONFIG  # written last
    write_folder(adapter(labels=("x", "y")), folder)
    assert read_folder(folder).labels == ("x", "y")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_folder(adapter(), folder)
    assert read_folder(folder).labels == ("x", "y") and [path.name for path in folder.parent.iterdir()] == ["one"]


def test_what_is_no_adapter_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(InvalidInput, match="is there already and is no adapter"):
        write_folder(adapter(), tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("name", ["a", "team/intent-1", "v1.2_x"])
def test_names_lie_where_the_resolver_looks(name: str, tmp_path: Path) -> None:
    assert folder_of(tmp_path, name) == tmp_path.resolve() / name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/etc/x", "a//b", "a\\b", ".hidden", "a\0b", "a\n", "x" * 500, "ä"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="adapter name"):
        folder_of(tmp_path, name)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidInput, match="leads out"):
        folder_of(tmp_path / "root", "link/x")


def without(name: str) -> dict:
    return {key: value for key, value in adapter().tensors.items() if key != name}


def changed(name: str, tensor: torch.Tensor) -> dict:
    return dict(adapter().tensors) | {name: tensor}


BAD_TENSORS = [
    ("no B", without(f"{MODULE}.lora_B.weight"), "lacks the other matrix"),
    ("no A", without(f"{MODULE}.lora_A.weight"), "lacks the other matrix"),
    ("no head", without("base_model.model.classifier.weight"), "holds no head"),
    ("no LoRA", {k: v for k, v in adapter().tensors.items() if "lora" not in k}, "no LoRA matrices"),
    ("rank", changed(f"{MODULE}.lora_B.weight", torch.zeros(32, 5)), "r is 4"),
    ("half", changed(f"{MODULE}.lora_B.weight", torch.zeros(32, 4).half()), "expected float32"),
    ("flat", changed(f"{MODULE}.lora_B.weight", torch.zeros(32)), "r is 4"),
    ("NaN", changed(f"{MODULE}.lora_B.weight", torch.full((32, 4), float("nan"))), "NaN or infinity"),
    ("other name", changed("classifier.weight", torch.zeros(2, 2)), "does not begin with"),
    ("labels", changed("base_model.model.classifier.weight", torch.zeros(5, 32)), "there are 2 labels"),
    ("bias", changed("base_model.model.classifier.bias", torch.zeros(5)), "there are 2 labels"),
]


@pytest.mark.parametrize(("tensors", "words"), [row[1:] for row in BAD_TENSORS], ids=[row[0] for row in BAD_TENSORS])
def test_damaged_tensors_are_refused(tensors: dict, words: str) -> None:
    with pytest.raises(DamagedFile, match=words):
        from_zip(to_zip(adapter(tensors=tensors)))


BAD_CONFIGS = [
    ("peft_type", "ADALORA", "not LoRA"), ("task_type", "CAUSAL_LM", "not LoRA"), ("bias", "all", "not LoRA"), ("r", 0, "r is 0"),
    ("r", True, "r is True"), ("r", 10**9, "r is 1000000000"), ("lora_alpha", "8", "lora_alpha"), ("lora_alpha", -1, "lora_alpha"),
    ("use_dora", True, "use_dora"), ("rank_pattern", {"query": 2}, "rank_pattern"), ("target_modules", "all-linear", "list of strings"),
    ("base_model_name_or_path", 5, "must be a string"), ("modules_to_save", [1], "list of strings"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "words"), BAD_CONFIGS, ids=[f"{row[0]}-{row[1]}" for row in BAD_CONFIGS])
def test_configs_that_ask_for_something_else_are_refused(key: str, value: object, words: str, tmp_path: Path) -> None:
    folder = write_folder(adapter(), tmp_path / "one")
    config = json.loads((folder / CONFIG).read_text()) | {key: value}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(DamagedFile, match=words):
        read_folder(folder)


def archive(**files: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return made.getvalue()


def test_archives_that_hold_other_things_are_refused() -> None:
    files = to_files(adapter())
    with pytest.raises(DamagedFile, match="nothing else"):
        from_zip(archive(**files, **{"../evil.py": b""}))
    with pytest.raises(DamagedFile, match="nothing else"):
        from_zip(archive(**{CONFIG: files[CONFIG]}))
    with pytest.warns(UserWarning, match="Duplicate"), pytest.raises(DamagedFile, match="once"):
        made = io.BytesIO(to_zip(adapter()))
        with zipfile.ZipFile(made, "a") as target:
            target.writestr(CONFIG, b"{}")
        from_zip(made.getvalue())
    for cut in (0, 10, 200, len(to_zip(adapter())) - 5):
        with pytest.raises(DamagedFile):
            from_zip(to_zip(adapter())[:cut])


def test_a_bomb_is_not_unpacked() -> None:
    bomb = archive(**{CONFIG: b"{}", WEIGHTS: bytes(2**20)})
    large = bomb.replace((2**20).to_bytes(4, "little"), (2**31).to_bytes(4, "little"))
    with pytest.raises(DamagedFile, match="more than"):
        from_zip(large)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"r": 1, "r": 2}', b"\xff", b"[" * 100_000, b"{}"])
def test_configs_that_are_no_config_are_refused(content: bytes, tmp_path: Path) -> None:
    folder = write_folder(adapter(), tmp_path / "one")
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(DamagedFile):
        read_folder(folder)


def test_a_pickle_is_not_opened_and_a_foreign_file_has_numbers_for_labels(tmp_path: Path) -> None:
    folder = write_folder(adapter(), tmp_path / "one")
    (folder / WEIGHTS).write_bytes(safetensors_bytes(dict(adapter().tensors), {"format": "pt"}))
    assert read_folder(folder).labels == ("0", "1")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(DamagedFile, match="a pickle, which is not opened"):
        read_folder(folder)
    with pytest.raises(DamagedFile, match="not an adapter"):
        from_safetensors(safetensors_bytes(dict(adapter().tensors), {"format": "pt"}))
