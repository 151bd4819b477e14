"""The denoiser of adapters: weights as tokens, one for each (layer, module), answered from prepared trajectories.

A stored task stands in the bank with its adapter's waypoints, in coordinates of a small basis for each token. The
condition says of each stored task how well its classifier tells the support's classes apart. The network weighs the
stored tasks by that and by where the chain stands, and answers with the weighed waypoint of the segment that step t
lies in. It has a few hundred parameters and sees no direction of the weight space, so that it can be learned from
tens of tasks; what the bank does not span it cannot answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi.schedule import Schedule


@dataclass(frozen=True)
class AdapterTokensConfig:
    """Sizes of the denoiser: `relations` numbers say how a stored task relates to the support; `hidden` units."""

    relations: int = 5
    hidden: int = 16


@dataclass(frozen=True)
class AdapterCondition:
    """What the steps need of a batch of tasks.

    Args:
        relations: `[B, T, F]`, of each stored task to the support.
        trajectories: `[T, m + 1, W, K]`, waypoints theta_0 to theta_m of the stored tasks, standardised.
        allowed: `[B, T]`, 0 for stored tasks that may not be used.
    """

    relations: Tensor
    trajectories: Tensor
    allowed: Tensor


class AdapterTokens(nn.Module):
    """eps_phi(x_t, t, condition) for W weight tokens of K coordinates.

    Args:
        tokens: W, layers times modules.
    """

    def __init__(self, config: AdapterTokensConfig, schedule: Schedule, tokens: int) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule
        self.relate = nn.Sequential(nn.Linear(config.relations, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 1))
        nn.init.zeros_(self.relate[2].weight)
        nn.init.zeros_(self.relate[2].bias)
        self.log_sharpness = nn.Parameter(torch.tensor(3.0))
        self.nothing = nn.Parameter(torch.tensor(4.0))
        self.nearness = nn.Parameter(torch.zeros(schedule.steps + 1))
        self.gain = nn.Parameter(torch.zeros(schedule.steps + 1, tokens))

    def weigh(self, x: Tensor, t: int, condition: AdapterCondition) -> Tensor:
        """How much each stored task counts, `[B, T]`; the rest up to 1 is the anchor's."""
        bank = condition.trajectories[:, int(self.schedule.segment_of_step[t])]
        near = torch.einsum("bwk,twk->bt", x, bank) / (x[0].numel() ** 0.5 * (1 + bank.flatten(1).norm(dim=1)))
        told = self.log_sharpness.exp() * condition.relations[..., 0] + self.relate(condition.relations).squeeze(-1)
        scores = (told + self.nearness[t] * near).masked_fill(condition.allowed == 0, -1e4)
        nothing = self.nothing.expand(len(x), 1)
        return torch.softmax(torch.cat([nothing, scores], dim=1), dim=1)[:, 1:]

    def waypoint(self, x: Tensor, t: int, condition: AdapterCondition) -> Tensor:
        """The network's answer: the waypoint that step t leads to, `[B, W, K]`."""
        bank = condition.trajectories[:, int(self.schedule.segment_of_step[t])]
        mixed = torch.einsum("bt,twk->bwk", self.weigh(x, t, condition), bank)
        return mixed * self.gain[t].exp().unsqueeze(-1)

    def forward(self, x: Tensor, t: int, condition: AdapterCondition) -> Tensor:
        """eps_phi at x `[B, W, K]` and step t."""
        from_x, from_waypoint = self.schedule.waypoint_factors[t]
        return x * from_x - self.waypoint(x, t, condition) * from_waypoint
