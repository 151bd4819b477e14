"""The denoiser of the `default` recipe: a token per class, attention over classes, any number of ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule


@dataclass(frozen=True)
class ClassTokensConfig:
    """Sizes of the denoiser.

    Args:
        width: of a token inside.
        heads: of attention.
        encoder_layers: layers that read the task once.
        layers: layers that run at each step of the chain.
        dropout: in training, on the task's tokens.
    """

    width: int = 128
    heads: int = 4
    encoder_layers: int = 2
    layers: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise InvalidConfig(
                f"width is {self.width}; it must be a multiple of heads ({self.heads})", field="class_tokens"
            )


class ClassTokens(nn.Module):
    """eps_phi(x_t, t, task): permutation-equivariant over classes.

    The network answers with the waypoint x_k that step t leads to; eps_phi follows from it as for the
    minimiser of Eq. 2. At initialisation it answers 0, the baseline itself.

    Args:
        inputs: C, the size of a class's task token.
        outputs: D + 1, the weights of a class.
    """

    def __init__(self, config: ClassTokensConfig, schedule: Schedule, inputs: int, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.factors = schedule.waypoint_factors
        self.read_task = nn.Linear(inputs, width)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(Layer(width, config.heads) for _ in range(config.encoder_layers))
        self.read_x = nn.Linear(outputs, width, bias=False)
        self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.shift = nn.Parameter(torch.randn(schedule.steps + 1, width) * 0.02)
        self.gain = nn.Parameter(torch.ones(schedule.steps + 1, config.layers + 1, width))
        self.answer = nn.Linear(width, outputs)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    def condition(self, task: Tensor) -> Tensor:
        """What the steps need of the task embedding `[B, N, C]`: `[T + 1, B, N, width]`, one for each t."""
        h = self.read_task(self.dropout(task))
        for layer in self.encoder:
            h = layer(h)
        return h + self.shift[:, None, None]

    def waypoint(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """The network's answer: the waypoint that step t leads to, `[B, N, D + 1]`."""
        h = torch.addmm(condition[t].flatten(0, 1), x.flatten(0, 1), self.read_x.weight.T).view(condition.shape[1:])
        gains = self.gain[t].unbind()
        for layer, gain in zip(self.layers, gains, strict=False):
            h = layer(h, gain)
        return self.answer(F.layer_norm(h, gains[-1].shape, gains[-1]))

    def forward(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """eps_phi at x `[B, N, D + 1]` and step t, `[B, N, D + 1]`."""
        from_x, from_waypoint = self.factors[t]
        return (x * from_x).sub_(self.waypoint(x, t, condition), alpha=from_waypoint)


class Layer(nn.Module):
    """Pre-norm attention over classes and a two-layer perceptron.

    Linear maps are applied through `functional`: at these sizes the cost of a call is what counts.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.from_heads = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, gain: Tensor | None = None) -> Tensor:
        """`[B, N, width]` to the same; `gain` `[width]` is the normalisation's, instead of its own (FiLM by t)."""
        batch, ways, width = h.shape
        weight = self.norm.weight if gain is None else gain
        qkv = F.linear(F.layer_norm(h, (width,), weight, self.norm.bias), self.to_qkv.weight)
        q, k, v = qkv.view(batch, ways, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, ways, width)
        h = h + F.linear(mixed, self.from_heads.weight, self.from_heads.bias)
        inner = F.layer_norm(h, (width,), self.norm_mlp.weight, self.norm_mlp.bias)
        inner = F.gelu(F.linear(inner, self.up.weight, self.up.bias), approximate="tanh")
        return h + F.linear(inner, self.down.weight, self.down.bias)
