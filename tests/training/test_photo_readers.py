"""mini-ImageNet in both of its forms, made small: a folder of files with the split lists, and the packed file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltdi.errors import DataMissing
from training.data.mini_imagenet import load_mini_imagenet

COLOURS = {"n01": (250, 10, 10), "n02": (10, 250, 10), "n03": (10, 10, 250)}
PART_OF = {"n01": "train", "n02": "train", "n03": "test"}


def photo(label: str, number: int) -> Image.Image:
    """A wide image of a class's colour, black at both sides of the square in its middle."""
    image = Image.new("RGB", (28, 20))
    image.paste(COLOURS[label], (4, 0, 24, 20))
    image.putpixel((4 + number, 0), (255, 255, 255))
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As learn2learn and others lay it out; the last class has a folder of its own."""
    (tmp_path / "images" / "n03").mkdir(parents=True)
    for part in ("train", "val", "test"):
        rows = [f"{label}{i}.png,{label}" for label, own in PART_OF.items() if own == part for i in range(3)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    for label in PART_OF:
        for i in range(3):
            photo(label, i).save(tmp_path / "images" / ("n03" if label == "n03" else "") / f"{label}{i}.png")
    return tmp_path


def test_a_folder_gives_the_square_in_the_middle_by_class(folder: Path) -> None:
    data = load_mini_imagenet(folder, "train", image_size=10)
    assert data.names == ["n01", "n02"] and data.images.shape == (2, 3, 3, 10, 10)
    middle = data.images[:, :, :, 5, 5]
    assert torch.equal(middle, torch.tensor(list(COLOURS.values())[:2], dtype=torch.uint8)[:, None].expand(-1, 3, -1))
    assert data.images[0, :, 2, 2].float().mean() > 5 and load_mini_imagenet(folder, "test", 10).names == ["n03"]


def test_the_packed_file_gives_the_same_images(folder: Path, tmp_path: Path) -> None:
    order = [(label, i) for i in range(3) for label in COLOURS]  # classes in turn
    files = []
    for label, i in order:
        buffer = io.BytesIO()
        photo(label, i).save(buffer, "PNG")
        files.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    np.savez(
        tmp_path / "mini_imagenet_84.npz",
        blob=np.concatenate(files),
        offsets=np.cumsum([0, *(len(file) for file in files)]),
        label=np.array([list(COLOURS).index(label) for label, _ in order], dtype=np.uint8),
        class_split=np.array([0, 0, 2], dtype=np.uint8),
        class_name=np.array(list(COLOURS)),
    )
    from_pack = load_mini_imagenet(tmp_path / "mini_imagenet_84.npz", "train", image_size=10)
    (tmp_path / "mini_imagenet_84.npz").rename(tmp_path / "elsewhere.npz")
    assert torch.equal(from_pack.images, load_mini_imagenet(folder, "train", image_size=10).images)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "n012.png").unlink()
    with pytest.raises(DataMissing, match=r"lists n012\.png of n01"):
        load_mini_imagenet(folder, "train")
    with pytest.raises(DataMissing, match="give a folder with"):
        load_mini_imagenet(tmp_path / "images", "train")
