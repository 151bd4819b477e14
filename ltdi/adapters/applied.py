"""An adapter applied to a model by plain torch, without PEFT: W x + scale B A x at each module, other tensors swapped in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F

Matrices = Mapping[str, tuple[Tensor, Tensor]]


@contextmanager
def applied(model: nn.Module, lora: Matrices, scale: float, whole: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, `model` computes with LoRA; afterwards it is as before.

    Args:
        lora: `lora_A` `[r, in]` and `lora_B` `[out, r]` by module.
        whole: tensors that stand in for parameters, by name.
    """
    modules = dict(model.named_modules())
    handles = [modules[path].register_forward_hook(_adding(*pair, scale)) for path, pair in lora.items()]
    own = {name: model.get_parameter(name) for name in whole}
    before = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, value in whole.items():
            own[name].data = value.to(before[name])
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]
        for handle in handles:
            handle.remove()


def _adding(lora_a: Tensor, lora_b: Tensor, scale: float) -> Callable[..., Tensor]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        return output + F.linear(F.linear(x, lora_a.to(x)), lora_b.to(x)) * scale

    return add
