"""The denoiser of the `default` recipe: a token per class, attention over classes, any number of ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        self.time = nn.Parameter(torch.randn(schedule.steps + 1, 3 * width) * 0.02)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.answer = nn.Linear(width, outputs)
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    def condition(self, task: Tensor) -> Tensor:
        """What every step needs of the task embedding `[B, N, C]`: `[B, N, width]`."""
        h = self.read_task(self.dropout(task))
        for layer in self.encoder:
            h = layer(h)
        return h

    def waypoint(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """The network's answer: the waypoint that step t leads to, `[B, N, D + 1]`."""
        shift, gain, last_gain = self.time[t].chunk(3)
        h = self.read_x(x) + condition + shift
        for layer in self.layers:
            h = layer(h, gain)
        return self.answer(self.norm(h) * (1 + last_gain))

    def forward(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """eps_phi at x `[B, N, D + 1]` and step t, `[B, N, D + 1]`."""
        from_x, from_waypoint = self.factors[t]
        return (x * from_x).sub_(self.waypoint(x, t, condition), alpha=from_waypoint)


class Layer(nn.Module):
    """Pre-norm attention over classes and a two-layer perceptron."""

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
        """`[B, N, width]` to the same; `gain` `[width]` scales the normalised tokens (FiLM by t)."""
        normed = self.norm(h)
        if gain is not None:
            normed = normed * (1 + gain)
        batch, ways, width = h.shape
        q, k, v = self.to_qkv(normed).view(batch, ways, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, ways, width)
        h = h + self.from_heads(mixed)
        return h + self.down(F.gelu(self.up(self.norm_mlp(h)), approximate="tanh"))
