"""One LoRA for all training tasks, each task with a classifier of its own: the baseline that generators have to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.bodies.adapted import AdaptedBert
from training.adapters.encoded import EncodedTask, Part
from training.adapters.masking import BERT, Masking, dropped


@dataclass(frozen=True)
class MultiTaskConfig:
    """`steps` of Adam, each on one after another `tasks` tasks of `rows` rows."""

    steps: int = 200
    tasks: int = 4
    rows: int = 12
    rate: float = 4e-3
    head_rate: float = 1e-2
    token_dropout: float = 0.1
    seed: int = 0


def train_multitask(
    encoder: AdaptedBert,
    tasks: Sequence[EncodedTask],
    start: Tensor,
    heads: Sequence[Tensor],
    config: MultiTaskConfig,
    log: Callable = print,
    masking: Masking = BERT,
) -> tuple[Tensor, list[Tensor]]:
    """B `[layers, 2, D, rank]` of the multi-task LoRA, and each task's classifier on it.

    Args:
        start: `[layers, 2, D, rank]`.
        heads: a classifier for each task to start from, `[N, D + 1]`.
    """
    draw = torch.Generator().manual_seed(config.seed)
    lora_b = start.clone().requires_grad_(True)
    own = [head.clone().requires_grad_(True) for head in heads]
    optimiser = torch.optim.Adam([{"params": [lora_b], "lr": config.rate}, {"params": own, "lr": config.head_rate}])
    rates = [config.rate, config.head_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=config.steps, pct_start=0.1)
    order: list[int] = []
    losses = []
    for step in range(config.steps):
        optimiser.zero_grad()
        total = 0.0
        for _ in range(config.tasks):
            order = order or torch.randperm(len(tasks), generator=draw).tolist()
            i = order.pop()
            batch = tasks[i].train.some(config.rows, draw)
            batch = replace(batch, tokens=dropped(batch.tokens, config.token_dropout, draw, masking))
            loss = shared_loss(encoder, lora_b, own[i], batch) / config.tasks
            loss.backward()
            total += loss.item()
        optimiser.step()
        schedule.step()
        losses.append(total)
        if step % 40 == 39:
            log(f"multi-task: step {step + 1} loss {sum(losses[-40:]) / 40:.3f}")
    return lora_b.detach(), [head.detach() for head in own]


def shared_loss(encoder: AdaptedBert, lora_b: Tensor, head: Tensor, batch: Part) -> Tensor:
    """Cross entropy over log N, so that tasks of many classes do not weigh more."""
    features = encoder.pooler(encoder.hidden(batch.tokens, lora_b[None])[:, 0])
    loss = F.cross_entropy(F.linear(features, head[:, :-1], head[:, -1]), batch.labels)
    return loss / torch.tensor(float(len(head))).log()
