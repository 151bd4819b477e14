"""The two images without a container engine: what is copied and installed, and the service on a read-only root."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from service.settings import PREFIX, Settings
from tests.docker.conftest import DOCKER, ROOT, address_of, features_task, running, until

DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINE = re.compile(r"^([A-Z]+) (.*)$")
ISOLATED = 'set -e; mount --bind "$1" /mnt; mount -o remount,ro,bind /mnt; mount -t tmpfs tmpfs /tmp; mount -o remount,ro,bind /; '
ISOLATED += 'if touch /mnt/x || touch /var/x; then exit 9; fi 2>/dev/null; cd /; shift; exec setpriv --reuid 10001 --regid 10001 --clear-groups '
ISOLATED += '--bounding-set=-all --no-new-privs "$@"'


def steps(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments."""
    text = (DOCKER / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [(found[1], " ".join(found[2].split())) for line in text.split("\n") if (found := LINE.match(line))]


def copied(name: str) -> list[str]:
    """What comes from the repository."""
    lines = [arguments.split() for kind, arguments in steps(name) if kind == "COPY" and "--from" not in arguments]
    return [source for words in lines for source in words[:-1]]


def ignored() -> list[str]:
    return (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, installed from what the Dockerfile copies and from nothing else."""
    context, installed = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("image")
    for source in copied("Dockerfile"):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, context)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(installed), str(context)], check=True, capture_output=True)
    installed.chmod(0o755)
    return installed


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    checked = subprocess.run([hadolint, str(DOCKER / name)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_everything_that_is_copied_exists_and_is_not_ignored(name: str) -> None:
    assert {"constraints.txt", "pyproject.toml", "ltdi", "service", "bundles"} <= set(copied(name))
    for source in copied(name):
        assert (ROOT / source).exists(), source
        assert source not in ignored(), source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_install_is_held_by_the_constraints(name: str) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    installs = [arguments for kind, arguments in steps(name) if kind == "RUN" and "pip install" in arguments]
    assert len(installs) == 2 and all("-c constraints.txt" in arguments for arguments in installs)
    assert f"torch=={pins['torch']}" in installs[0]
    assert set(re.findall(r"'\.\[(.*)\]'", installs[1])[0].split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_base_is_pinned_and_the_same_for_building_and_running(name: str) -> None:
    bases = {arguments.split()[0] for kind, arguments in steps(name) if kind == "FROM"}
    (base,) = bases
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    least = re.search(r">=3\.(\d+)", PROJECT["requires-python"])[1]
    assert int(base.split(".")[1]) >= int(least)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_nobody_special_and_needs_no_home(name: str) -> None:
    said = dict(steps(name))
    assert int(said["USER"]) > 0
    assert {"HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1", "HF_HUB_OFFLINE=1"} <= set(said["ENV"].split())
    assert said["ENTRYPOINT"] == '["ltdi", "serve"]'
    assert "/readyz" in said["HEALTHCHECK"] and said["EXPOSE"] == str(Settings.model_fields["port"].default)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_sets_only_settings_that_exist(name: str) -> None:
    variables = [word.split("=") for word in dict(steps(name))["ENV"].split()]
    settings = {key.removeprefix(PREFIX).lower(): value for key, value in variables if key.startswith(PREFIX)}
    assert Settings(**settings).host == "0.0.0.0"


def test_the_two_images_differ_in_the_device_alone() -> None:
    cpu, cuda = steps("Dockerfile"), steps("Dockerfile.cuda")
    alone = [step for step in cpu if step not in cuda], [step for step in cuda if step not in cpu]
    assert [kind for kind, _ in alone[0]] == ["ARG", "ENV"] and [kind for kind, _ in alone[1]] == ["ENV"]
    more = set(alone[1][0][1].split()) - set(alone[0][1][1].split())
    assert {word.split("=")[0] for word in more} == {"LTDI_DEVICE", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}


def test_what_is_copied_makes_a_whole_package(image_folder: Path) -> None:
    for bundle in Settings.model_fields["bundle"].default:
        assert {"config.json", "digest", "weights.safetensors"} <= {f.name for f in (image_folder / "ltdi_bundles" / bundle).iterdir()}
    assert (image_folder / "service" / "page" / "index.html").is_file()


@pytest.mark.slow
def test_the_service_runs_on_a_read_only_root_as_a_user_without_any_capability(image_folder: Path) -> None:
    """What `read_only`, `cap_drop` and `no-new-privileges` do to the process, by a mount namespace."""
    if sys.prefix.startswith("/tmp/"):
        pytest.skip("this Python lies under /tmp, which is mounted anew")
    script = ["unshare", "--mount", "bash", "-c", ISOLATED, "isolated", str(image_folder)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONPATH": "/mnt", "OMP_NUM_THREADS": "1",
                   "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    probe = subprocess.run([*script, sys.executable, "-c", "import service; print(service.__file__)"],
                           env=environment, capture_output=True, text=True)  # fmt: skip
    assert probe.returncode != 9, "the root can be written to"
    if probe.returncode:
        pytest.skip(f"a read-only root cannot be made here: {probe.stderr.strip()[-200:]}")
    assert probe.stdout.startswith("/mnt/service/")
    command = [*script, sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--device", "cpu"]
    with running(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        http = httpx.Client(base_url=address_of(process), timeout=60)
        until(lambda: all(m["state"] != "loading" for m in http.get("/models").json()["models"]))
        states = {m["name"]: m["state"] for m in http.get("/models").json()["models"]}
        status = Path(f"/proc/{process.pid}/status").read_text()
        answer = http.post("/generate-head", json=features_task())
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(timeout=30) == 0
    assert answer.status_code == 200, answer.text
    assert set(states.values()) == {"ready"}, states
    assert re.search(r"^Uid:\s+10001\s", status, re.MULTILINE) and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
