"""Labelled texts and pairs of texts by source, each text in one source only."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ltdi.errors import DataMissing

OWNERS = ("sst2", "mr", "subj", "cr", "mpqa")  # a text that several of them hold stays with the first of them
TWINS = {"sst2": "mr", "mr": "sst2"}  # ... but what these two share is split between them
OPENING = 24  # letters; two texts of `OWNERS` that open with the same ones are taken for the same text
TEST_SHARE = 0.25  # of a source without a test part


@dataclass(frozen=True)
class Row:
    """A text or a pair with its label; `part` is `train` or `test`, `extra` what else the source says of it."""

    text: str
    second: str | None
    label: str
    part: str
    extra: str = ""


@cache
def source_rows(data: Path, name: str) -> tuple[Row, ...]:
    """The rows of a source without repeats, and without those that an earlier source of `OWNERS` holds.

    SST-2's sentences are MR's: 7 528 of its 9 601 stand in MR word for word, and 4 179 of SUBJ's subjective ones do.
    Left in, a task left out would be trained on under another name. What SST-2 and MR share goes to one or the other by
    a hash of the text: what MR alone holds are the sentences that SST-2's judges found neutral, too hard a set.

    Raises:
        DataMissing: no such file.
    """
    rows = [_row(record, name) for record in _records(data, name)]
    taken = _taken(data, name)
    kept: dict[str, Row] = {}
    for row in rows:
        key = _key(row.text) + "|" + _key(row.second or "")
        shared = bool(taken) and (_key(row.text) in taken or _opening(row.text) in taken)
        if key not in kept and (not shared or (name in TWINS and _owner(row.text) == name)):
            kept[key] = row
    tested = any(row.part == "test" for row in rows)
    return tuple(_split(row, tested) for row in kept.values())


def _records(data: Path, name: str) -> list[dict]:
    path = next((p for p in (data / f"{name}.jsonl.gz", data / "text" / f"{name}.jsonl.gz") if p.is_file()), None)
    if path is None:
        raise DataMissing(f"text set {name!r} is not under {data}; it is the file {name}.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _row(record: dict, name: str) -> Row:
    extra = record.get("domain") or record.get("label_coarse") or record.get("genre") or ""
    part = record["split"]
    if name in ("cola", "rte", "wnli") and part.startswith("validation"):  # their test labels are not public
        part = "test"
    return Row(record["text"], record.get("text2"), str(record["label"]), part, extra)


def _split(row: Row, tested: bool) -> Row:
    if tested:
        return replace(row, part="test" if row.part == "test" else "train")
    drawn = zlib.crc32(_key(row.text).encode()) % 1000 < 1000 * TEST_SHARE
    return replace(row, part="test" if drawn else "train")


@cache
def _taken(data: Path, name: str) -> frozenset[str]:
    earlier = OWNERS[: OWNERS.index(name)] if name in OWNERS else ()
    earlier = (TWINS[name],) if name in TWINS else earlier
    texts = [record["text"] for other in earlier for record in _records(data, other)]
    return frozenset(key for text in texts for key in (_key(text), _opening(text)))


def _owner(text: str) -> str:
    return sorted(TWINS)[zlib.crc32(_opening(text).encode()) % 2]


def _key(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def _opening(text: str) -> str:
    return _key(text)[:OPENING]
