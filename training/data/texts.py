"""Text classification sets: packed as JSON lines, or a file of one's own; and the names of their classes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ltdi.errors import DataMissing

OUTSIDE = frozenset({"oos", "NO_NODES_DETECTED"})  # labels of what belongs to no class
TEST_SHARE = 0.15  # of a set without a test part of its own


@dataclass(frozen=True)
class TextSet:
    """A set of labelled texts; a text that is repeated within a part stands once.

    Args:
        name: of the set.
        texts: M of them.
        labels: one for each; the class, or a label of `OUTSIDE`.
        parts: one for each: `train`, `test`, or another that tasks do not use.
        names: label to name, written for people; the labels that a task may hold.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    parts: tuple[str, ...]
    names: dict[str, str]

    @property
    def raw_names(self) -> dict[str, str]:
        """Label to the label itself, its separators as spaces."""
        return {label: spaced(label) for label in self.names}


def spaced(label: str) -> str:
    """A label with its separators as spaces."""
    for separator, word in (("_", " "), ("-", " "), (":", " "), ("#", " and ")):
        label = label.replace(separator, word)
    return " ".join(label.split())


def load_texts(data: Path, name: str, most: int | None = None) -> TextSet:
    """The set `NAME.jsonl.gz` under `data` or `data/text`, each line with `text`, `label`, `split`.

    Args:
        most: rows, evenly spaced, where a set has more and is only trained on.

    Raises:
        DataMissing: no such file.
    """
    path = next((p for p in (data / f"{name}.jsonl.gz", data / "text" / f"{name}.jsonl.gz") if p.is_file()), None)
    if path is None:
        raise DataMissing(f"text set {name!r} is not under {data}; it is the file {name}.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if most is not None and len(rows) > most:
        rows = [rows[i * len(rows) // most] for i in range(most)]
    return of_rows(name, [(row["text"], str(row["label"]), row["split"]) for row in rows], written_names(name))


def of_rows(name: str, rows: Sequence[tuple[str, str, str]], names: dict[str, str]) -> TextSet:
    """A set from texts, labels and splits; where there is no test split, a seventh is drawn by the text itself."""
    tested = any(split == "test" for _, _, split in rows)
    seen: set[tuple[str, str]] = set()
    kept = []
    for text, label, split in rows:
        part = "train" if split in ("train", "all") else split
        if not tested and part == "train" and zlib.crc32(text.lower().encode()) % 1000 < 1000 * TEST_SHARE:
            part = "test"
        if (text.lower(), part) not in seen:
            seen.add((text.lower(), part))
            kept.append((text, label, part))
    texts, labels, parts = zip(*kept, strict=True)
    return TextSet(name, texts, labels, parts, names)


def written_names(name: str) -> dict[str, str]:
    """The file of names of a set, written before anything was measured on it."""
    file = files("training") / "names" / f"{name}.json"
    if not file.is_file():
        raise DataMissing(f"there is no file of names for the text set {name!r}; write training/names/{name}.json")
    return json.loads(file.read_text(encoding="utf-8"))
