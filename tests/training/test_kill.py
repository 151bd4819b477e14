"""A training run whose process is killed, whenever, ends with the bytes of one that was not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CHECKPOINTS = ("body.ckpt.safetensors", "trajectories/shard-00000.safetensors", "seed0/generator.ckpt.safetensors")
COMMAND = "import sys; from ltdi.cli import main; sys.exit(main(sys.argv[1:]))"


def start(stage: str, runs: Path) -> subprocess.Popen:
    arguments = [stage, "--config", "tiny", "--runs", str(runs), "--threads", "1"]
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_when(process: subprocess.Popen, reached: Callable[[], bool]) -> bool:
    """Whether the process was killed while it still ran."""
    while process.poll() is None and not reached():
        time.sleep(0.001)
    process.kill()
    return process.wait() != 0


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for stage in ("prepare", "meta-train"):
        assert start(stage, whole).wait() == 0
    hits = 0
    for stage, checkpoint in (("prepare", CHECKPOINTS[0]), ("prepare", CHECKPOINTS[1]), ("meta-train", CHECKPOINTS[2])):
        if stage == "meta-train":
            assert start("prepare", killed).wait() == 0
        hits += killed_when(start(stage, killed), (killed / "tiny" / checkpoint).exists)
    assert hits == 3
    assert start("meta-train", killed).wait() == 0
    for checkpoint in CHECKPOINTS:
        assert (killed / "tiny" / checkpoint).read_bytes() == (whole / "tiny" / checkpoint).read_bytes()
