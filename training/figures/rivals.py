"""Table 1's other methods on the laboratory's tasks: REPTILE, a conditional VAE over weights, cosine means tuned by episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi import baselines
from training.figures.models import condition_of
from training.figures.tasks import Lab, Tasks

Heads = Callable[[Tasks], Tensor]


@dataclass(frozen=True)
class Budget:
    """Batches of tasks, as the generators have them."""

    batches: int = 600
    tasks: int = 64


def reptile(lab: Lab, seed: int, budget: Budget, *, inner_lr: float, inner_steps: int = 5, outer_lr: float = 0.2) -> Heads:
    """A start of the head for all tasks, moved towards where a few plain gradient steps on the examples lead (Nichol et al., 2018).

    Inner steps are plain gradient descent: the laboratory's heads are fitted so. At test twice as many steps.
    """
    chance = torch.Generator().manual_seed(seed)
    start = lab.codec.decode(torch.randn(lab.config.ways, lab.config.size + 1, generator=chance))
    for batch in range(budget.batches):
        rows = torch.randint(len(lab.train.support), (budget.tasks,), generator=chance)
        support = lab.train.support[rows][:, torch.randperm(lab.config.ways, generator=chance)]
        adapted = adapt(start, support, inner_lr, inner_steps)
        start = start + outer_lr * (1 - batch / budget.batches) * (adapted.mean(0) - start)
    return lambda tasks: adapt(start, tasks.support, inner_lr, 2 * inner_steps)


def adapt(start: Tensor, support: Tensor, lr: float, steps: int) -> Tensor:
    """Heads `[B, N, D + 1]` after gradient steps on the cross entropy of the examples `[B, N, K, D]`."""
    ways, shots = support.shape[1:3]
    features = F.pad(support.flatten(1, 2), (0, 1), value=1.0)
    target = torch.eye(ways).repeat_interleave(shots, 0)
    heads = start.expand(len(support), -1, -1)
    for _ in range(steps):
        error = torch.softmax(features @ heads.transpose(1, 2), dim=-1) - target
        heads = heads - lr * error.transpose(1, 2) @ features / len(target)
    return heads


class _Net(nn.Module):
    """A row network of two hidden layers that sees the other classes as their mean."""

    def __init__(self, inputs: int, outputs: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))
        self.direct = nn.Linear(inputs, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """`[B, N, inputs]` to `[B, N, outputs]`."""
        return self.layers(torch.cat([rows, rows.mean(1, keepdim=True).expand_as(rows)], dim=2)) + self.direct(rows)


def weights_vae(lab: Lab, seed: int, budget: Budget, *, beta: float, latent: int = 16) -> Heads:
    """LLO-VAE: a VAE of optima given the task embedding (Kingma and Welling, 2014); one draw of the latent at test.

    Args:
        beta: weight of the divergence, per weight of the head.
    """
    torch.manual_seed(seed)
    size, chance = lab.config.size, torch.Generator().manual_seed(seed)
    encoder, decoder = _Net(2 * size + 1, 2 * latent), _Net(size + latent, size + 1)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    optima, conditions = lab.codec.encode(lab.train.optimum), condition_of(lab.train).unflatten(1, (lab.config.ways, -1))
    for batch in range(budget.batches):
        _set_rate(optimizer, batch, budget)
        rows = torch.randint(len(optima), (budget.tasks,), generator=chance)
        x, task = optima[rows], conditions[rows]
        mean, log = encoder(torch.cat([x, task], dim=2)).chunk(2, dim=2)
        drawn = mean + (log / 2).exp() * torch.randn(mean.shape, generator=chance)
        divergence = (mean.square() + log.exp() - log - 1).sum(2).mean() / 2
        loss = (decoder(torch.cat([task, drawn], dim=2)) - x).square().mean() + beta * divergence / (size + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def heads(tasks: Tasks) -> Tensor:
        task = condition_of(tasks).unflatten(1, (lab.config.ways, -1))
        drawn = torch.randn(*task.shape[:2], latent, generator=torch.Generator().manual_seed(7_919))
        return lab.codec.decode(decoder(torch.cat([task, drawn], dim=2)))

    return heads


def tuned_cosine(lab: Lab, seed: int, budget: Budget) -> Heads:
    """Meta-Baseline (Chen et al., 2021): cosine to class means with a learned scale, features tuned by episodes.

    The body is frozen here, so that what is tuned is a linear map on its features.
    """
    chance = torch.Generator().manual_seed(seed)
    matrix, scale = torch.eye(lab.config.size).requires_grad_(True), torch.tensor(10.0, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [matrix], "lr": 1e-3}, {"params": [scale], "lr": 1e-2}])
    target = torch.arange(lab.config.ways).repeat_interleave(lab.train.query.shape[2])
    for _ in range(budget.batches):
        rows = torch.randint(len(lab.train.support), (budget.tasks,), generator=chance)
        answers = scale * _cosine(matrix, lab.train.support[rows], lab.train.query[rows].flatten(1, 2))
        loss = F.cross_entropy(answers.flatten(0, 1), target.repeat(len(rows)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lambda tasks: _as_head(matrix.detach(), tasks.support)


def _cosine(matrix: Tensor, support: Tensor, query: Tensor) -> Tensor:
    means = F.normalize(support @ matrix, dim=-1).mean(2)
    return F.normalize(query @ matrix, dim=-1) @ F.normalize(means, dim=-1).transpose(1, 2)


def _as_head(matrix: Tensor, support: Tensor) -> Tensor:
    """The linear head with the same answers: a query's length does not change which cosine is the largest."""
    means = F.normalize(F.normalize(support @ matrix, dim=-1).mean(2), dim=-1)
    return F.pad(means @ matrix.T, (0, 1))


def _set_rate(optimizer: torch.optim.Optimizer, batch: int, budget: Budget) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 3e-3 * (1 + math.cos(math.pi * batch / budget.batches)) / 2


CLOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "class means": baselines.class_means,
    "class means, cosine": lambda support: _as_head(torch.eye(support.shape[-1]), support),
    **{f"ridge, {s:g}": (lambda support, s=s: baselines.ridge(support, s)) for s in (0.1, 1.0)},
    **{f"logistic regression, C = {c:g}": (lambda support, c=c: baselines.logistic_regression(support, c)) for c in (1.0, 10.0)},
}
