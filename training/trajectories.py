"""The store of trajectories: safetensors shards and an index that is replaced after each of them.

Waypoint 0 of a trajectory is theta_0, the weights that the fit ended with, waypoint m its start. The index
names only whole shards with their digests, so a store can be read while it is being written, and a kill
at any moment leaves one that can be gone on with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.errors import DamagedFile, DataMissing, InvalidConfig
from ltdi.files import digest, read_safetensors, write_json, write_safetensors

FORMAT = 1
INDEX = "index.json"


@dataclass(frozen=True)
class TrajectoryBatch:
    """Trajectories of some tasks, with what a generator may know of each.

    Args:
        trajectory: `[B, m + 1, ...]`, theta_0 to theta_m, weights on the body's features as they are.
        support: `[B, N, K, D]`, features of the few examples.
        classes: `[B, N]`, which classes of the data set.
        base: `[B, N, D + 1]`, class means of `support`; absent in a store of two-layer heads.
    """

    trajectory: Tensor
    support: Tensor
    classes: Tensor
    base: Tensor | None = None


class TrajectoryWriter:
    """Adds shards to a store; goes on after the whole shards that lie there already.

    Args:
        path: the store's folder.
        settings: everything that the trajectories depend on, as JSON values.
        tasks: how many there shall be; a store can be made longer later.
        shard_tasks: in each shard but the last.

    Raises:
        InvalidConfig: the store at `path` was made with other settings; the message names them.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, tasks: int, shard_tasks: int) -> None:
        self._path, self._settings, self._tasks, self._shard_tasks = Path(path), settings, tasks, shard_tasks
        self._shards: list[dict[str, Any]] = []
        if (self._path / INDEX).exists():
            index = read_index(self._path)
            refuse_other_settings(self._path, index["settings"], settings)
            self._shards = self._whole(index["shards"])
        self._write_index()

    @property
    def shards(self) -> int:
        """How many shards are there."""
        return len(self._shards)

    def expected(self, number: int) -> range:
        """The tasks of shard `number`."""
        first = number * self._shard_tasks
        return range(first, min(first + self._shard_tasks, self._tasks))

    def add(self, batch: TrajectoryBatch) -> None:
        """Write the next shard, then the index that names it."""
        name = f"shard-{self.shards:05d}.safetensors"
        tensors = {"trajectory": batch.trajectory, "support": batch.support, "classes": batch.classes}
        if batch.base is not None:
            tensors["base"] = batch.base
        write_safetensors(self._path / name, tensors, {"format": str(FORMAT)})
        sha = digest((self._path / name).read_bytes())
        self._shards.append({"file": name, "tasks": len(batch.trajectory), "digest": sha})
        self._write_index()

    def _whole(self, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The shards up to the first that is missing, damaged, or shorter than it is to be now."""
        for number, shard in enumerate(shards):
            file = self._path / shard["file"]
            short = shard["tasks"] < len(self.expected(number))
            if short or not file.exists() or digest(file.read_bytes()) != shard["digest"]:
                return shards[:number]
        return shards

    def _write_index(self) -> None:
        index = {
            "format": FORMAT,
            "digest": settings_digest(self._settings),
            "settings": self._settings,
            "tasks": self._tasks,
            "shards": self._shards,
        }
        write_json(self._path / INDEX, index)


class Trajectories:
    """Reads a store, whole or still growing; each shard is checked against its digest as it is read.

    Args:
        path: the store's folder.

    Raises:
        DataMissing: there is no store at `path`.
        DamagedFile: a file is not what the index says.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._shards: list[dict[str, Tensor]] = []
        self._place: list[tuple[int, int]] = []
        self.settings: dict[str, Any] = {}
        self.tasks = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._place)

    @property
    def waypoints(self) -> int:
        """m; a trajectory has m + 1 of them."""
        return int(self.settings["waypoints"])

    @property
    def complete(self) -> bool:
        """Whether all tasks that were asked for are there."""
        return len(self) >= self.tasks

    def refresh(self) -> int:
        """Read the shards that were added since; how many tasks are new."""
        index, before = read_index(self.path), len(self)
        if self.settings and index["settings"] != self.settings:
            raise DamagedFile(f"the store at {self.path} was replaced by one of other settings; open it anew")
        self.settings, self.tasks = index["settings"], index["tasks"]
        for number, shard in enumerate(index["shards"][len(self._shards) :], start=len(self._shards)):
            self._shards.append(self._read(shard))
            self._place += [(number, row) for row in range(shard["tasks"])]
        return len(self) - before

    def batch(self, indices: Tensor | list[int] | range) -> TrajectoryBatch:
        """The tasks of these numbers, 0..len - 1, in their order."""
        places = [self._place[int(index)] for index in indices]
        return TrajectoryBatch(
            **{name: torch.stack([self._shards[s][name][row] for s, row in places]) for name in self._shards[0]}
        )

    def _read(self, shard: dict[str, Any]) -> dict[str, Tensor]:
        what = f"shard {shard['file']} of the store {self.path}"
        try:
            content = (self.path / shard["file"]).read_bytes()
        except OSError as error:
            raise DamagedFile(f"{what} cannot be read: {error.strerror}; prepare again to replace it") from error
        if digest(content) != shard["digest"]:
            raise DamagedFile(f"{what} does not have the digest that the index gives; prepare again to replace it")
        tensors, _ = read_safetensors(content, what)
        if any(len(tensor) != shard["tasks"] for tensor in tensors.values()):
            raise DamagedFile(f"{what} does not hold {shard['tasks']} tasks; prepare again to replace it")
        return tensors


def settings_digest(settings: dict[str, Any]) -> str:
    """SHA-256 over the settings, independent of the order of their keys."""
    return digest(json.dumps(settings, sort_keys=True).encode())


def read_index(path: Path) -> dict[str, Any]:
    """The index of the store at `path`, checked against its own digest."""
    file = Path(path) / INDEX
    if not file.exists():
        raise DataMissing(f"no store of trajectories at {path}: it has no {INDEX}; make one with `ltdi prepare`")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        known = index["format"] == FORMAT and index["digest"] == settings_digest(index["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{file} is not the index of a store: {error!r}; remove the folder") from error
    if not known:
        raise DamagedFile(f"{file} has another format than {FORMAT}, or a wrong digest; remove the folder")
    return index


def refuse_other_settings(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises InvalidConfig where the two differ."""
    keys = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
    if keys:
        differences = ", ".join(f"{key} {there.get(key)!r}, now {wanted.get(key)!r}" for key in keys)
        raise InvalidConfig(
            f"the store at {path} was made with other settings ({differences}); "
            "give another folder, remove this one, or take its settings"
        )
