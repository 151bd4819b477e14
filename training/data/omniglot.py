"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al., 2015; MIT)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ltdi.errors import DataMissing
from training.data.dataset import ClassImages

PARTS = ("train", "val", "test")
DRAWINGS = 20
PACKED_NAME = "omniglot.npz"
RUNS_NAME = "omniglot_oneshot_runs.npz"
FOLDERS = ("images_background", "images_evaluation")


def load_omniglot(data: Path, part: str, image_size: int = 28) -> ClassImages:
    """One part of the split of Vinyals et al. (2016), each rotation of a character a class of its own.

    Args:
        data: the folder given to `torchvision.datasets.Omniglot(root)`, its `omniglot-py` folder,
            or a packed `omniglot.npz` (or a folder that holds one).
        part: `train` (1028 characters), `val` (172) or `test` (423); times four rotations.
        image_size: side in pixels, resized by box averaging from 105.

    Raises:
        DataMissing: neither form lies at `data`, or it is not whole; the message says how to get it.
    """
    characters = json.loads((files("training") / "splits" / "omniglot_vinyals.json").read_text())[part]
    drawings = _read(Path(data), image_size)
    _check_whole(drawings, characters, data)
    upright = torch.stack([drawings[name] for name in characters])
    turned = torch.cat([torch.rot90(upright, turns, (2, 3)) for turns in range(4)])
    names = [f"{name}@{90 * turns}" for turns in range(4) for name in characters]
    return ClassImages(images=turned.contiguous(), names=names)


def load_omniglot_background(data: Path, part: str, image_size: int = 40) -> ClassImages:
    """One part of the split of Lake et al. (2015) by alphabets, no rotation added.

    Args:
        data: as for `load_omniglot`.
        part: `train` (25 of the 30 background alphabets), `val` (the other five), or `test` (the 20 evaluation alphabets).
        image_size: side in pixels, resized by box averaging from 105.

    Raises:
        DataMissing: as for `load_omniglot`.
    """
    split = json.loads((files("training") / "splits" / "omniglot_alphabets.json").read_text())[part]
    drawings = _read(Path(data), image_size)
    characters = [f"{alphabet}/character{n + 1:02d}" for alphabet, count in split.items() for n in range(count)]
    _check_whole(drawings, characters, data)
    return ClassImages(torch.stack([drawings[name] for name in characters]), characters)


@dataclass(frozen=True)
class OneShotRuns:
    """The official one-shot classification task: 20 runs of 20 characters of one alphabet.

    Args:
        support: `[20, 20, size, size]`, uint8: run, class.
        queries: `[20, 20, size, size]`: run, item.
        target: `[20, 20]`, the class of each item.
    """

    support: Tensor
    queries: Tensor
    target: Tensor


def load_oneshot_runs(data: Path, image_size: int = 40) -> OneShotRuns:
    """The official runs, from a packed `omniglot_oneshot_runs.npz` or a folder `all_runs` as its owner zips it.

    Raises:
        DataMissing: neither lies at `data`.
    """
    if (data / RUNS_NAME).is_file():
        return _read_packed_runs(data / RUNS_NAME, image_size)
    if (data / "all_runs").is_dir():
        runs = [_read_run(data / "all_runs", f"run{n:02d}", image_size) for n in range(1, 21)]
        return OneShotRuns(*(torch.stack(parts) for parts in zip(*runs, strict=True)))
    raise DataMissing(f"no one-shot runs at {data}: give a folder with all_runs/ or a packed {RUNS_NAME}", field="data")


def _read_packed_runs(path: Path, image_size: int) -> OneShotRuns:
    with np.load(path) as pack:
        support, queries, target = pack["train_bits"], pack["test_bits"], pack["test_label"]
    shown, asked = (
        torch.from_numpy(_shrink(bits.reshape(-1, bits.shape[-1]), image_size)).unflatten(0, bits.shape[:2])
        for bits in (support, queries)
    )
    return OneShotRuns(shown, asked, torch.from_numpy(target.astype(np.int64)))


def _read_run(root: Path, name: str, image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """One run: pairs of a test file and the training file of its class stand in `class_labels.txt`."""
    pairs = [line.split() for line in (root / name / "class_labels.txt").read_text().splitlines() if line.strip()]
    shown = sorted({train for _, train in pairs})
    read = [
        torch.from_numpy(np.stack([_resize(_ink(root / file), image_size) for file in files_]))
        for files_ in (shown, [test for test, _ in pairs])
    ]
    return read[0], read[1], torch.tensor([shown.index(train) for _, train in pairs])


def _read(data: Path, image_size: int) -> dict[str, Tensor]:
    """`Alphabet/characterNN` to its drawings, `[20, size, size]`, uint8, ink 255."""
    packed = data if data.is_file() else data / PACKED_NAME
    if packed.is_file():
        return _read_packed(packed, image_size)
    for root in (data / "omniglot-py", data):
        if all((root / folder).is_dir() for folder in FOLDERS):
            return _read_folders(root, image_size)
    raise DataMissing(
        f"no Omniglot at {data}: give the folder that torchvision.datasets.Omniglot(root, download=True) "
        f"filled for background=True and background=False, or a packed {PACKED_NAME}",
        field="data",
    )


def _check_whole(drawings: dict[str, Tensor], characters: list[str], data: Path) -> None:
    for name in characters:
        found = len(drawings.get(name, ()))
        if found != DRAWINGS:
            raise DataMissing(
                f"Omniglot at {data} has {found} drawings of {name}, expected {DRAWINGS}; remove it and get it again",
                field="data",
            )


def _read_packed(path: Path, image_size: int) -> dict[str, Tensor]:
    with np.load(path) as pack:
        bits, class_id, drawer = pack["images_bits"], pack["class_id"], pack["drawer"]
        alphabets, class_alphabet = pack["alphabet_names"], pack["class_alphabet"]
        names = [f"{alphabets[a]}/{c}" for a, c in zip(class_alphabet, pack["class_character"], strict=True)]
    order = np.lexsort((drawer, class_id))
    by_class = torch.from_numpy(_shrink(bits[order], image_size)).reshape(-1, DRAWINGS, image_size, image_size)
    return dict(zip(names, by_class, strict=True))


def _shrink(bits: np.ndarray, image_size: int) -> np.ndarray:
    """Packed drawings `[M, 1379]` as `[M, size, size]`, uint8, ink 255."""
    ink = np.unpackbits(bits, axis=1)[:, : 105 * 105].reshape(-1, 105, 105) * np.uint8(255)
    return np.stack([_resize(Image.fromarray(image), image_size) for image in ink])


def _read_folders(root: Path, image_size: int) -> dict[str, Tensor]:
    drawings = {}
    for folder in sorted(path for part in FOLDERS for path in (root / part).glob("*/character*")):
        images = [_resize(_ink(file), image_size) for file in sorted(folder.glob("*.png"))]
        if images:
            drawings[f"{folder.parent.name}/{folder.name}"] = torch.from_numpy(np.stack(images))
    return drawings


def _ink(file: Path) -> Image.Image:
    """Inverted before it is resized: averages of white and of ink round differently."""
    with Image.open(file) as image:
        return ImageOps.invert(image.convert("L"))


def _resize(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))
