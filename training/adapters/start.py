"""The shared start of all adapters: [CLS] taught to say what the mean over tokens says, without a label.

all-MiniLM-L6-v2 was trained with mean pooling. BERT's pooler on [CLS], which the classifier of
BertForSequenceClassification reads, knows little: the best closed form on it is ten points worse. The start is a LoRA
under which similarities of pooler features follow those of the frozen model's mean-pooled features. Its A is learned
with it, and is then the A of every adapter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.bodies.adapted import AdaptedBert, Tokens, mean_pooled
from ltdi.files import write_safetensors
from training.adapters.encoded import EncodedTask


@dataclass(frozen=True)
class StartConfig:
    """How the start is learned: `steps` of Adam on `batch` texts; `learn_a` whether A moves too."""

    steps: int = 160
    batch: int = 48
    rate: float = 2e-3
    learn_a: bool = True
    seed: int = 0


def similarity_loss(features: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities among the rows, each set of features centred; `[M, D]` both."""
    own, other = (F.normalize(rows - rows.mean(0), dim=-1) for rows in (features, wanted))
    return (own @ own.T - other @ other.T).square().mean()


def learn_start(
    encoder: AdaptedBert, tasks: Sequence[EncodedTask], config: StartConfig, log=print, lora_b: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A `[layers, 2, rank, D]` and the start's B `[layers, 2, D, rank]`, from the texts of the tasks' train parts.

    Args:
        lora_b: what to go on from; nothing learned where absent.
    """
    draw = torch.Generator().manual_seed(config.seed)
    lora_a = encoder.lora_a.clone().requires_grad_(config.learn_a)
    target = encoder.target
    lora_b = torch.zeros(target.layers, 2, target.size, target.rank) if lora_b is None else lora_b.clone()
    lora_b.requires_grad_(True)
    own = [lora_b, lora_a] if config.learn_a else [lora_b]
    optimiser = torch.optim.Adam(own, lr=config.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.rate, total_steps=config.steps)
    encoder.lora_a = lora_a
    began, losses = time.monotonic(), []
    for step in range(config.steps):
        task = tasks[int(torch.randint(len(tasks), (1,), generator=draw))]
        others = tasks[int(torch.randint(len(tasks), (1,), generator=draw))]
        batches = [_some(one, config.batch // 2, draw) for one in (task, others)]
        loss = sum(_loss(encoder, lora_b, batch) for batch in batches) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            log(f"start: step {step + 1} loss {sum(losses[-50:]) / 50:.4f} {time.monotonic() - began:.0f} s")
    encoder.lora_a = lora_a.detach()
    return encoder.lora_a, lora_b.detach()


def _some(task: EncodedTask, count: int, draw: torch.Generator) -> Tokens:
    return task.train.some(count, draw).tokens


def _loss(encoder: AdaptedBert, lora_b: Tensor, batch: Tokens) -> Tensor:
    with torch.no_grad():
        wanted = mean_pooled(encoder.hidden(batch), batch.mask)
    return similarity_loss(encoder.pooler(encoder.hidden(batch, lora_b[None])[:, 0]), wanted)


def save_start(path: Path, lora_a: Tensor, lora_b: Tensor) -> None:
    """The start as safetensors."""
    write_safetensors(path, {"lora_a": lora_a, "lora_b": lora_b}, {"what": "shared start of adapters"})
