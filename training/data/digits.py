"""Handwritten digits that no training sees: what heads are worth away from their bundle's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ltdi.errors import DataMissing
from ltdi.images import prepare_images
from training.data.dataset import ClassImages

MARGIN = 2  # a training character fills 64 % of its frame (median of the longer side), these digits all of it: 8 / 12
MOST, IMAGE_SIZE = 150, 28
KANNADA = "kannada_mnist_test.npz"


def framed(digits: np.ndarray) -> np.ndarray:
    """scikit-learn's digits `[M, 8, 8]` in 0..16 as grey images `[M, 12, 12]`, uint8, with a margin as drawings have."""
    return np.pad((digits / 16 * 255).astype(np.uint8), ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))


def load_digits(data: Path) -> ClassImages:
    """The ten digits that scikit-learn ships (UCI, 1998), 150 of each; `data` is not looked at."""
    from sklearn.datasets import load_digits as shipped

    found = shipped()
    return _by_class(framed(found.images), found.target)


def load_kannada(data: Path) -> ClassImages:
    """Ten Kannada digits (Prabhu, 2019), 150 of each of the official test part, from a packed file.

    Raises:
        DataMissing: `data` is neither the file nor a folder that holds it.
    """
    path = data if data.is_file() else data / KANNADA
    if not path.is_file():
        raise DataMissing(f"no {KANNADA} at {data}: give a folder that holds it, with `images` and `label`", field="data")
    packed = np.load(path)
    return _by_class(packed["images"], packed["label"])


def _by_class(images: np.ndarray, target: np.ndarray) -> ClassImages:
    rows = [prepare_images(images[np.flatnonzero(target == digit)[:MOST]], IMAGE_SIZE) for digit in range(10)]
    return ClassImages(torch.stack(rows), [str(digit) for digit in range(10)])
