"""Readers of photographs on small made files in the forms that their owners publish."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ltdi.errors import DataMissing
from training.configs import experiment
from training.configs.domains import DOMAIN_EXPERIMENTS
from training.data.mini_imagenet import load_mini_imagenet
from training.data.photos import load_cifar_fs, load_domainnet, load_pacs
from training.domains.images import load_domains

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


def write(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 12), colour).save(path)


def test_pacs_has_a_class_for_each_domain_and_class_and_leaves_domains_out(tmp_path: Path) -> None:
    for domain, light in (("photo", 50), ("sketch", 90)):
        for n, name in enumerate(("dog", "horse")):
            for i in range(2 + n):
                write(tmp_path / domain / name / f"{i}.png", (light, n, 0))
    data = load_pacs(tmp_path, image_size=6)
    assert data.names == ["photo/dog", "photo/horse", "sketch/dog", "sketch/horse"]
    assert data.images.shape == (4, 2, 3, 6, 6) and data.groups.tolist() == [0, 0, 1, 1]
    only = load_pacs(tmp_path, image_size=6, domains=["sketch"])
    assert only.names == ["sketch/dog", "sketch/horse"] and torch.equal(only.images, data.images[2:])
    with pytest.raises(DataMissing, match="no PACS"):
        load_pacs(tmp_path / "photo", domains=["sketch"])


@pytest.mark.parametrize("form", ["binary", "torchvision"])
def test_cifar_fs_takes_both_parts_of_the_listed_classes(form: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cifar_fs_splits.json").write_text('{"train": ["bee"], "val": ["apple"], "test": ["cat"]}')
    label, light = np.array([0, 1, 1, 0]), np.array([10, 20, 30, 40])
    pixels = np.broadcast_to(light[:, None, None, None], (4, 3, 32, 32)).astype(np.uint8)
    if form == "binary":
        (tmp_path / "cifar-100-binary").mkdir()
        (tmp_path / "cifar-100-binary" / "fine_label_names.txt").write_text("apple\nbee\n")
        rows = np.column_stack([np.zeros(4), label, pixels.reshape(4, -1)]).astype(np.uint8)
        for name, own in (("train", rows[:2]), ("test", rows[2:])):
            own.tofile(tmp_path / "cifar-100-binary" / f"{name}.bin")
    else:
        torchvision = pytest.importorskip("ltdi.torchvision_ops").import_torchvision()

        def made(root: Path, train: bool, download: bool) -> SimpleNamespace:
            own = slice(0, 2) if train else slice(2, 4)
            data = pixels[own].transpose(0, 2, 3, 1)
            return SimpleNamespace(data=data, targets=label[own].tolist(), classes=["apple", "bee"])

        monkeypatch.setattr(torchvision.datasets, "CIFAR100", made)
    data = load_cifar_fs(tmp_path, "train", image_size=16)
    assert data.names == ["bee"] and data.images[0, :, 0, 0, 0].tolist() == [20, 30]
    assert experiment("cifar-fs").load(tmp_path, "train").images.shape[-1] == experiment("cifar-fs").body.image_size
    with pytest.raises(DataMissing, match="no class 'cat'"):
        load_cifar_fs(tmp_path, "test")


def test_cifar_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no class list"):
        load_cifar_fs(tmp_path, "train")
    (tmp_path / "cifar_fs_splits.json").write_text('{"train": []}')
    with pytest.raises(DataMissing, match="download=True"):
        load_cifar_fs(tmp_path, "train")


def test_domainnet_reads_its_lists(tmp_path: Path) -> None:
    lines = {"train": ["clipart/ant/1.png 0", "clipart/bus/1.png 1"], "test": ["clipart/ant/2.png 0", "clipart/bus/2.png 1"]}
    for part, own in lines.items():
        (tmp_path / f"clipart_{part}.txt").write_text("\n".join(own) + "\n")
        for line in own:
            write(tmp_path / line.split()[0], (int(line.split("/")[2][0]), 0, 0))
    data = load_domainnet(tmp_path, "clipart", image_size=6)
    assert data.names == ["clipart/ant", "clipart/bus"] and data.images[:, :, 0, 0, 0].tolist() == [[1, 2], [1, 2]]
    assert load_domainnet(tmp_path, "clipart", 6, most=1).images.shape[1] == 1
    (tmp_path / "clipart/bus/2.png").unlink()
    with pytest.raises(DataMissing, match=r"lists clipart/bus/2\.png"):
        load_domainnet(tmp_path, "clipart")
    with pytest.raises(DataMissing, match=r"no list real_train\.txt"):
        load_domainnet(tmp_path, "real")


def test_domains_of_domainnet_keep_the_classes_that_all_have(tmp_path: Path) -> None:
    assert DOMAIN_EXPERIMENTS["domainnet"].source == "domainnet"
    for number, (domain, names) in enumerate({"clipart": "ab", "real": "abc", "sketch": "abd"}.items(), 1):
        for part, count in (("train", 2), ("test", number)):
            lines = [f"{domain}/{name}/{part}{i}.png {ord(name)}" for name in names for i in range(count)]
            (tmp_path / f"{domain}_{part}.txt").write_text("\n".join(lines))
            for line in lines:
                write(tmp_path / line.split()[0], (10 * number, 0, 0))
    found = load_domains(tmp_path, 6, "domainnet")
    assert found.domains == ("clipart", "real", "sketch") and found.classes == ("a", "b")
    assert [len(found.images["sketch"][row]) for row in range(2)] == [5, 5] and int(found.images["real"][0][0, 0, 0, 0]) == 20
    (tmp_path / "real_train.txt").unlink()
    with pytest.raises(DataMissing, match="lists of 2 domains"):
        load_domains(tmp_path, 6, "domainnet")
