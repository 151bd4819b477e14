"""An adapter: LoRA matrices and a classification head under PEFT's names, with what a loader has to know of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.target import HEADS, LoraTarget
from ltdi.errors import DamagedFile, ForeignBase

PREFIX = "base_model.model."
LORA = re.compile(r"(?P<path>.+)\.lora_(?P<matrix>[AB])\.weight")
MAX_RANK = 256
TASK_TYPE = "SEQ_CLS"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter with its head, in memory.

    Args:
        tensors: by PEFT's names on disk: `base_model.model.MODULE.lora_A.weight` `[r, in]`, `.lora_B.weight`
            `[out, r]`, and the tensors of `modules_to_save`; all float32.
        r: rank.
        lora_alpha: W x becomes W x + lora_alpha / r B A x.
        target_modules: as PEFT reads them.
        modules_to_save: modules whose tensors are here whole.
        labels: the class of each row of the head.
        base_model_name_or_path: what a server calls the base model; vLLM compares the exact string.
        use_rslora: divide lora_alpha by the root of r instead.
        metadata: further facts written with it.
    """

    tensors: Mapping[str, Tensor]
    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    labels: tuple[str, ...]
    base_model_name_or_path: str
    use_rslora: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def method(self) -> str:
        """`generated`, or `baseline`: the base model with the closed form's head."""
        return self.metadata.get("method", "generated")

    @property
    def support_accuracy(self) -> float | None:
        """On folds of the support."""
        return self.metadata.get("support_accuracy")

    @property
    def baseline_support_accuracy(self) -> float | None:
        """The same, of the closed form on the frozen base."""
        return self.metadata.get("baseline_support_accuracy")

    @cached_property
    def lora(self) -> dict[str, tuple[Tensor, Tensor]]:
        """`lora_A` and `lora_B` of each module, by its name in the model."""
        paths = [match["path"] for name in self.tensors if (match := LORA.fullmatch(name.removeprefix(PREFIX)))]
        return {
            path: (self.tensors[f"{PREFIX}{path}.lora_A.weight"], self.tensors[f"{PREFIX}{path}.lora_B.weight"])
            for path in dict.fromkeys(paths)
        }

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """The tensors of `modules_to_save`, by their names in the model."""
        names = {name.removeprefix(PREFIX): value for name, value in self.tensors.items()}
        return {name: value for name, value in names.items() if not LORA.fullmatch(name)}

    @cached_property
    def head(self) -> tuple[str, Tensor, Tensor | None]:
        """Name of the last layer, its weight `[N, D]` and its bias `[N]`, or None."""
        name = next(name for name in HEADS if f"{name}.weight" in self.whole)
        return name, self.whole[f"{name}.weight"], self.whole.get(f"{name}.bias")

    def for_base(self, base_model_name_or_path: str) -> Adapter:
        """The same under another name of the base model."""
        return replace(self, base_model_name_or_path=base_model_name_or_path)

    def config(self) -> dict[str, Any]:
        """`adapter_config.json`: every field that PEFT and vLLM read, also where it is the default."""
        return {
            "peft_type": "LORA",
            "task_type": TASK_TYPE,
            "base_model_name_or_path": self.base_model_name_or_path,
            "revision": None,
            "inference_mode": True,
            "r": self.r,
            "lora_alpha": int(self.lora_alpha) if float(self.lora_alpha).is_integer() else self.lora_alpha,
            "lora_dropout": 0.0,
            "target_modules": list(self.target_modules),
            "modules_to_save": list(self.modules_to_save),
            "bias": "none",
            "use_rslora": self.use_rslora,
            "use_dora": False,
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "layers_to_transform": None,
            "layers_pattern": None,
            "rank_pattern": {},
            "alpha_pattern": {},
            "auto_mapping": None,
        }

    def check_tensors(self) -> None:
        """Hold the tensors to each other and to the facts.

        Raises:
            DamagedFile: a name that PEFT does not know, a matrix without its other, a wrong shape or type, no head.
        """
        check_ranks(self.r, self.lora_alpha)
        for name, tensor in self.tensors.items():
            if not name.startswith(PREFIX):
                raise DamagedFile(f"the adapter's tensor {name[:120]!r} does not begin with {PREFIX!r}")
            if tensor.dtype != torch.float32 or not tensor.ndim:
                raise DamagedFile(f"the adapter's tensor {name[:120]!r} is {tensor.dtype} {list(tensor.shape)}; expected float32")
        try:
            pairs, head = self.lora, self.head
        except KeyError as error:
            raise DamagedFile(f"the adapter lacks the other matrix of a module: {error}") from error
        except StopIteration:
            raise DamagedFile(f"the adapter holds no head: none of {', '.join(HEADS)}") from None
        if not pairs:
            raise DamagedFile("the adapter holds no LoRA matrices")
        for path, (a, b) in pairs.items():
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != self.r or b.shape[1] != self.r:
                raise DamagedFile(f"{path[:120]}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}; r is {self.r}")
        _, weight, bias = head
        if weight.ndim != 2 or len(weight) != len(self.labels) or (bias is not None and bias.shape != weight.shape[:1]):
            raise DamagedFile(f"the head's weight is {list(weight.shape)}; there are {len(self.labels)} labels")

    def check_target(self, target: LoraTarget) -> None:
        """Hold the names and shapes to those of a base model, both ways, one by one.

        Raises:
            ForeignBase: a tensor too many, too few, or of another shape.
        """
        wanted = {PREFIX + name: shape for name, shape in target.shapes(self.r, len(self.labels)).items()}
        for name in wanted:
            if name not in self.tensors:
                raise ForeignBase(f"the adapter lacks {name!r}, which this base model needs", field="base_model")
        for name, tensor in self.tensors.items():
            if name not in wanted:
                raise ForeignBase(f"the adapter holds {name[:120]!r}, which this base model has no place for", field="base_model")
            if tuple(tensor.shape) != wanted[name]:
                raise ForeignBase(
                    f"the adapter's {name!r} is {list(tensor.shape)}; this base model takes {list(wanted[name])}",
                    field="base_model",
                )


def check_ranks(r: Any, lora_alpha: Any) -> None:
    """Rank and scale as others wrote them.

    Raises:
        DamagedFile: not a rank in 1..256, or no positive finite scale.
    """
    if type(r) is not int or not 1 <= r <= MAX_RANK:
        raise DamagedFile(f"the adapter's r is {r!r:.40}; it must be an integer in 1..{MAX_RANK}")
    if type(lora_alpha) not in (int, float) or not 0 < lora_alpha < math.inf:
        raise DamagedFile(f"the adapter's lora_alpha is {lora_alpha!r:.40}; it must be a positive number")
