"""A copy of a model whose frozen matrix products are in bfloat16, for looks at a support set that need no last digit.

On a processor with bfloat16 instructions a pass takes about half of the time. Where the features are those of the first token, the
last layer computes no more than that one: its five sixths are a seventh of six layers.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_TOKEN = ("BertLayer", "RobertaLayer")  # their models for sequence classification read the first token


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


class FirstTokenLayer(nn.Module):
    """The last layer of BERT or RoBERTa; while `alone`, of the first token alone, which attends to all.

    Args:
        layer: whose modules these are, by their own names.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = layer.attention, layer.intermediate, layer.output
        self.alone = False

    def forward(self, hidden: Tensor, mask: Tensor | None = None, *others: object, **ignored: object) -> Tensor:
        """Hidden states `[M, L, D]` to `[M, L, D]`, or `[M, 1, D]`; `mask` `[M, 1, 1 or L, L]`."""
        asked = hidden[:, :1] if self.alone else hidden
        mask = mask[..., :1, :] if self.alone and mask is not None else mask
        own = self.attention.self
        query, key, value = (
            part(of).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
            for part, of in ((own.query, asked), (own.key, hidden), (own.value, hidden))
        )
        context = F.scaled_dot_product_attention(query, key, value, mask, scale=own.scaling)
        attended = self.attention.output(context.transpose(1, 2).flatten(2), asked)
        return self.output(self.intermediate(attended), attended)


@contextmanager
def first_token(model: nn.Module) -> Iterator[None]:
    """While it lasts, a `quick_copy` computes of its last layer what its features need."""
    layers = [module for module in model.modules() if isinstance(module, FirstTokenLayer)]
    for layer in layers:
        layer.alone = True
    try:
        yield
    finally:
        for layer in layers:
            layer.alone = False


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
    layers = _layers(made)
    if layers is not None:
        layers[-1] = FirstTokenLayer(layers[-1])
    return made.eval()


def _layers(model: nn.Module) -> nn.ModuleList | None:
    """The layers of an encoder whose features are those of the first token; None of another model."""
    layers = getattr(getattr(getattr(model, "base_model", None), "encoder", None), "layer", None)
    known = isinstance(layers, nn.ModuleList) and type(layers[-1]).__name__ in FIRST_TOKEN
    return layers if known and not layers[-1].is_decoder else None
