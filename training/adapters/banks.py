"""The multi-task adapter and the bank of each fold: what is known when the fold's sources are left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ltdi.adapter_bank import Bank, make_bank
from ltdi.files import read_safetensors, write_safetensors
from training.adapters.encoded import EncodedTask
from training.adapters.store import Stored, final, read_store

COMPONENTS = 24


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


def read_multitask(out: Path, fold: int, tasks: Sequence[EncodedTask]) -> tuple[Tensor, list[Tensor]]:
    """A fold's multi-task adapter and the classifiers of these tasks on it."""
    tensors, _ = read_safetensors(out / f"multitask{fold}.safetensors", "multi-task adapter")
    return tensors["lora_b"], [tensors[f"head.{task.name}"] for task in tasks]


def fold_bank(out: Path, tasks: Sequence[EncodedTask], fold: int, components: int = COMPONENTS) -> Bank:
    """The bank that knows nothing of a fold."""
    known = others(tasks, fold)
    anchor, heads = read_multitask(out, fold, known)
    waypoints = torch.stack([one.lora_b for one in stored_of(out, known)])
    return make_bank(anchor, waypoints, heads, [task.pairs for task in known], components)


def mean_adapter(stored: Sequence[Stored]) -> Tensor:
    """The mean of the final adapters, `[layers, 2, D, rank]`."""
    return final(stored).mean(0)
