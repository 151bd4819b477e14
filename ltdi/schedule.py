"""The noise schedule of the chain, and where the waypoints of a trajectory sit in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ltdi.errors import InvalidConfig

SHAPES = ("cosine", "linear")


@dataclass(frozen=True)
class ScheduleConfig:
    """What fixes a schedule.

    Args:
        steps: T, the length of the chain.
        segments: m, how many waypoints are imitated; a trajectory has m + 1. 1 is vanilla diffusion.
        shape: `cosine` (Nichol and Dhariwal, 2021) or `linear` in beta.
        beta_first, beta_last: the ends of the `linear` shape.
    """

    steps: int = 20
    segments: int = 3
    shape: str = "cosine"
    beta_first: float = 0.005
    beta_last: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.segments <= self.steps:
            raise InvalidConfig(
                f"segments is {self.segments}; it must lie in 1..steps ({self.steps}), so that none is empty"
            )
        if self.shape not in SHAPES:
            raise InvalidConfig(f"schedule shape {self.shape!r} is unknown; known: {', '.join(SHAPES)}")
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise InvalidConfig("beta_first and beta_last must satisfy 0 < beta_first <= beta_last < 1")


class Schedule:
    """alpha_t for t = 1..T, its products, and the map r(.) from waypoints to steps.

    Index 0 of `alpha` and `alpha_bar` is 1, so that both are indexed by t itself.
    """

    def __init__(self, config: ScheduleConfig | None = None) -> None:
        self.config = config or ScheduleConfig()
        self.steps = self.config.steps
        self.segments = self.config.segments
        self.alpha = torch.cat([torch.ones(1, dtype=torch.float64), 1 - _betas(self.config)])
        self.alpha_bar = torch.cumprod(self.alpha, dim=0)

    def alpha_bar_from(self, k: int | Tensor, t: int | Tensor) -> Tensor:
        """How much of waypoint `x_k` is left at step t: the product of alpha over (k, t].

        1 at t = k. At k = 0 this is DDPM's alpha-bar (Lt-Di, Theorem 1).

        Args:
            k: the waypoint's step, 0 <= k <= t; an integer, or a tensor of t's shape.
            t: steps, k <= t <= steps, any shape, integer.

        Returns:
            Float64 of t's shape, in (0, 1].

        Raises:
            ValueError: a step lies outside [k, steps].
        """
        k, t = torch.as_tensor(k), torch.as_tensor(t)
        if (k < 0).any() or (t < k).any() or (t > self.steps).any():
            raise ValueError(f"steps must satisfy 0 <= k <= t <= {self.steps}; got k = {k}, t = {t}")
        return self.alpha_bar[t] / self.alpha_bar[k]

    def waypoint_step(self, i: int) -> int:
        """r(i) = floor(i T / m + 1/2): the step at which waypoint i sits (Lt-Di, Eq. 3, rounded)."""
        if not 0 <= i <= self.segments:
            raise ValueError(f"waypoint {i} lies outside 0..{self.segments}")
        return math.floor(i * self.steps / self.segments + 0.5)

    @cached_property
    def segment_of_step(self) -> Tensor:
        """Which segment i a step belongs to, t in (r(i), r(i+1)]: `[T + 1]`, integer; entry 0 is unused."""
        segment = torch.zeros(self.steps + 1, dtype=torch.long)
        for i in range(self.segments):
            segment[self.waypoint_step(i) + 1 : self.waypoint_step(i + 1) + 1] = i
        return segment

    @cached_property
    def start_of_step(self) -> Tensor:
        """k = r(i), the step of the waypoint that step t imitates: `[T + 1]`, integer; entry 0 is unused."""
        starts = torch.tensor([self.waypoint_step(i) for i in range(self.segments)])
        return starts[self.segment_of_step]

    @cached_property
    def step_factors(self) -> list[tuple[float, float]]:
        """Eq. 1's factors of x_t and of eps_phi for t = 0..T; entry 0 is unused."""
        alpha, alpha_bar = self.alpha[1:], self.alpha_bar[1:]
        noise = (1 - alpha) / ((1 - alpha_bar).sqrt() * alpha.sqrt())
        return [(0.0, 0.0), *zip((1 / alpha.sqrt()).tolist(), noise.tolist(), strict=True)]

    @cached_property
    def posterior_factors(self) -> list[tuple[float, float]]:
        """(p_t, q_t) of Eq. 7, x_{t-1} = p_t x_t + q_t x_k, the step of Eq. 1 for a denoiser that answers with x_k.

        p_t = sqrt(alpha_t) (1 - alpha_bar_{t-1}^k) / (1 - alpha_bar_t^k) and
        q_t = sqrt(alpha_bar_{t-1}^k) (1 - alpha_t) / (1 - alpha_bar_t^k). Just above a waypoint p_t is 0: the chain
        lands on it, whatever x_t is (Theorem 1). Entry 0 is unused.
        """
        t = torch.arange(1, self.steps + 1)
        k = self.start_of_step[t]
        before, left = self.alpha_bar_from(k, t - 1), 1 - self.alpha_bar_from(k, t)
        keep = self.alpha[t].sqrt() * (1 - before) / left
        move = before.sqrt() * (1 - self.alpha[t]) / left
        return [(0.0, 0.0), *zip(keep.tolist(), move.tolist(), strict=True)]

    @cached_property
    def waypoint_factors(self) -> list[tuple[float, float]]:
        """(a_t, b_t) with eps = a_t x_t - b_t x_k for the minimiser of Eq. 2 that knows x_k; entry 0 is unused."""
        kept = [1.0] + [
            float(self.alpha_bar_from(int(self.start_of_step[t]), t).sqrt()) for t in range(1, self.steps + 1)
        ]
        return [(c, c * root) for c, root in zip(self.noise_per_distance.tolist(), kept, strict=True)]

    @cached_property
    def noise_per_distance(self) -> Tensor:
        """Factor c_t with eps = c_t (x_t - sqrt(alpha_bar_t^k) x_k) for the minimiser of Eq. 2: `[T + 1]`.

        c_t = sqrt(1 - alpha_bar_t) / (1 - alpha_bar_t^k), k the start of t's segment. Entry 0 is unused.
        """
        factor = torch.zeros(self.steps + 1, dtype=torch.float64)
        t = torch.arange(1, self.steps + 1)
        factor[1:] = (1 - self.alpha_bar[t]).sqrt() / (1 - self.alpha_bar_from(self.start_of_step[t], t))
        return factor


def _betas(config: ScheduleConfig) -> Tensor:
    """beta_t for t = 1..T, float64."""
    if config.shape == "linear":
        return torch.linspace(config.beta_first, config.beta_last, config.steps, dtype=torch.float64)
    offset = 0.008
    t = torch.arange(config.steps + 1, dtype=torch.float64) / config.steps
    level = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - level[1:] / level[:-1]).clamp(max=0.999)
