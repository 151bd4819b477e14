"""torchvision becomes importable beside any build of torch. Each case is a process of its own: imports happen once."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")

PLAIN = "import torchvision"
OURS = """
from ltdi.torchvision_ops import _kept, declare_missing, import_torchvision
torchvision = import_torchvision()
"""
USE = """
import torch
from torchvision import datasets, models, transforms
assert torchvision.__name__ == "torchvision"
assert datasets.Omniglot.folder == "omniglot-py"
assert transforms.functional.resize(torch.zeros(1, 8, 8), [4, 4]).shape == (1, 4, 4)
assert models.resnet18(num_classes=2).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
"""
DECLARED_BEFORE = """
import torch
before = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    before.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_datasets_transforms_and_models_work_after_our_import():
    result = python(OURS + USE)
    assert result.returncode == 0, result.stderr


def test_schemas_are_declared_exactly_where_a_plain_import_fails():
    plain = python(PLAIN)
    ours = python(OURS + "print(len(_kept))")
    assert ours.stdout.strip() == ("0" if plain.returncode == 0 else "1"), ours.stderr
    if plain.returncode:
        assert "operator torchvision::nms does not exist" in plain.stderr


def test_nothing_is_declared_where_the_schemas_are_there_already():
    result = python(DECLARED_BEFORE + OURS + "assert declare_missing() == [] and not _kept" + USE)
    assert result.returncode == 0, result.stderr


def test_a_second_import_is_the_same_module():
    result = python(OURS + "assert import_torchvision() is torchvision and len(_kept) <= 1")
    assert result.returncode == 0, result.stderr
