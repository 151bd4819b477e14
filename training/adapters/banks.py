"""What is known when a fold's sources are left out: the multi-task adapter, the mean, the bank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.bank import Bank, make_bank
from ltdi.bodies.adapted import AdaptedBert
from ltdi.files import read_safetensors, write_safetensors
from training.adapters.encoded import EncodedTask, hidden_features, name_features
from training.adapters.store import Stored, final, read_store
from training.adapters.tasks import BANKED

COMPONENTS = 24
FROZEN_ROWS, FROZEN_STRENGTH, TOPIC_ROWS = 1000, 1.0, 100


def others(tasks: Sequence[EncodedTask], fold: int) -> list[EncodedTask]:
    """The tasks of all folds but one; all of them where `fold` is negative."""
    return [task for task in tasks if task.fold != fold]


def stored_of(out: Path, tasks: Sequence[EncodedTask]) -> list[Stored]:
    """The prepared adapters of the tasks."""
    return read_store(out / "store", [task.name for task in tasks])


def write_multitask(out: Path, fold: int, tasks: Sequence[EncodedTask], lora_b: Tensor, heads: Sequence[Tensor]) -> None:
    """Keep a fold's multi-task adapter and its classifiers."""
    tensors = {"lora_b": lora_b} | {f"head.{task.name}": head for task, head in zip(tasks, heads, strict=True)}
    write_safetensors(out / f"multitask{fold}.safetensors", tensors, {"fold": str(fold)})


def read_multitask(out: Path, fold: int) -> Tensor:
    """A fold's multi-task adapter."""
    return read_safetensors(out / f"multitask{fold}.safetensors", "multi-task adapter")[0]["lora_b"]


def mean_adapter(stored: Sequence[Stored]) -> Tensor:
    """The mean of the final adapters, `[layers, 2, D, rank]`."""
    return final(stored).mean(0)


def frozen_head(encoder: AdaptedBert, task: EncodedTask) -> Tensor:
    """A task's classifier on the frozen body's mean-pooled features of length one: ridge regression, `[N, D + 1]`."""
    part = task.train.take(torch.arange(min(FROZEN_ROWS, len(task.train))))
    features = F.normalize(hidden_features(encoder, part.tokens)["mean"], dim=1)
    z, y = features - features.mean(0), F.one_hot(part.labels, task.ways).float()
    rows = torch.linalg.solve(z.T @ z + FROZEN_STRENGTH * torch.eye(z.shape[1]), z.T @ (y - y.mean(0))).T
    return torch.cat([rows, (y.mean(0) - rows @ features.mean(0)).unsqueeze(1)], dim=1)


def frozen_mean(encoder: AdaptedBert, task: EncodedTask) -> Tensor:
    """The mean of a task's texts on the frozen body, features of length one: `[D]`."""
    part = task.train.take(torch.arange(min(TOPIC_ROWS, len(task.train))))
    return F.normalize(hidden_features(encoder, part.tokens)["mean"], dim=1).mean(0)


def write_topics(out: Path, encoder: AdaptedBert, tasks: Sequence[EncodedTask]) -> None:
    """Keep the mean texts of the tasks."""
    write_safetensors(out / "topics.safetensors", {task.name: frozen_mean(encoder, task) for task in tasks}, {})


def write_names(out: Path, encoder: AdaptedBert, model: str, tasks: Sequence[EncodedTask]) -> None:
    """Keep the names of the tasks' classes on the frozen body."""
    write_safetensors(out / "names.safetensors", {task.name: name_features(encoder, model, task.classes) for task in tasks}, {})


def read_names(out: Path) -> dict[str, Tensor]:
    """Each task's names of classes on the frozen body, `[N, D]`."""
    return read_safetensors(out / "names.safetensors", "names of classes")[0]


def write_frozen(out: Path, encoder: AdaptedBert, tasks: Sequence[EncodedTask]) -> None:
    """Keep the classifiers of the tasks on the frozen body."""
    write_safetensors(out / "frozen.safetensors", {task.name: frozen_head(encoder, task) for task in tasks}, {})


def banked(tasks: Sequence[EncodedTask]) -> list[EncodedTask]:
    """Those of the tasks that a bank holds."""
    return [task for task in tasks if task.name in BANKED]


def bank_of(out: Path, tasks: Sequence[EncodedTask], default: Tensor, components: int = COMPONENTS) -> Bank:
    """The bank that knows these tasks and no other; all are `BANKED`. What needs no relative is `default`."""
    start = read_safetensors(out / "start.safetensors", "shared start")[0]["lora_b"]
    frozen, _ = read_safetensors(out / "frozen.safetensors", "classifiers on the frozen body")
    stored = stored_of(out, tasks)
    waypoints = torch.stack([one.lora_b for one in stored])
    pairs = [task.pairs for task in tasks]
    heads = [frozen[task.name] for task in tasks]
    topics, _ = read_safetensors(out / "topics.safetensors", "mean texts")
    means = torch.stack([topics[task.name] for task in tasks])
    names = read_names(out)
    own = [one.classifier[0] for one in stored]
    return make_bank(start, waypoints, default, heads, own, pairs, means, [names[task.name] for task in tasks], components)
