"""A copy of a model whose frozen matrix products are in bfloat16, for looks at a support set that need no last digit.

On a processor with bfloat16 instructions a pass takes about half of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bfloat16Linear(nn.Module):
    """`nn.Linear` of float32 with its weight in bfloat16, float32 outside; `merged` is another one while it lasts."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.rounded = linear.weight.detach().bfloat16()
        self.merged: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        product = F.linear(x.bfloat16(), self.rounded if self.merged is None else self.merged).float()
        return product if self.bias is None else product + self.bias


@contextmanager
def merged(model: nn.Module, lora: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> Iterator[None]:
    """While it lasts, `model`, a `quick_copy`, computes with LoRA, W + scale B A in one product; afterwards it is as before.

    Args:
        lora: `lora_A` `[r, in]` and `lora_B` `[out, r]` by module.
    """
    modules = {path: model.get_submodule(path) for path in lora}
    try:
        for path, (a, b) in lora.items():
            weight = modules[path].weight
            modules[path].merged = torch.addmm(weight, b.to(weight), a.to(weight), alpha=scale).bfloat16()
        yield
    finally:
        for module in modules.values():
            module.merged = None


def pays(device: torch.device) -> bool:
    """Whether bfloat16 products are quicker here."""
    told = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and told is not None and bool(told())


def is_float32(model: nn.Module) -> bool:
    """Whether all of a model's parameters are."""
    return all(parameter.dtype is torch.float32 for parameter in model.parameters())


def quick_copy(model: nn.Module, left: Collection[str]) -> nn.Module:
    """The model with bfloat16 products; everything else is shared with it.

    Args:
        left: linear layers that stay as they are.
    """
    made = copy.deepcopy(model, {id(p): p for p in (*model.parameters(), *model.buffers())})
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear) and name not in left:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, Bfloat16Linear(module))
    return made.eval()
