"""What a bundle of adapters is made of: its config, and the tensors that span its adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ltdi.adapters.adapter import check_ranks
from ltdi.adapters.closed_form import HeadConfig
from ltdi.adapters.predictor import PredictorConfig, Space
from ltdi.adapters.target import LoraModule, LoraTarget
from ltdi.errors import DamagedFile, InvalidConfig
from ltdi.support import Limits

FORMAT, FORMAT_VERSION = "ltdi.adapters", 1
BASELINES = ("plain", "mean")


@dataclass(frozen=True)
class BaseConfig:
    """The base model.

    Args:
        model: `all-MiniLM-L6-v2`; a path; or a path from the bundle's folder.
        max_tokens: how many tokens of an item it reads.
        name: what kind of body that is.
    """

    model: str
    max_tokens: int = 128
    name: str = "transformer"


@dataclass(frozen=True)
class AdapterBundleConfig:
    """What a bundle of adapters is; stored with it.

    Args:
        base_model_name_or_path: what adapters call their base model where the caller does not say.
        r: rank.
        lora_alpha: W x becomes W x + lora_alpha / r B A x.
        head: how the head is fitted on adapted features.
        baseline_head: the same on those of the plain base, for the baseline.
        baseline: the adapter that the baseline's head stands on: `plain` is the base model alone, `mean` the adapter at
            coefficients 0.
        predictor: what chooses coefficients.
        directions: K.
        fallback_margin: by how much the baseline must lead on the folds to be returned instead.
    """

    name: str
    body: BaseConfig
    target: LoraTarget
    base_model_name_or_path: str
    r: int
    lora_alpha: float
    head: HeadConfig = HeadConfig()
    baseline_head: HeadConfig = HeadConfig()
    baseline: str = "plain"
    predictor: PredictorConfig = PredictorConfig()
    directions: int = 0
    limits: Limits = Limits(32, 64, 256, 0)  # a text costs a hundred times what a feature does
    fallback_margin: float = 0.1
    recipe: str = "lora"
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_ranks(self.r, self.lora_alpha)
        if self.baseline not in BASELINES:
            raise InvalidConfig(f"baseline {self.baseline!r} is unknown; known: {BASELINES}", field="baseline")

    @property
    def space(self) -> Space:
        """Where its adapters lie."""
        return Space(len(self.target.modules), self.directions, self.target.head_inputs)


@dataclass(frozen=True, eq=False)
class AdapterParts:
    """The tensors of a bundle of adapters, by module.

    Args:
        lora_a: `[r, in]`, shared by all adapters.
        mean: `[out, r]`, the adapter at coefficients 0.
        directions: `[K, out, r]`.
        saved: tensors that every adapter holds whole, by name, such as RoBERTa's `classifier.dense.weight`.
    """

    lora_a: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    directions: Mapping[str, Tensor]
    saved: Mapping[str, Tensor] = field(default_factory=dict)

    def at(self, coefficients: Tensor, order: Sequence[LoraModule]) -> dict[str, tuple[Tensor, Tensor]]:
        """`lora_A` and `lora_B` of each module for coefficients `[W, K]`, rows in the given order of modules."""
        made = {}
        for module, row in zip(order, coefficients, strict=True):
            path = module.path
            moved = torch.einsum("k,kor->or", row.to(self.mean[path]), self.directions[path])
            made[path] = (self.lora_a[path], (self.mean[path] + moved).contiguous())
        return made

    def baseline(self, kind: str) -> dict[str, tuple[Tensor, Tensor]]:
        """The adapter of the baseline: `mean`, or `plain`, whose `lora_B` is 0, so that it has no effect."""
        if kind == "mean":
            return {path: (self.lora_a[path], mean) for path, mean in self.mean.items()}
        return {path: (self.lora_a[path], torch.zeros_like(mean)) for path, mean in self.mean.items()}

    def check(self, config: AdapterBundleConfig) -> None:
        """Hold names and shapes to the config.

        Raises:
            DamagedFile: a tensor too many, too few, or of another shape or type.
        """
        r, wanted = config.r, {module.path: module for module in config.target.modules}
        for what, found in (("lora_A", self.lora_a), ("mean", self.mean), ("basis", self.directions)):
            if set(found) != set(wanted):
                raise DamagedFile(f"the bundle's {what} is of {len(found)} modules; the target has {len(wanted)} others")
            for path, tensor in found.items():
                module = wanted[path]
                shape = {"lora_A": (r, module.inputs), "mean": (module.outputs, r),
                         "basis": (config.directions, module.outputs, r)}[what]  # fmt: skip
                _check_tensor(f"{what}.{path}", tensor, shape)
        if set(self.saved) != {tensor.name for tensor in config.target.saved}:
            raise DamagedFile(f"the bundle saves {sorted(self.saved)[:5]}; its target names others")
        for tensor in config.target.saved:
            _check_tensor(f"saved.{tensor.name}", self.saved[tensor.name], tensor.shape)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise DamagedFile(f"the bundle's {name!r} is {list(tensor.shape)} {tensor.dtype}; expected {list(shape)} float32")
