"""The outer house: make targets, pinned dependencies, what CI calls, the image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """make, as a user calls it: without the variables of a make that runs these tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PORT"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[str]:
    project = PROJECT["project"]
    return project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]


def test_make_alone_explains_every_target_in_a_line() -> None:
    targets = re.search(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[1].split()
    assert {"serve", "test", "demo", "bench", "lint", "openapi", "install", "system-deps", "clean", "help"} <= set(targets)
    page = make()
    assert page.returncode == 0
    explained = re.findall(r"^  make ([a-z-]+) +\S", page.stdout, re.MULTILINE)
    assert sorted(explained) == sorted(targets)


@pytest.mark.parametrize(("arguments", "port"), [((), "8080"), (("PORT=9123",), "9123")])
def test_make_serve_takes_the_port(arguments: tuple[str, ...], port: str) -> None:
    assert f"ltdi serve --port {port}\n" in make("--dry-run", "serve", *arguments).stdout


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_dependencies_are_installed_again_only_when_their_lists_change(changed: str, tmp_path: Path) -> None:
    stamps = tmp_path / ".venv" / ".installed", tmp_path / ".venv" / ".installed-dev"
    stamps[0].parent.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1000, 1000))
    for age, stamp in enumerate(stamps):
        stamp.touch()
        os.utime(stamp, (2000 + age, 2000 + age))
    assert all(make("--question", str(s.relative_to(tmp_path)), folder=tmp_path).returncode == 0 for s in stamps)
    os.utime(tmp_path / changed, (3000, 3000))
    assert all(make("--question", str(s.relative_to(tmp_path)), folder=tmp_path).returncode == 1 for s in stamps)


def test_a_bare_folder_installs_torch_first_and_torchvision_alone_and_last(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    installs = [line for line in make("--dry-run", "test", folder=tmp_path).stdout.split("\n") if "pip install" in line]
    assert [line.split()[-1] for line in installs] == ["torch==2.13.0", "'.[text]'", "'.[dev,text,lora,onnx,traces]'", "torchvision==0.28.0"]
    assert all("-c constraints.txt" in line for line in installs)
    assert "--no-deps" in installs[-1]
    assert "torchvision" not in make("--dry-run", "serve", folder=tmp_path).stdout


def test_every_dependency_is_pinned_to_a_version_that_the_project_allows() -> None:
    pinned = pins()
    for requirement in requirements():
        name = normal(re.split(r"[^\w.-]", requirement)[0])
        assert name in pinned, f"constraints.txt lacks {name}"
        exact = re.search(r"==(.+)", requirement)
        assert exact is None or exact[1] == pinned[name], requirement
    assert not [version for version in pinned.values() if "+" in version]


def test_ci_calls_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail"
    assert [line.split(" <")[0] for line in commands[1:]] == ['cd "$(dirname "$0")/.."', "make test"]


def test_no_file_names_a_registry() -> None:
    for text in (MAKEFILE, DOCKERFILE, (ROOT / "constraints.txt").read_text(encoding="utf-8")):
        assert not set(re.findall(r"https?://([\w.-]+)", text)) - {"127.0.0.1"}


def test_the_image_holds_every_package_and_runs_as_nobody_special() -> None:
    folders = {name.split(".")[0].replace("ltdi_bundles", "bundles") for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE)) == folders
    assert re.search(r"^USER [1-9]\d*$", DOCKERFILE, re.MULTILINE)
    assert "/readyz" in DOCKERFILE and 'ENTRYPOINT ["ltdi", "serve"]' in DOCKERFILE
