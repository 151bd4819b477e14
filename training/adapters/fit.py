"""Fitting one adapter to a task's full data: Algorithm 1 on B and the classifier, A shared and fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.bodies.adapted import AdaptedBert
from training.adapters.encoded import EncodedTask, Part, hidden_features
from training.adapters.masking import BERT, Masking, dropped

FIRST_ROWS, FIRST_SCALE = 64, 4.0


@dataclass(frozen=True)
class FitConfig:
    """How an adapter is fitted.

    Args:
        steps: of Adam.
        batch: rows a step.
        rate: of B, reached after a tenth of the steps and lowered to 0.
        head_rate: of the classifier.
        sam_radius: rho, over B and the classifier together; 0 is plain descent.
        token_dropout: share of words replaced by the mask (augmentation).
        waypoints: m + 1, the start among them.
    """

    steps: int = 32
    batch: int = 16
    rate: float = 6e-3
    head_rate: float = 6e-3
    sam_radius: float = 0.02
    token_dropout: float = 0.1
    waypoints: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves behind.

    Args:
        lora_b: `[m + 1, layers, 2, D, rank]`, waypoints theta_0 (last) to theta_m (start).
        classifier: `[m + 1, N, D + 1]`.
        loss: of the last quarter of the steps.
    """

    lora_b: Tensor
    classifier: Tensor
    loss: float


def fit_adapter(
    encoder: AdaptedBert, task: EncodedTask, start: Tensor, config: FitConfig, masking: Masking = BERT
) -> Fitted:
    """Algorithm 1 on one task from the shared start `[layers, 2, D, rank]`."""
    draw = torch.Generator().manual_seed(config.seed)
    lora_b = start.clone().requires_grad_(True)
    head = first_head(encoder, task, start, draw).requires_grad_(True)
    weights = [lora_b, head]
    optimiser = torch.optim.Adam([{"params": [lora_b], "lr": config.rate}, {"params": [head], "lr": config.head_rate}])
    rates = [config.rate, config.head_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=config.steps, pct_start=0.1)
    path, losses = [_copy(weights)], []
    for _ in range(config.steps):
        batch = task.train.some(config.batch, draw)
        batch = replace(batch, tokens=dropped(batch.tokens, config.token_dropout, draw, masking))
        losses.append(sam_step(encoder, weights, batch, config.sam_radius))
        optimiser.step()
        schedule.step()
        path.append(_copy(weights))
    kept = equal_length([torch.cat([b.flatten(), h.flatten()]) for b, h in path], config.waypoints)
    tail = losses[-max(len(losses) // 4, 1) :]
    kept_b, kept_head = (torch.stack([path[i][part] for i in kept]) for part in (0, 1))
    return Fitted(kept_b, kept_head, sum(tail) / len(tail))


def first_head(encoder: AdaptedBert, task: EncodedTask, start: Tensor, draw: torch.Generator) -> Tensor:
    """The classifier that a fit starts from, `[N, D + 1]`: ridge regression on `FIRST_ROWS` rows under the start."""
    part = task.train.take(torch.randint(len(task.train), (FIRST_ROWS,), generator=draw))
    features = hidden_features(encoder, part.tokens, start)["pooler"]
    centre = features.mean(0)
    length = (features - centre).norm(dim=1).mean()
    z = (features - centre) / length
    y = F.one_hot(part.labels, task.ways).float()
    rows = torch.linalg.solve(z @ z.T + torch.eye(len(z)), y - y.mean(0)).T @ z * (FIRST_SCALE / length)
    return torch.cat([rows, (-rows @ centre).unsqueeze(1)], dim=1)


def sam_step(encoder: AdaptedBert, weights: list[Tensor], batch: Part, radius: float) -> float:
    """Leave in `.grad` the gradient at a point uphill (Foret et al., 2021); the loss there.

    Uphill is where the last step's gradient points (Momentum-SAM, Becker et al., 2024, without the average), so that a
    step costs one gradient instead of two. The first step has none.
    """
    moves = _uphill(weights, radius)
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(move)
    loss = task_loss(encoder, *weights, batch)
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for weight, move, gradient in zip(weights, moves, gradients, strict=True):
            weight.sub_(move)
            weight.grad = gradient
    return loss.item()


def _uphill(weights: list[Tensor], radius: float) -> list[Tensor]:
    if radius == 0 or any(weight.grad is None for weight in weights):
        return [torch.zeros_like(weight) for weight in weights]
    norm = torch.sqrt(sum(weight.grad.square().sum() for weight in weights)).clamp_min(1e-12)
    return [weight.grad * (radius / norm) for weight in weights]


def task_loss(encoder: AdaptedBert, lora_b: Tensor, head: Tensor, batch: Part) -> Tensor:
    """Cross entropy of the classifier `[N, D + 1]` on the pooler's output under one adapter."""
    features = encoder.pooler(encoder.hidden(batch.tokens, lora_b[None])[:, 0])
    return F.cross_entropy(F.linear(features, head[:, :-1], head[:, -1]), batch.labels)


def equal_length(path: list[Tensor], count: int) -> list[int]:
    """Indices of `count` points at equal distance along a path, the last point first and the first point last."""
    lengths = torch.stack([torch.zeros(())] + [(b - a).norm() for a, b in pairwise(path)]).cumsum(0)
    wanted = torch.linspace(float(lengths[-1]), 0, count)
    return [int((lengths - at).abs().argmin()) for at in wanted]


def accuracy(encoder: AdaptedBert, lora_b: Tensor, head: Tensor, part: Part) -> float:
    """Share of the rows that the adapter with its own classifier gets right."""
    features = hidden_features(encoder, part.tokens, lora_b)["pooler"]
    return float((F.linear(features, head[:, :-1], head[:, -1]).argmax(1) == part.labels).float().mean())


def _copy(weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    return weights[0].detach().clone(), weights[1].detach().clone()
