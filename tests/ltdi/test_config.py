"""Configurations to and from JSON."""

from __future__ import annotations

import json

import pytest

from ltdi.bundle import BundleConfig
from ltdi.config import from_json, to_json
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.denoisers.unet import UNetConfig
from ltdi.errors import InvalidConfig
from ltdi.generator import Calibration, CalibrationRow
from ltdi.schedule import ScheduleConfig


@pytest.mark.parametrize(
    "config",
    [
        BundleConfig("a", class_tokens=ClassTokensConfig(width=64), schedule=ScheduleConfig(segments=1)),
        BundleConfig("b", recipe="paper", unet=UNetConfig(channels=(4, 8)), head_sizes=(256, 4, 5)),
        BundleConfig("c", calibration=Calibration((CalibrationRow(1, 0.5), CalibrationRow(5, 0.1, 2.0, 3.0)))),
    ],
)
def test_a_config_survives_json(config: BundleConfig) -> None:
    assert from_json(BundleConfig, json.loads(json.dumps(to_json(config)))) == config


def test_absent_keys_take_their_defaults() -> None:
    assert from_json(ScheduleConfig, {"segments": 1}) == ScheduleConfig(segments=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segmnts": 1}, "unknown key 'segmnts'; did you mean 'segments'"),
        ({"zzz": 1}, "unknown key 'zzz'; known keys: steps, segments"),
        ({"steps": "20"}, "config.steps is '20'; expected int"),
        ({"steps": 2.5}, "config.steps is 2.5; expected int"),
        ({"steps": True}, "config.steps is True; expected int"),
        ({"shape": None}, "config.shape is None; expected str"),
        ([], "config must be an object, not list"),
    ],
)
def test_what_does_not_fit_is_refused(values: object, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        from_json(ScheduleConfig, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "incomplete.*name"),
        ({"name": "a", "schedule": {"stps": 3}}, r"config\.schedule has the unknown key 'stps'; did you mean 'steps'"),
        ({"name": "a", "head_sizes": 5}, "head_sizes must be a list"),
        ({"name": "a", "head_sizes": [5, "a"]}, r"head_sizes\[1\] is 'a'"),
        ({"name": "a", "calibration": {"rows": []}}, "rows of ascending shots"),
    ],
)
def test_what_does_not_fit_inside_is_refused_with_its_place(values: dict, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        from_json(BundleConfig, values)


def test_an_int_is_a_float() -> None:
    assert from_json(CalibrationRow, {"shots": 1, "strength": 1}) == CalibrationRow(1, 1.0)
