"""Further photographs as their owners publish them: CIFAR-10, CIFAR-FS, PACS and DomainNet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ltdi.errors import DataMissing
from ltdi.images import prepare_photos
from training.data.dataset import ClassImages
from training.data.mini_imagenet import decode, even

CIFAR10_PACKED = "cifar10_sample.npz"
PACS_PACKED = "pacs_84.npz"
CIFAR_BINARY = "cifar-100-binary"
CIFAR_LIST = "cifar_fs_splits.json"
DOMAINNET_MOST = 50


def load_cifar10(data: Path, image_size: int = 48) -> ClassImages:
    """The ten classes of CIFAR-10 (Krizhevsky, 2009) from a packed `cifar10_sample.npz`, 500 of each."""
    names, images = _read_blob(data, CIFAR10_PACKED, image_size)
    return even(names, images)


def load_pacs(data: Path, image_size: int = 48, domains: Sequence[str] = ()) -> ClassImages:
    """PACS (Li et al., 2017): seven classes in four domains, a class for each pair, `domain/class`.

    Args:
        data: the folder `PACS` (or `kfold`) with a folder for each domain and in it one for each class, or one that holds
            a packed `pacs_84.npz`.
        domains: which; all where empty.

    Raises:
        DataMissing: neither form lies at `data`.
    """
    found = read_pacs(data, image_size, domains)
    return even(list(found), list(found.values()))


def read_pacs(data: Path, image_size: int = 48, domains: Sequence[str] = ()) -> dict[str, Tensor]:
    """All images of PACS by `domain/class`, `[M, 3, image_size, image_size]` each, M as the data set has it; else as `load_pacs`."""
    if (data / PACS_PACKED).is_file():
        names, images = _read_blob(data, PACS_PACKED, image_size, grouped="domain")
    else:
        names, images = _read_tree(data, image_size)
    kept = {name: own for name, own in zip(names, images, strict=True) if not domains or name.split("/")[0] in domains}
    if not kept:
        raise DataMissing(
            f"no PACS at {data}: give a folder domain/class/file for each of its domains, or a packed {PACS_PACKED}",
            field="data",
        )
    return kept


def _read_blob(data: Path, name: str, size: int, grouped: str = "") -> tuple[list[str], list[Tensor]]:
    if not (data / name).is_file():
        raise DataMissing(f"no {name} at {data}", field="data")
    with np.load(data / name) as pack:
        blob, offsets, label = pack["blob"], pack["offsets"], pack["label"].astype(int)
        names = [str(one) for one in pack["class_names"]]
        if grouped:
            label = label + len(names) * pack[grouped].astype(int)
            names = [f"{group}/{one}" for group in pack[f"{grouped}_names"] for one in names]
    rows = [np.flatnonzero(label == place) for place in range(len(names))]
    return names, [
        torch.stack([decode(blob[offsets[i] : offsets[i + 1]].tobytes(), size) for i in own]) for own in rows
    ]


def _read_tree(data: Path, size: int) -> tuple[list[str], list[Tensor]]:
    names, images = [], []
    for folder in sorted(path for path in data.glob("*/*") if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        if files:
            names.append(f"{folder.parent.name}/{folder.name}")
            images.append(torch.stack([decode(file.read_bytes(), size) for file in files]))
    return names, images


def load_cifar_fs(data: Path, part: str, image_size: int = 48) -> ClassImages:
    """One part of CIFAR-FS (Bertinetto et al., 2019): classes of CIFAR-100, its training and test images together.

    Args:
        data: holds the folder `cifar-100-binary` of the binary version, or `cifar-100-python` as `torchvision.datasets.CIFAR100`
            leaves it, and the class list `cifar_fs_splits.json` (keys `train`, `val`, `test`).

    Raises:
        DataMissing: the images or the list are not there.
    """
    if not (data / CIFAR_LIST).is_file():
        raise DataMissing(f"no class list at {data / CIFAR_LIST}", field="data")
    wanted = json.loads((data / CIFAR_LIST).read_text())[part]
    names, label, pixels = _read_cifar_binary(data) if (data / CIFAR_BINARY).is_dir() else _read_cifar_torchvision(data)
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise DataMissing(f"CIFAR-100 at {data} has no class {missing[0]!r} of the list", field="data")
    return even(wanted, [prepare_photos(pixels[label == names.index(name)], image_size) for name in wanted])


def _read_cifar_binary(data: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, fine labels `[M]` and pixels `[M, 3, 32, 32]`: rows of two label bytes and 3072 of an image."""
    folder = data / CIFAR_BINARY
    rows = np.concatenate([np.fromfile(folder / file, dtype=np.uint8).reshape(-1, 3074) for file in ("train.bin", "test.bin")])
    names = (folder / "fine_label_names.txt").read_text().split()
    return names, rows[:, 1].astype(int), rows[:, 2:].reshape(-1, 3, 32, 32)


def _read_cifar_torchvision(data: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    from ltdi.torchvision_ops import import_torchvision

    kind = import_torchvision().datasets.CIFAR100
    try:
        parts = [kind(data, train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise DataMissing(
            f"no CIFAR-100 at {data}: give the folder that torchvision.datasets.CIFAR100(root, download=True) filled, "
            f"or one with {CIFAR_BINARY}/",
            field="data",
        ) from error
    pixels = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    return list(parts[0].classes), np.concatenate([part.targets for part in parts]), pixels


def read_domainnet(data: Path, image_size: int = 48, most: int = 300) -> dict[str, Tensor]:
    """Every domain of DomainNet whose lists are at `data`, by `domain/class`, `[M, 3, image_size, image_size]` each, of classes that all have.

    Raises:
        DataMissing: fewer than three domains have lists, or a listed file is not there.
    """
    domains = sorted(path.name.removesuffix("_train.txt") for path in data.glob("*_train.txt"))
    files = [_listed_by_class(data, domain) for domain in domains]
    if len(domains) < 3:
        raise DataMissing(f"lists of {len(domains)} domains at {data}; give DOMAIN_train.txt and DOMAIN_test.txt of three or more", field="data")
    shared = set.intersection(*({name.split("/")[1] for name in own} for own in files))
    return {
        name: torch.stack([_listed(data, file, image_size) for file in own[name][:most]])
        for own in files
        for name in sorted(own)
        if name.split("/")[1] in shared
    }


def load_domainnet(data: Path, domain: str, image_size: int = 48, most: int = DOMAINNET_MOST) -> ClassImages:
    """One domain of DomainNet (Peng et al., 2019), `domain/class`, from its lists `DOMAIN_train.txt` and `DOMAIN_test.txt`.

    Args:
        data: holds the lists and the folders of images that their lines name, `domain/class/file number`.
        most: images a class, the first of the lists.

    Raises:
        DataMissing: no list of this domain, or a listed file is not there.
    """
    files = _listed_by_class(data, domain)
    names = sorted(files)
    return even(names, [torch.stack([_listed(data, file, image_size) for file in files[name][:most]]) for name in names])


def _listed_by_class(data: Path, domain: str) -> dict[str, list[str]]:
    """The files of a domain's lists by `domain/class`."""
    lists = [data / f"{domain}_{part}.txt" for part in ("train", "test")]
    lines = [line.split()[0] for path in lists if path.is_file() for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        raise DataMissing(f"no list {lists[0].name} at {data}", field="data")
    files: dict[str, list[str]] = {}
    for line in lines:
        files.setdefault("/".join(line.split("/")[:2]), []).append(line)
    return files


def _listed(data: Path, file: str, size: int) -> Tensor:
    if not (data / file).is_file():
        raise DataMissing(f"DomainNet at {data} lists {file}, which is not there", field="data")
    return decode((data / file).read_bytes(), size)
