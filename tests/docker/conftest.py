"""The real service as a process, and the files that run it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `done()`; connections that are refused meanwhile are not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if done():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not done within {seconds:g} seconds")


@contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, whatever happens in it."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def address_of(process: subprocess.Popen[str]) -> str:
    """The address that a service logs when it listens."""
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise AssertionError(f"the service ended with {process.wait()}")


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of the shipped bundles for drawings and for features, and of one that cannot be loaded."""
    log = tmp_path_factory.mktemp("service") / "log"
    port = free_port()
    bundles = [*(str(ROOT / "bundles" / name) for name in ("omniglot", "any-embedding")), "no-such-bundle"]
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", str(port), "--device", "cpu", "--bundle", ",".join(bundles)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LTDI_")}
    with log.open("w") as out, running(command, stdout=out, stderr=out, cwd=ROOT, env=environment):
        address = f"http://127.0.0.1:{port}"
        until(lambda: all(m["state"] != "loading" for m in httpx.get(f"{address}/models").json()["models"]))
        yield address


def features_task(seed: int = 0, **fields: object) -> dict:
    """Three classes of two examples, as features of the bundle for drawings."""
    import torch

    rows = torch.randn(6, 256, generator=torch.Generator().manual_seed(seed))
    rows += 2 * torch.eye(256)[[0, 0, 1, 1, 2, 2]]
    support = [{"label": f"c{i // 2}", "features": row} for i, row in enumerate(rows.tolist())]
    return {"model": "omniglot", "support": support, "seed": seed} | fields
