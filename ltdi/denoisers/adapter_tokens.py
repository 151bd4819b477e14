"""The denoiser of adapters: weights as tokens, one for each (layer, module), answered from prepared trajectories.

A stored task stands in the bank with its adapter's waypoints, in coordinates of a small basis for each token. The
condition says what the support set looks like under each candidate among the stored adapters. The network weighs the
candidates by that, and answers with the weighed waypoint of the segment that step t lies in. It has a few hundred parameters and sees no direction of the weight space, so that it can be learned from tens of
tasks; what the bank does not span it cannot answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi.schedule import Schedule

FIRST = 1  # the gain in leave-one-out error without a prior


@dataclass(frozen=True)
class AdapterTokensConfig:
    """Sizes of the denoiser: `evidence` numbers say what the support looks like under a candidate; `hidden` units."""

    evidence: int = 10
    hidden: int = 16


@dataclass(frozen=True)
class AdapterCondition:
    """What the steps need of a batch of tasks.

    Args:
        evidence: `[B, C, F]`, of each candidate.
        trajectories: `[B, C, m + 1, W, K]`, waypoints theta_0 to theta_m of the candidates, standardised.
        allowed: `[B, C]`, 0 for candidates that may not be used.
    """

    evidence: Tensor
    trajectories: Tensor
    allowed: Tensor


class AdapterTokens(nn.Module):
    """eps_phi(x_t, t, condition) for W weight tokens of K coordinates."""

    def __init__(self, config: AdapterTokensConfig, schedule: Schedule) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule
        self.relate = nn.Sequential(nn.Linear(config.evidence, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 1))
        nn.init.zeros_(self.relate[2].weight)
        nn.init.zeros_(self.relate[2].bias)
        self.log_sharpness = nn.Parameter(torch.tensor(3.0))

    def told(self, evidence: Tensor, allowed: Tensor) -> Tensor:
        """Scores of the candidates, `[B, C]`; by the evidence's number `FIRST` alone before anything is learned."""
        scores = self.log_sharpness.exp() * evidence[..., FIRST] + self.relate(evidence).squeeze(-1)
        return scores.masked_fill(allowed == 0, -1e4)

    def weigh(self, condition: AdapterCondition) -> Tensor:
        """How much each candidate counts, `[B, C]`, summing to 1."""
        return torch.softmax(self.told(condition.evidence, condition.allowed), dim=1)

    def waypoint(self, x: Tensor, t: int, condition: AdapterCondition) -> Tensor:
        """The network's answer: the waypoint that step t leads to, `[B, W, K]`."""
        bank = condition.trajectories[:, :, int(self.schedule.segment_of_step[t])]
        return torch.einsum("bc,bcwk->bwk", self.weigh(condition), bank)

    def forward(self, x: Tensor, t: int, condition: AdapterCondition) -> Tensor:
        """eps_phi at x `[B, W, K]` and step t."""
        from_x, from_waypoint = self.schedule.waypoint_factors[t]
        return x * from_x - self.waypoint(x, t, condition) * from_waypoint

