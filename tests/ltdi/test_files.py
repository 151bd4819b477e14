"""Files that leave the process: whole or not at all, and never a pickle."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from ltdi.errors import DamagedFile
from ltdi.files import digest, parse_json, read_safetensors, safetensors_bytes, write_bytes, write_safetensors


def header(text: str, data: bytes = b"") -> bytes:
    """A safetensors file of a hand-written header."""
    return len(text.encode()).to_bytes(8, "little") + text.encode() + data


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a", b"old")
    write_bytes(tmp_path / "new" / "a", b"content")
    assert (tmp_path / "new" / "a").read_bytes() == b"content"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "a", "not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == b"old"
    (tmp_path / "folder" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        write_bytes(tmp_path / "folder", b"content")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "folder"]


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(2, 3).T, "a": torch.arange(3), "none": torch.zeros(0, 4)}
    write_safetensors(tmp_path / "t", tensors, {"words": "größer\n"})
    found, metadata = read_safetensors(tmp_path / "t", "file")
    assert metadata == {"words": "größer\n"}
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_the_order_of_tensors_and_metadata_changes_no_byte() -> None:
    tensors, metadata = {"b": torch.ones(2), "a": torch.arange(3)}, {str(i): str(i) for i in range(30)}
    content = safetensors_bytes(tensors, metadata)
    assert content == safetensors_bytes(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert all(torch.equal(value, tensors[name]) for name, value in load(content).items())


def test_a_header_of_any_length_is_read() -> None:
    """A length of 640 begins with the bytes of a pickle, one of 19 280 with those of a zip archive."""
    lengths = set()
    for letters in (*range(0, 1500, 8), *range(19_000, 19_400, 8)):
        content = safetensors_bytes({"a": torch.ones(1)}, {"x": "x" * letters})
        assert read_safetensors(content, "file")[1]["x"] == "x" * letters
        lengths.add(int.from_bytes(content[:8], "little"))
    assert {640, 896, 1152, 1408, 19_280} <= lengths


def archives() -> dict[str, bytes]:
    zipped, saved = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("data.pkl", "x")
    torch.save({"a": torch.ones(2)}, saved)
    pickles = {f"pickle {protocol}": pickle.dumps({"a": 1}, protocol) for protocol in range(2, 6)}
    return pickles | {"zip": zipped.getvalue(), "torch.save": saved.getvalue()}


@pytest.mark.parametrize("kind", archives())
def test_a_pickle_or_zip_is_not_opened(kind: str) -> None:
    with pytest.raises(DamagedFile, match="pickle or zip archive, not safetensors; it was not opened"):
        read_safetensors(archives()[kind], "file")


GOOD = save({"a": torch.ones(4)}, {"format": "x"})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00" * 7, b"\xff" * 64, GOOD[:-1], GOOD[:20], GOOD + b"\x00", pickle.dumps({"a": 1}, 0),
        header("{}x"), header('{"a": 5}'), header('{"__metadata__": {"a": 1}}'), header("[" * 5000),
        header('{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}', b"\x00" * 4),
        header('{"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}', b"\x00" * 4),
    ],
)  # fmt: skip
def test_what_is_no_whole_safetensors_file_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedFile, match="the file is not a whole safetensors file"):
        read_safetensors(content, "file")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    with pytest.raises(DamagedFile, match="tensor 'a' of the file holds NaN or infinity"):
        read_safetensors(save({"a": torch.tensor([1.0, value], dtype=dtype)}), "file")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint64])
def test_types_that_no_file_of_ours_holds_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DamagedFile, match=f"tensor 'a' of the file is {dtype}"):
        read_safetensors(save({"a": torch.zeros(2, dtype=dtype)}), "file")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match="the file cannot be read: No such file"):
        read_safetensors(tmp_path / "absent", "file")


def test_metadata_may_be_null() -> None:
    content = header('{"__metadata__": null, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"\x01")
    assert read_safetensors(content, "file")[1] == {}


def test_the_digest_tells_where_one_part_ends() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert len(digest(b"")) == 64


def test_json_nested_too_deep_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)
