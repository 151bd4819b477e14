"""Heads and image bodies as ONNX files, for runtimes without torch. The package `onnx` is imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ltdi.bodies.conv4 import Conv4
from ltdi.bodies.photos import LEAST, LENGTH, PhotoConv4
from ltdi.heads import Head

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, ValueInfoProto

REMEDY = "pip install 'ltdi[onnx]'"
OPSET, IR_VERSION = 18, 9  # what runtimes of 2023 and later read
SMALLEST_LENGTH = 1e-12  # of a feature that is divided by its length, as in torch's `normalize`
CONV4_INPUT = "float32 [M, 1, image_size, image_size], ink 1 and paper 0: grey values over 255, paper dark"
PHOTO_INPUT = "float32 [M, 3, image_size, image_size], red, green, blue over 255: the square in the middle of each image"


@cache
def onnx_installed() -> bool:
    """Whether ONNX files can be written here."""
    return find_spec("onnx") is not None


def head_onnx(head: Head) -> bytes:
    """A head as an ONNX file: `features [M, D]` to `probabilities [M, N]`, as `Head.predict_proba` gives them.

    Its metadata is that of the head's safetensors file, `labels` among it. The same head gives the same bytes.

    Raises:
        ModuleNotFoundError: the extra `onnx` is not installed.
    """
    graph = _Graph()
    x = "features"
    if head.feature_mean is not None:
        x = graph.add("Sub", [x, graph.constant("feature_mean", head.feature_mean)], "centred")
    if head.normalise != "none":
        length = graph.add("ReduceL2", [x, graph.constant("last_axis", np.array([-1]))], "length", keepdims=1)
        floor = graph.constant("smallest_length", np.array([SMALLEST_LENGTH], np.float32))
        x = graph.add("Div", [x, graph.add("Max", [length, floor], "divisor")], "unit")
    for place, layer in enumerate(head.layers):
        x = graph.add("Relu", [x], f"rectified.{place}") if place else x
        weights = [graph.constant(f"layers.{place}.{name}", value) for name, value in layer.state_dict().items()]
        x = graph.add("Gemm", [x, *weights], f"layers.{place}", transB=1)
    x = graph.add("Div", [x, graph.constant("temperature", np.array([head.temperature], np.float32))], "tempered")
    graph.add("Softmax", [x], "probabilities", axis=-1)
    shapes = {"features": ["batch", head.feature_size]}, {"probabilities": ["batch", len(head.labels)]}
    return graph.file("head", *shapes, head.file_metadata())


def body_onnx(body: Conv4 | PhotoConv4, facts: Mapping[str, str]) -> bytes:
    """An image body as an ONNX file: `images`, as its metadata `input` says, to `features [M, D]`.

    Args:
        facts: metadata of the file.

    Raises:
        ModuleNotFoundError: the extra `onnx` is not installed.
    """
    graph = _Graph()
    x = "images"
    for place, block in enumerate(body.blocks):
        x = _block(graph, block, x, place)
    if isinstance(body, PhotoConv4):
        _photo_features(graph, body, x)
    else:
        graph.add("Flatten", [x], "features", axis=1)
    sides = [body.image_size, body.image_size]
    shapes = {"images": ["batch", body.colours, *sides]}, {"features": ["batch", body.feature_size]}
    said = PHOTO_INPUT if isinstance(body, PhotoConv4) else CONV4_INPUT
    return graph.file("body", *shapes, dict(facts) | {"input": said})


def _block(graph: _Graph, block: nn.Sequential, x: str, place: int) -> str:
    """Convolution, pooling where there is one, normalisation and ReLU."""
    for layer in block:
        if isinstance(layer, nn.Conv2d):
            kernel = graph.constant(f"blocks.{place}.kernel", layer.weight)
            x = graph.add("Conv", [x, kernel], f"convolved.{place}", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif isinstance(layer, nn.MaxPool2d):
            x = graph.add("MaxPool", [x], f"pooled.{place}", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
        elif isinstance(layer, nn.BatchNorm2d):
            names = ("weight", "bias", "running_mean", "running_var")
            state = [graph.constant(f"blocks.{place}.{name}", getattr(layer, name)) for name in names]
            x = graph.add("BatchNormalization", [x, *state], f"normalised.{place}", epsilon=layer.eps)
    return graph.add("Relu", [x], f"block.{place}")


def _photo_features(graph: _Graph, body: PhotoConv4, x: str) -> None:
    """Square roots of the averages over the plane, centred, of one length."""
    averages = graph.add("ReduceMean", [x, graph.constant("plane", np.array([2, 3]))], "averages", keepdims=0)
    least = graph.constant("least", np.array([LEAST], np.float32))
    roots = graph.add("Sqrt", [graph.add("Add", [averages, least], "above_nought")], "roots")
    centred = graph.add("Sub", [roots, graph.constant("centre", body.centre)], "centred")
    length = graph.add("ReduceL2", [centred, graph.constant("last_axis", np.array([-1]))], "length", keepdims=1)
    floor = graph.constant("smallest_length", np.array([SMALLEST_LENGTH], np.float32))
    unit = graph.add("Div", [centred, graph.add("Max", [length, floor], "divisor")], "unit")
    graph.add("Mul", [unit, graph.constant("feature_length", np.array([LENGTH], np.float32))], "features")


class _Graph:
    """The nodes and constants of an ONNX graph, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """Add a tensor; its name."""
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def file(
        self, name: str, inputs: dict[str, list], outputs: dict[str, list], facts: Mapping[str, str]
    ) -> bytes:
        """The checked model as bytes."""
        from onnx import checker, helper

        graph = helper.make_graph(self.nodes, name, _values(inputs), _values(outputs), self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="ltdi"
        )
        helper.set_model_props(model, dict(facts))
        checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


def _values(shapes: dict[str, list]) -> list[ValueInfoProto]:
    from onnx import TensorProto, helper

    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
