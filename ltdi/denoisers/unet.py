"""The denoiser of the `paper` recipe: a one-dimensional U-Net over the flattened weights of a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net.

    Args:
        channels: of each level, outermost first; each level shortens the sequence by `stride`.
        stride: of each level, and the patch in which weights are read.
        embedding: width of the embedding of time and task.
        time: what the network is told, `t` or `t-k` (the paper writes both; `t-k` hides the segment).
    """

    channels: tuple[int, ...] = (16, 32, 64)
    stride: int = 4
    embedding: int = 128
    time: str = "t"

    def __post_init__(self) -> None:
        if self.time not in ("t", "t-k"):
            raise InvalidConfig(f"unet.time is {self.time!r}; known: t, t-k", field="unet")


class UNet(nn.Module):
    """eps_phi(x_t, t, task) on `[B, P]`, condition by FiLM in every block.

    The weights are read in patches of `stride` (the full length costs fifty times as much and learns less). As in
    `ClassTokens` the network answers with the waypoint x_k, from which eps_phi follows as for the minimiser of
    Eq. 2: the noise itself, as long as the weights, does not fit through the narrow middle.

    Args:
        inputs: size of the flattened task embedding, N D.
        length: P.
    """

    def __init__(self, config: UNetConfig, schedule: Schedule, inputs: int, length: int) -> None:
        super().__init__()
        self.length, self.stride = length, config.stride
        whole = config.stride ** (len(config.channels) + 1)
        self.padded = -(-length // whole) * whole
        told = torch.arange(schedule.steps + 1)
        self.told = told if config.time == "t" else (told - schedule.start_of_step).clamp_min(0)
        self.factors = torch.tensor(schedule.waypoint_factors, dtype=torch.float32)
        kept = schedule.alpha_bar_from(schedule.start_of_step, torch.arange(schedule.steps + 1))
        self.skip = torch.stack([kept.sqrt(), (1 - kept).sqrt()], dim=1).float()
        width, channels, stride = config.embedding, config.channels, config.stride
        self.time = nn.Embedding(schedule.steps + 1, width)
        self.read_task = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv1d(1, channels[0], stride, stride=stride)
        pairs = list(zip(channels, channels[1:] + channels[-1:], strict=True))
        self.blocks_down = nn.ModuleList(Block(a, width) for a, _ in pairs)
        self.down = nn.ModuleList(nn.Conv1d(a, b, stride, stride=stride) for a, b in pairs)
        self.middle = Block(channels[-1], width)
        self.up = nn.ModuleList(nn.ConvTranspose1d(b, a, stride, stride=stride) for a, b in pairs)
        self.blocks_up = nn.ModuleList(Block(a, width) for a, _ in pairs)
        self.last = nn.ConvTranspose1d(channels[0], 1, stride, stride=stride)
        self.read_place = nn.Linear(width, length)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: int | Tensor, condition: Tensor) -> Tensor:
        """eps_phi, `[B, P]`.

        Args:
            x: `[B, P]`.
            t: a step for all, or `[B]`.
            condition: `[B, N D]`.
        """
        steps = torch.as_tensor(t).cpu()
        from_x, from_waypoint = self.factors[steps].to(x.device).reshape(-1, 2, 1).unbind(1)
        return x * from_x - self.waypoint(x, steps, condition) * from_waypoint

    def waypoint(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's answer: the waypoint that a step leads to, `[B, P]`.

        What x_t says of it by itself, sqrt(kept) x_t for waypoints of unit variance, and the layers for the rest, of
        standard deviation sqrt(1 - kept) (Karras et al., 2022): at x_T they answer from the task alone.
        """
        from_x, from_layers = self.skip[t].to(x.device).reshape(-1, 2, 1).unbind(1)
        return x * from_x + self._layers(x, self.told[t].to(x.device), condition) * from_layers

    def _layers(self, x: Tensor, told: Tensor, condition: Tensor) -> Tensor:
        state = F.silu(self.read_task(condition) + self.time(told))
        h = self.first(F.pad(x, (0, self.padded - self.length)).unsqueeze(1))
        skips = []
        for block, down in zip(self.blocks_down, self.down, strict=True):
            h = block(h, state)
            skips.append(h)
            h = down(h)
        h = self.middle(h, state)
        for block, up, skip in zip(
            reversed(self.blocks_up), reversed(self.up), reversed(skips), strict=True
        ):
            h = block(up(h) + skip, state)
        return self.last(h).squeeze(1)[:, : self.length] + self.read_place(state)


class Block(nn.Module):
    """Two convolutions with group normalisation, FiLM between them, and a residual connection."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(max(1, min(8, channels // 2)), channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, 3, padding=1) for _ in range(2))
        self.film = nn.Linear(embedding, 2 * channels)

    def forward(self, h: Tensor, state: Tensor) -> Tensor:
        """`[B, channels, L]` to the same."""
        gain, shift = self.film(state).unsqueeze(-1).chunk(2, dim=1)
        inner = self.convolutions[0](F.silu(self.norms[0](h)))
        inner = self.norms[1](inner) * (1 + gain) + shift
        return h + self.convolutions[1](F.silu(inner))
