"""What validation fitted, and the noise."""

from __future__ import annotations

import math

import pytest
import torch

from ltdi.errors import InvalidConfig
from ltdi.generator import Calibration, CalibrationRow, draw_noise

ROWS = Calibration((CalibrationRow(1, 0.2, temperature=2.0), CalibrationRow(4, 0.6), CalibrationRow(16, 1.0)))


def test_calibration_is_interpolated_in_the_logarithm_of_shots() -> None:
    found = ROWS.at(torch.tensor([[1, 2, 4], [8, 16, 100]]), "strength")
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.4, 0.6], [0.8, 1.0, 1.0]]))
    assert float(ROWS.at(torch.tensor(2), "temperature")) == pytest.approx(1.5)
    shots = (0, 1, 2, 3, 4, 8, 16, 100)
    assert [ROWS.once(k, "strength") for k in shots] == pytest.approx(ROWS.at(torch.tensor(shots), "strength").tolist())


def test_no_example_counts_as_one() -> None:
    assert float(ROWS.at(torch.tensor(0), "strength")) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (CalibrationRow(0, 1.0),),
        (CalibrationRow(5, 1.0), CalibrationRow(1, 1.0)),
        (CalibrationRow(1, 1.0), CalibrationRow(1, 0.5)),
        (CalibrationRow(1, math.inf),),
        (CalibrationRow(1, 1.0, baseline_temperature=-1.0),),
    ],
)
def test_impossible_calibrations_are_refused(rows: tuple[CalibrationRow, ...]) -> None:
    with pytest.raises(InvalidConfig, match="calibration"):
        Calibration(rows)


def test_noise_follows_from_the_seed_and_is_standard_normal() -> None:
    noise = draw_noise(5, 3, (20, 400))
    assert torch.equal(noise, draw_noise(5, 3, (20, 400))) and not torch.equal(noise, draw_noise(6, 3, (20, 400)))
    assert abs(float(noise.mean())) < 0.02 and float(noise.std()) == pytest.approx(1, abs=0.02)
