"""mini-ImageNet: 100 classes of photographs (Vinyals et al., 2016; split of Ravi and Larochelle, 2017)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltdi.errors import DataMissing
from ltdi.images import photo_square
from training.data.dataset import ClassImages

PARTS = ("train", "val", "test")
PACKED_NAME = "mini_imagenet_84.npz"


def load_mini_imagenet(data: Path, part: str, image_size: int = 48) -> ClassImages:
    """One part of the split.

    Args:
        data: a folder with `train.csv`, `val.csv` and `test.csv` (columns `filename` and `label`) beside a folder
            `images` that holds the files, or a folder for each label in it; or a packed `mini_imagenet_84.npz`
            (or a folder that holds one).
        part: `train` (64 classes), `val` (16) or `test` (20).
        image_size: side in pixels.

    Returns:
        Images `[classes, images, 3, image_size, image_size]`, uint8.

    Raises:
        DataMissing: neither form lies at `data`, or a listed file is missing.
    """
    data = Path(data)
    packed = data if data.is_file() else data / PACKED_NAME
    if packed.is_file():
        return _read_packed(packed, PARTS.index(part), image_size)
    if (data / f"{part}.csv").is_file():
        return _read_folder(data, part, image_size)
    raise DataMissing(
        f"no mini-ImageNet at {data}: give a folder with train.csv, val.csv, test.csv and images/, or a packed {PACKED_NAME}",
        field="data",
    )


def _read_packed(path: Path, part: int, image_size: int) -> ClassImages:
    with np.load(path) as pack:
        blob, offsets, label = pack["blob"], pack["offsets"], pack["label"]
        split, names = pack["class_split"], pack["class_name"]
    classes = np.flatnonzero(split == part)
    images = [
        torch.stack([decode(blob[offsets[i] : offsets[i + 1]].tobytes(), image_size) for i in np.flatnonzero(label == c)])
        for c in classes
    ]
    return even([str(names[c]) for c in classes], images)


def _read_folder(data: Path, part: str, image_size: int) -> ClassImages:
    with (data / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["label"], row["filename"]) for row in csv.DictReader(file)]
    names = list(dict.fromkeys(label for label, _ in rows))
    images = [
        torch.stack([decode(_find(data, label, file), image_size) for label, file in rows if label == name])
        for name in names
    ]
    return even(names, images)


def _find(data: Path, label: str, file: str) -> bytes:
    for path in (data / "images" / file, data / "images" / label / file):
        if path.is_file():
            return path.read_bytes()
    raise DataMissing(f"mini-ImageNet at {data} lists {file} of {label}, which is not under images/", field="data")


def decode(file: bytes, size: int) -> Tensor:
    """An encoded image as `[3, size, size]`, uint8: the square in its middle, resized."""
    with Image.open(io.BytesIO(file)) as image:
        return photo_square(image.convert("RGB"), size)


def even(names: list[str], images: list[Tensor]) -> ClassImages:
    """Classes cut to as many images as the smallest has."""
    fewest = min(len(own) for own in images)
    return ClassImages(torch.stack([own[:fewest] for own in images]), names)
