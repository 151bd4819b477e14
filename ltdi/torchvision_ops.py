"""Import torchvision beside a torch that was built without CUDA.

The torchvision wheel is built for CUDA. Beside a CPU build of torch its native operators do not load, and
`import torchvision` stops with "operator torchvision::nms does not exist", because it describes the outputs of two
operators without asking whether they are there. Data sets, transforms and models need neither, so declaring the
two schemas is enough.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_kept: list[torch.library.Library] = []  # a schema lives as long as the library that declares it


def import_torchvision() -> ModuleType:
    """torchvision, whether or not its native operators load.

    Where they load (a CUDA build of torch), this is a plain import.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or not declare_missing():
            raise
    return importlib.import_module("torchvision")


def declare_missing() -> list[str]:
    """Declare those of the two operators that torch does not know yet; returns their names."""
    absent = [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if absent:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in absent:
            library.define(SCHEMAS[name])
        _kept.append(library)
    return absent
