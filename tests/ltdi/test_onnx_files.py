"""Heads and bodies as ONNX: what onnxruntime answers is what torch answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ltdi import Bundle, load_bundle
from ltdi.bodies.conv4 import Conv4
from ltdi.bodies.photos import PhotoConv4
from ltdi.heads import Head
from ltdi.onnx_files import body_onnx, head_onnx
from tests.ltdi.test_heads import LABELS, kinds, make_head

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
CLOSE = {"rtol": 0, "atol": 1e-5}


def run(file: bytes, **inputs: torch.Tensor) -> torch.Tensor:
    """What onnxruntime makes of it."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()})
    return torch.from_numpy(output)


def facts(file: bytes) -> dict[str, str]:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map


@kinds
def test_a_head_answers_in_onnx_as_in_torch_the_zero_feature_included(layers: int, normalise: str) -> None:
    head, features = make_head(layers, normalise), torch.cat([torch.zeros(1, 6), torch.randn(40, 6)])
    torch.testing.assert_close(run(head_onnx(head), features=features), head.predict_proba(features), **CLOSE)


def test_the_file_of_a_head_carries_its_labels_and_is_the_same_each_time() -> None:
    file = head_onnx(make_head(2, "center_l2"))
    assert file == head_onnx(make_head(2, "center_l2"))
    assert facts(file) == make_head(2, "center_l2").file_metadata()
    assert json.loads(facts(file)["labels"]) == LABELS


@pytest.mark.parametrize("size", [28, 20, 33])
def test_a_body_answers_in_onnx_as_in_torch_whatever_its_size(size: int) -> None:
    torch.manual_seed(1)
    body = Conv4(8, size).eval()
    for block in body.blocks:
        block[2].running_mean.normal_()
        block[2].running_var.uniform_(0.5, 2)
    images = torch.rand(7, 1, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(run(body_onnx(body, {}), images=images), body(images), **CLOSE)


@pytest.mark.parametrize("size", [24, 21])
def test_a_body_for_photographs_answers_in_onnx_as_in_torch(size: int) -> None:
    torch.manual_seed(1)
    body = PhotoConv4((4, 6, 8, 10), size).eval()
    body.centre.uniform_(0, 1)
    for block in body.blocks:
        block[-2].running_mean.normal_()
        block[-2].running_var.uniform_(0.5, 2)
    images = torch.rand(7, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(run(body_onnx(body, {}), images=images), body(images), **CLOSE)


def test_body_and_head_of_the_shipped_bundle_chain(images: torch.Tensor, labels: list[str]) -> None:
    bundle: Bundle = load_bundle("omniglot", device="cpu")
    head: Head = bundle.generate(images, labels)
    pixels = bundle.prepare(images).unsqueeze(1).float() / 255
    features = run(body_onnx(bundle.body, {}), images=pixels)
    torch.testing.assert_close(features, bundle.embed(images), **CLOSE)
    torch.testing.assert_close(run(head_onnx(head), features=features), head.predict_proba(bundle.embed(images)), **CLOSE)
