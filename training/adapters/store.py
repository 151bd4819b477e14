"""The store of prepared adapters: a safetensors shard a task, written whole, kept from run to run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ltdi.bodies.adapted import AdaptedBert
from ltdi.files import digest, read_safetensors, write_safetensors
from training.adapters.encoded import EncodedTask
from training.adapters.fit import FitConfig, accuracy, fit_adapter
from training.adapters.masking import BERT, Masking

LONG = dict.fromkeys(
    ("mpqa", "subj", "emotion", "irony", "cola", "mrpc", "qnli", "stsb", "rte", "scicite", "trec"), 3
)  # times the steps of the others
LONG |= dict.fromkeys(("sst2", "mr", "cr"), 6)


@dataclass(frozen=True)
class Stored:
    """A prepared adapter: waypoints of B `[m + 1, layers, 2, D, rank]` and of the classifier `[m + 1, N, D + 1]`."""

    name: str
    lora_b: Tensor
    classifier: Tensor
    said: dict


def prepare(
    encoder: AdaptedBert, tasks: Sequence[EncodedTask], start: Tensor, config: FitConfig, folder: Path, log: Callable = print,
    masking: Masking = BERT,
) -> None:  # fmt: skip
    """Fit what is not in the store yet; what was made with another start or other settings is made anew.

    Tasks of `LONG` take more steps.
    """
    for i, task in enumerate(tasks):
        own = replace(config, steps=LONG.get(task.name, 1) * config.steps)
        stamp = _stamp(encoder, start, own)
        path = folder / f"{task.name}.safetensors"
        if path.is_file() and json.loads(read_safetensors(path, "stored adapter")[1]["said"])["stamp"] == stamp:
            continue
        began = time.monotonic()
        fitted = fit_adapter(encoder, task, start, own, masking)
        seconds = time.monotonic() - began
        held = accuracy(encoder, fitted.lora_b[0], fitted.classifier[0], task.held)
        said = {"task": task.name, "fold": task.fold, "ways": task.ways, "held_accuracy": round(held, 4),
                "loss": round(fitted.loss, 4), "seconds": round(seconds, 1), "waypoints": "equal path length",
                "settings": asdict(own), "stamp": stamp}  # fmt: skip
        tensors = {"lora_b": fitted.lora_b, "classifier": fitted.classifier}
        write_safetensors(path, tensors, {"said": json.dumps(said)})
        log(f"{i + 1}/{len(tasks)} {task.name}: held {held:.3f} loss {fitted.loss:.3f} {seconds:.0f} s")


def read_store(folder: Path, names: Sequence[str]) -> list[Stored]:
    """The prepared adapters of these tasks, in their order."""
    stored = []
    for name in names:
        tensors, metadata = read_safetensors(folder / f"{name}.safetensors", "stored adapter")
        stored.append(Stored(name, tensors["lora_b"], tensors["classifier"], json.loads(metadata["said"])))
    return stored


def _stamp(encoder: AdaptedBert, start: Tensor, config: FitConfig) -> str:
    parts = [tensor.contiguous().numpy().tobytes() for tensor in (encoder.lora_a, start)]
    return digest(*parts, json.dumps(asdict(config)).encode())[:16]


def final(stored: Sequence[Stored]) -> Tensor:
    """theta_0 of each, `[T, layers, 2, D, rank]`."""
    return torch.stack([one.lora_b[0] for one in stored])
