"""Omniglot in both of its forms: the folders that torchvision leaves, and the packed file."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltdi.cli import main
from ltdi.errors import DataMissing
from training.data.omniglot import DRAWINGS, FOLDERS, load_omniglot, load_omniglot_background, load_oneshot_runs

CHARACTERS = json.loads((files("training") / "splits" / "omniglot_vinyals.json").read_text())["val"]
SIDE = 105


@pytest.fixture(scope="module")
def ink() -> np.ndarray:
    """Made drawings of the validation characters, `[172, 20, 105, 105]`, True where there is ink; no two alike."""
    coarse = np.random.default_rng(0).random((len(CHARACTERS), DRAWINGS, 15, 15)) < 0.3
    return coarse.repeat(7, axis=2).repeat(7, axis=3)


@pytest.fixture(scope="module")
def downloaded(ink: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that torchvision unpacks: black ink on white, mode 1, a folder for each character."""
    root = tmp_path_factory.mktemp("downloaded")
    for folder in FOLDERS:
        (root / "omniglot-py" / folder).mkdir(parents=True)
    for place, name in enumerate(CHARACTERS):
        folder = root / "omniglot-py" / FOLDERS[place % 2] / name
        folder.mkdir(parents=True)
        for drawer in range(DRAWINGS):
            Image.fromarray(~ink[place, drawer]).save(folder / f"{place + 1:04d}_{drawer + 1:02d}.png")
    return root


@pytest.fixture(scope="module")
def packed(ink: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same drawings in one file, in no order at all."""
    path = tmp_path_factory.mktemp("packed") / "omniglot.npz"
    alphabets = sorted({name.split("/")[0] for name in CHARACTERS})
    class_id, drawer = np.divmod(np.random.default_rng(1).permutation(ink.shape[0] * DRAWINGS), DRAWINGS)
    np.savez_compressed(
        path,
        images_bits=np.packbits(ink[class_id, drawer].reshape(len(class_id), -1), axis=1),
        class_id=class_id,
        drawer=drawer + 1,
        class_alphabet=np.array([alphabets.index(name.split("/")[0]) for name in CHARACTERS]),
        class_character=np.array([name.split("/")[1] for name in CHARACTERS]),
        alphabet_names=np.array(alphabets),
    )
    return path


def test_folders_and_packed_file_give_the_same_images(downloaded: Path, packed: Path) -> None:
    from_folders, from_file = load_omniglot(downloaded, "val"), load_omniglot(packed, "val")
    assert torch.equal(from_folders.images, from_file.images)
    assert from_folders.names == from_file.names


def test_the_folder_itself_and_the_folder_above_are_the_same_data(downloaded: Path, packed: Path) -> None:
    assert torch.equal(load_omniglot(downloaded / "omniglot-py", "val").images, load_omniglot(packed.parent, "val").images)


def test_images_are_the_drawings_with_ink_255_averaged_over_boxes(downloaded: Path, ink: np.ndarray) -> None:
    read = load_omniglot(downloaded, "val", image_size=15).images[: len(CHARACTERS)]
    assert torch.equal(read, torch.from_numpy(ink[:, :, 3::7, 3::7]) * torch.tensor(255, dtype=torch.uint8))


def test_each_rotation_of_a_character_is_a_class_of_its_own(packed: Path) -> None:
    read = load_omniglot(packed, "val")
    count = len(CHARACTERS)
    assert read.images.shape == (4 * count, DRAWINGS, 28, 28)
    assert read.names[0] == f"{CHARACTERS[0]}@0" and read.names[-1] == f"{CHARACTERS[-1]}@270"
    for turns in range(4):
        turned = read.images[turns * count : (turns + 1) * count]
        assert torch.equal(turned, torch.rot90(read.images[:count], turns, (2, 3)))


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_reads_the_same_drawings_from_the_tree(downloaded: Path, ink: np.ndarray) -> None:
    """Its check of the zip files is left out: they are of the real data."""
    from ltdi.torchvision_ops import import_torchvision

    class Unpacked(import_torchvision().datasets.Omniglot):
        def _check_integrity(self) -> bool:
            return True

    place = {name: i for i, name in enumerate(CHARACTERS)}
    for background in (True, False):
        data = Unpacked(downloaded, background=background)
        assert len(data) == DRAWINGS * len(CHARACTERS) // 2
        for index in range(0, len(data), 211):
            image, character = data[index]
            drawer = int(data._flat_character_images[index][0][-6:-4]) - 1
            assert np.array_equal(np.asarray(image) == 0, ink[place[data._characters[character]], drawer])


def test_data_that_is_not_there_names_both_ways_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"download=True.*background=False.*omniglot\.npz") as error:
        load_omniglot(tmp_path, "val")
    assert error.value.field == "data"


def test_a_part_whose_characters_are_not_all_there_is_refused(packed: Path) -> None:
    with pytest.raises(DataMissing, match=r"0 drawings of .*/character\d\d, expected 20; remove it and get it again"):
        load_omniglot(packed, "train")


def test_a_character_that_lost_a_drawing_is_named(downloaded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(downloaded, copy)
    next((copy / "omniglot-py" / FOLDERS[0] / CHARACTERS[0]).glob("*.png")).unlink()
    with pytest.raises(DataMissing, match=f"19 drawings of {CHARACTERS[0]}"):
        load_omniglot(copy, "val")


def test_a_command_without_its_data_is_a_mistake_of_the_user(tmp_path: Path, capsys) -> None:
    command = ["prepare", "--config", "omniglot", "--data", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: no Omniglot at")


def test_parts_by_alphabet_are_whole_and_share_none() -> None:
    parts = json.loads((files("training") / "splits" / "omniglot_alphabets.json").read_text())
    assert [len(parts[part]) for part in ("train", "val", "test")] == [25, 5, 20]
    assert [sum(parts[part].values()) for part in ("train", "val", "test")] == [792, 172, 659]
    assert len({name for part in parts.values() for name in part}) == 50


def test_the_background_split_is_by_alphabets_without_rotations(tmp_path: Path) -> None:
    sizes = json.loads((files("training") / "splits" / "omniglot_alphabets.json").read_text())["val"]
    names = [f"{alphabet}/character{n + 1:02d}" for alphabet, count in sizes.items() for n in range(count)]
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    blank = Image.new("1", (SIDE, SIDE), 1)
    for name in names:
        (tmp_path / FOLDERS[0] / name).mkdir(parents=True)
        for drawer in range(DRAWINGS):
            blank.save(tmp_path / FOLDERS[0] / name / f"{drawer:02d}.png")
    data = load_omniglot_background(tmp_path, "val", image_size=8)
    assert data.images.shape == (172, DRAWINGS, 8, 8) and data.names == names
    assert data.groups.bincount().tolist() == [sizes[alphabet] for alphabet in sorted(sizes)]


def test_packed_runs_and_unzipped_runs_are_the_same(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    drawings = chance.random((2, 20, 20, SIDE, SIDE)) < 0.2  # training or test, run, class
    target = np.stack([chance.permutation(20) for _ in range(20)])
    for run in range(20):
        folder = tmp_path / "all_runs" / f"run{run + 1:02d}"
        lines = []
        for part, name in enumerate(("training", "test")):
            (folder / name).mkdir(parents=True)
            for item in range(20):
                Image.fromarray(~drawings[part, run, item]).save(folder / name / f"{item:02d}.png")
        lines = [f"run{run + 1:02d}/test/{i:02d}.png run{run + 1:02d}/training/{target[run, i]:02d}.png" for i in range(20)]
        (folder / "class_labels.txt").write_text("\n".join(lines) + "\n")
    train_bits, test_bits = (np.packbits(part.reshape(20, 20, -1), axis=2) for part in drawings)
    (tmp_path / "packed").mkdir()
    np.savez(
        tmp_path / "packed" / "omniglot_oneshot_runs.npz", train_bits=train_bits, test_bits=test_bits, test_label=target
    )
    unzipped, packed = load_oneshot_runs(tmp_path, 21), load_oneshot_runs(tmp_path / "packed", 21)
    for part in ("support", "queries", "target"):
        assert torch.equal(getattr(unzipped, part), getattr(packed, part)), part
    assert torch.equal(packed.target, torch.from_numpy(target))
    with pytest.raises(DataMissing, match="all_runs/"):
        load_oneshot_runs(tmp_path / "all_runs")
