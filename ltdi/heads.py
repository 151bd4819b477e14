"""A classifier head: the module, its file, and nothing else that a user has to keep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.errors import DamagedFile, InvalidFeatures, InvalidInput
from ltdi.files import parse_json, read_safetensors, safetensors_bytes, write_bytes
from ltdi.support import encodable

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

ENCODER = json.JSONEncoder(ensure_ascii=False)
FORMAT = "ltdi.head"
FORMAT_VERSION = "1"
NORMALISATIONS = ("none", "l2", "center_l2")
ACTIVATIONS = ("none", "relu")


class Affine(nn.Module):
    """`nn.Linear` that is given its tensors: building and throwing away an initialisation costs more than a step."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        return F.linear(x, self.weight, self.bias)


class Head(nn.Module):
    """One or two linear layers over features, with labels.

    A feature is first normalised (`none`; `l2`: divided by its length; `center_l2`: `feature_mean`
    subtracted, then divided by its length), then goes through the layers, ReLU between two.

    Args:
        weights: weight `[out, in]` and bias `[out]` of each layer, first to last.
        labels: the class of each row of the last layer.
        normalise: what is done to a feature before the first layer.
        feature_mean: `[D]`, for `center_l2`.
        temperature: logits are divided by it in `predict_proba`.
        metadata: further facts written with the head (strings, or values that JSON can hold).
    """

    def __init__(
        self,
        weights: Sequence[tuple[Tensor, Tensor]],
        labels: Sequence[str],
        *,
        normalise: str = "none",
        feature_mean: Tensor | None = None,
        temperature: float = 1.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Affine(weight, bias) for weight, bias in weights])
        self.labels = list(labels)
        self.normalise = normalise
        self.temperature = float(temperature)
        self.metadata = dict(metadata or {})
        self.request: Any = None  # what it was generated from (`HeadRequest`), in memory only: no file holds it
        self.register_buffer("feature_mean", feature_mean)

    @property
    def feature_size(self) -> int:
        """D, the size of the features it takes."""
        return self.layers[0].weight.shape[1]

    @property
    def support_accuracy(self) -> float | None:
        """Held-out accuracy of heads generated from parts of the support; None where no class has two examples."""
        return self.metadata.get("support_accuracy")

    @property
    def baseline_support_accuracy(self) -> float | None:
        """The same for the baseline: what would have cost nothing."""
        return self.metadata.get("baseline_support_accuracy")

    @property
    def method(self) -> str:
        """`generated`, or `baseline` where the baseline was returned instead."""
        return self.metadata.get("method", "generated")

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., N]` of features `[..., D]`.

        Raises:
            InvalidFeatures: features of another size.
        """
        if features.shape[-1] != self.feature_size:
            raise InvalidFeatures(
                f"features have size {features.shape[-1]}; this head takes {self.feature_size}", field="features"
            )
        x = features
        if self.normalise == "center_l2":
            x = x - self.feature_mean
        if self.normalise != "none":
            x = F.normalize(x, dim=-1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)

    @torch.inference_mode()
    def predict_proba(self, features: Tensor) -> Tensor:
        """Calibrated class probabilities, `[..., N]`."""
        return torch.softmax(self(features) / self.temperature, dim=-1)

    @torch.inference_mode()
    def predict(self, features: Tensor) -> list[str]:
        """The label of each feature in `[M, D]`."""
        return [self.labels[row] for row in self(features).argmax(-1).tolist()]

    @property
    def reject_threshold(self) -> float | None:
        """The `none_of_these` score above which an item is taken to belong to no class; None where none was fitted."""
        return self.metadata.get("reject_threshold")

    @torch.inference_mode()
    def none_of_these(self, features: Tensor) -> Tensor:
        """How little each feature in `[..., D]` looks like any of the classes, `[...]`: large is none of them.

        The energy of Liu et al. (2020) a class: minus the logarithm of the mean exponential of the logits, these in units
        of the temperature and less their mean over classes. So one threshold serves few classes and many.
        """
        answers = self(features) / self.temperature
        energy = -torch.logsumexp(answers - answers.mean(-1, keepdim=True), dim=-1)
        return energy + math.log(answers.shape[-1])

    def is_none_of_these(self, features: Tensor) -> Tensor:
        """Which features in `[..., D]` are taken to belong to no class, `[...]`, boolean.

        Raises:
            InvalidInput: the head has no threshold.
        """
        if self.reject_threshold is None:
            raise InvalidInput("this head has no reject_threshold; compare `none_of_these` with one of your own")
        return self.none_of_these(features) > self.reject_threshold

    def to_sklearn(self) -> LogisticRegression:
        """A scikit-learn classifier with the same answers and probabilities, on features as the layer sees them.

        That is: at unit length where `normalise` is `l2`, which sentence encoders give anyway.

        Raises:
            InvalidInput: a head of two layers, or one that centres features.
            ModuleNotFoundError: scikit-learn is not installed.
        """
        if len(self.layers) != 1 or self.normalise == "center_l2":
            raise InvalidInput("only a head of one layer, that does not centre features, is a logistic regression")
        from sklearn.linear_model import LogisticRegression

        weight = self.layers[0].weight.detach().double().numpy() / self.temperature
        bias = self.layers[0].bias.detach().double().numpy() / self.temperature
        order = np.argsort(np.array(self.labels))
        weight, bias = weight[order], bias[order]
        model = LogisticRegression()
        model.classes_ = np.array(self.labels)[order]
        if len(order) == 2:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        model.coef_, model.intercept_ = weight, bias
        model.n_features_in_, model.n_iter_ = self.feature_size, np.array([0])
        return model

    def to_bytes(self) -> bytes:
        """The head as a safetensors file; the same head gives the same bytes."""
        return safetensors_bytes(self.tensors(), self.file_metadata())

    def save(self, path: str | Path) -> None:
        """Write the head as a safetensors file, atomically."""
        write_bytes(Path(path), self.to_bytes())

    def file_metadata(self) -> dict[str, str]:
        """The metadata of the file: all strings, JSON where structured."""
        facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "labels": ENCODER.encode(self.labels),
            "normalise": self.normalise,
            "activation": "relu" if len(self.layers) > 1 else "none",
            "temperature": repr(self.temperature),
        }
        rest = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.metadata.items()}
        return dict(sorted((rest | facts).items()))

    def tensors(self) -> dict[str, Tensor]:
        """What the file holds, by name."""
        if len(self.layers) == 1:
            tensors = {"weight": self.layers[0].weight, "bias": self.layers[0].bias}
        else:
            tensors = {f"layers.{name}": value for name, value in self.layers.state_dict().items()}
        if self.feature_mean is not None:
            tensors["feature_mean"] = self.feature_mean
        return tensors


def is_text(value: object) -> bool:
    """Whether it is a string that a file can hold: half a surrogate pair cannot be encoded."""
    return isinstance(value, str) and encodable(value)


def load_head(source: str | Path | bytes) -> Head:
    """A head from a file or from its bytes.

    Raises:
        DamagedFile: not safetensors, not a head, a missing or wrongly shaped tensor, NaN, an unknown version.
    """
    tensors, metadata = read_safetensors(source, "head")
    if metadata.get("format") != FORMAT:
        raise DamagedFile(f"not a head: its metadata says format={metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise DamagedFile(
            f"head of format_version {metadata.get('format_version')!r}; this library reads {FORMAT_VERSION!r}"
        )
    try:
        labels = parse_json(metadata["labels"])
        temperature = float(metadata["temperature"])
        normalise, activation = metadata["normalise"], metadata["activation"]
    except (KeyError, ValueError) as error:
        raise DamagedFile(f"the head's metadata is incomplete or malformed: {error}") from error
    if normalise not in NORMALISATIONS or activation not in ACTIVATIONS or not 0 < temperature < math.inf:
        raise DamagedFile(
            f"the head asks for normalise={normalise!r}, activation={activation!r}, temperature={temperature}; "
            f"known are {NORMALISATIONS}, {ACTIVATIONS} and finite temperatures above 0"
        )
    weights = _layers(tensors, labels)
    if (activation == "relu") != (len(weights) > 1):
        raise DamagedFile(f"a head of {len(weights)} layers with activation {activation!r}; relu stands between two layers")
    known = {"format", "format_version", "labels", "normalise", "activation", "temperature"}
    return Head(
        weights,
        labels,
        normalise=normalise,
        feature_mean=_feature_mean(tensors, normalise, weights[0][0].shape[1]),
        temperature=temperature,
        metadata={k: _value(k, v) for k, v in metadata.items() if k not in known},
    )


TEXT_FIELDS = frozenset({"model", "bundle_digest", "body", "support_digest", "method"})


def _value(key: str, text: str) -> Any:
    if key in TEXT_FIELDS:
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text


def _layers(tensors: dict[str, Tensor], labels: Any) -> list[tuple[Tensor, Tensor]]:
    names = [("weight", "bias")] if "weight" in tensors else [
        (f"layers.{i}.weight", f"layers.{i}.bias") for i in range(2)
    ]
    expected = {name for pair in names for name in pair}
    if set(tensors) - {"feature_mean"} != expected:
        raise DamagedFile(f"the head holds tensors {sorted(tensors)}; expected {sorted(expected)}")
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise DamagedFile("the head holds tensors that are not float32")
    weights = [(tensors[w], tensors[b]) for w, b in names]
    inputs = None
    for weight, bias in weights:
        if weight.ndim != 2 or not weight.numel() or bias.shape != weight.shape[:1] or inputs not in (None, weight.shape[1]):
            raise DamagedFile(f"weight {list(weight.shape)} and bias {list(bias.shape)} do not make a layer")
        inputs = weight.shape[0]
    if not isinstance(labels, list) or len(labels) != inputs or not all(is_text(x) for x in labels):
        raise DamagedFile(f"the head has {inputs} rows; its labels must be as many strings")
    return weights


def _feature_mean(tensors: dict[str, Tensor], normalise: str, size: int) -> Tensor | None:
    mean = tensors.get("feature_mean")
    if (mean is not None) != (normalise == "center_l2") or (mean is not None and mean.shape != (size,)):
        raise DamagedFile(f"feature_mean [{size}] must be there exactly where normalise is 'center_l2'")
    return mean
