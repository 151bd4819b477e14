"""Schemathesis on the service's own document: a real server does what it promises, whatever is sent.

Each case is held to every check; `fuzz/schemathesis.toml` says which statuses are right where no schema can express the
rule, and `fuzz/hooks.py` writes the media types.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ltdi import Bundle
from service.settings import Settings
from tests.conftest import make_bundle
from tests.service.conftest import Running

FOLDER = Path(__file__).parent / "fuzz"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(tmp_path: Path, toy_features: Bundle) -> Iterator[str]:
    """A server whose default bundle has the name of the document's examples."""
    make_bundle(tmp_path / "omniglot", name="omniglot")
    toy_features.save(tmp_path / toy_features.name)
    server = Running(Settings(bundle=tuple(str(tmp_path / name) for name in ("omniglot", toy_features.name))), None)
    while "loading" in server.client.get("/models").text:
        time.sleep(0.05)
    yield str(server.client.base_url)
    server.stop()


def fuzz(url: str, report: Path, *options: str) -> dict:
    """What Schemathesis reports of a run with every check."""
    pytest.importorskip("schemathesis", reason="the extra `dev` is not installed")
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(FOLDER / "schemathesis.toml"), "run",
        f"{url}/openapi.json", "--checks", "all", "--continue-on-failure", "--no-color", "--warnings", "off",
        "--report", "json", "--report-json-path", str(report), *options,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.service.fuzz.hooks", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=report.parent, env=environment, capture_output=True, text=True)
    print(done.stdout[-20_000:], done.stderr[-2_000:])
    made = json.loads(report.read_text(encoding="utf-8"))
    assert done.returncode == 0 and made["complete"], "see what Schemathesis printed above"
    return made["test_cases"]


def answered(url: str) -> dict[str, int]:
    """How many requests each route answered with 200."""
    found = re.findall(r'ltdi_requests_total{code="200",route="([^"]+)"} (\d+)', httpx.get(f"{url}/metrics").text)
    return {route: int(count) for route, count in found}


def test_a_short_run_of_schemathesis_finds_nothing(url: str, tmp_path: Path) -> None:
    cases = fuzz(url, tmp_path / "report.json", "--phases", "examples,fuzzing", "--max-examples", "20", "--seed", "1")
    assert cases["generated"] >= 100 and cases["with_failures"] == cases["errored"] == 0
    good = answered(url)
    print(good)
    assert min(good["/generate-head"], good["/embed"]) >= 1


@pytest.mark.slow
def test_five_thousand_cases_of_schemathesis_find_nothing(url: str, tmp_path: Path) -> None:
    cases = fuzz(url, tmp_path / "report.json", "--max-examples", "900", *os.environ.get("FUZZ_OPTIONS", "").split())
    print(cases, answered(url))
    assert cases["generated"] >= 5000 and cases["with_failures"] == cases["errored"] == 0
