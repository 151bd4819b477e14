"""The command line: help, exit codes, and a head from a folder of images."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ltdi
from ltdi.cli import main
from service.client import png

ROOT = Path(__file__).parents[1]
COMMANDS = ("prepare", "meta-train", "export", "train-pool", "evaluate", "bench", "figure", "serve", "generate", "bundles")


@pytest.fixture
def folder(tmp_path: Path, images: torch.Tensor, labels: list[str]) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "task" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "task" / label / f"{i}.png").write_bytes(png(image))
    return tmp_path / "task"


def test_help_names_every_command_with_its_purpose(capsys) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]\w+", page, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"ltdi {name}" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest_and_exits_2(capsys) -> None:
    assert main(["generte"]) == 2
    assert "did you mean 'generate'" in capsys.readouterr().err


def test_a_folder_of_images_becomes_a_head(folder: Path, toy_folder: Path, tmp_path: Path, images, labels, capsys) -> None:
    out = tmp_path / "head.safetensors"
    assert main(["generate", str(folder), "--bundle", str(toy_folder), "--out", str(out)]) == 0
    assert "ka, ra, ta" in capsys.readouterr().out
    expected = ltdi.load_bundle(toy_folder, device="cpu").generate(images, labels)
    assert out.read_bytes() == expected.to_bytes()


def test_a_folder_that_is_no_task_is_a_mistake_of_the_user(tmp_path: Path, toy_folder: Path, capsys) -> None:
    assert main(["generate", str(tmp_path), "--bundle", str(toy_folder), "--out", str(tmp_path / "h")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "h").exists()


def test_a_bundle_that_is_not_there_exits_2(tmp_path: Path, capsys) -> None:
    assert main(["bundles", str(tmp_path / "none")]) == 2
    assert "no bundle" in capsys.readouterr().err


def test_bundles_are_listed_as_json(capsys) -> None:
    assert main(["bundles", "--json"]) == 0
    assert [b["name"] for b in json.loads(capsys.readouterr().out)] == ltdi.shipped_bundles()


def test_the_command_is_installed() -> None:
    answer = subprocess.run([sys.executable, "-m", "ltdi.cli", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"ltdi \d+\.\d+\.\d+\n", answer.stdout)


def test_make_help_names_every_target_that_the_readme_names() -> None:
    page = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"serve", "test", "demo"} <= named
    for target in named:
        assert f"make {target} " in page, target


def test_the_readme_s_commands_and_python_names_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^ltdi ([a-z-]+)", readme, re.MULTILINE)) <= set(COMMANDS)
    for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        compile(block, "README.md", "exec")


def test_the_readme_s_ten_lines_of_numpy_give_the_head_s_labels(toy_folder: Path, images, labels, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "import numpy" in b)
    bundle = ltdi.load_bundle(toy_folder, device="cpu")
    head = bundle.generate(images, labels)
    head.save(tmp_path / "head.safetensors")
    names = {"features": bundle.embed(images).numpy()}
    exec(block.replace("head.safetensors", str(tmp_path / "head.safetensors")), names)
    assert torch.allclose(torch.from_numpy(names["logits"]), head(bundle.embed(images)), atol=1e-4)
    assert names["labels"] == head.predict(bundle.embed(images))
