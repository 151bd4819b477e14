"""The digits that heads are measured on away from their bundle's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltdi.errors import DataMissing
from training.data.digits import KANNADA, load_digits, load_kannada


def test_scikit_learn_s_digits_come_as_150_inked_squares_of_each(tmp_path: Path) -> None:
    digits = load_digits(tmp_path)
    assert digits.images.shape == (10, 150, 28, 28) and digits.names == list("0123456789")
    assert digits.images[:, :, 0].float().mean() < 5 < digits.images.float().mean()


def test_a_packed_file_of_kannada_digits_is_read_by_class(tmp_path: Path) -> None:
    label = np.tile(np.arange(10), 160).astype(np.uint8)
    images = np.zeros((1600, 28, 28), np.uint8)
    images[:, 10, 10] = label * 20
    np.savez(tmp_path / KANNADA, images=images, label=label)
    kannada = load_kannada(tmp_path)
    assert kannada.images.shape == (10, 150, 28, 28)
    assert (kannada.images[3, :, 10, 10] == 60).all()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=KANNADA):
        load_kannada(tmp_path)
