"""Accuracy of every method on the tasks left out, a file a task and pass, kept from run to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.bank import Bank
from ltdi.adapters.generator import AdapterGenerator
from ltdi.adapters.support_heads import left_out
from ltdi.bodies.adapted import AdaptedBert
from ltdi.files import write_json
from training.adapters.encoded import EncodedTask, Part, hidden_features
from training.adapters.heads import head_accuracies, percent

SEEDS, SHOTS, TESTED = (0, 1, 2), 16, 200


def support_of(task: EncodedTask, seed: int) -> Part:
    """The support set of a seed."""
    return task.train.take(task.draw(seed, SHOTS))


def tested(task: EncodedTask) -> Part:
    """What is measured on: at most `TESTED` rows, in an order that was drawn once."""
    return task.test.take(torch.arange(min(TESTED, len(task.test))))


def fixed_adapter(encoder: AdaptedBert, task: EncodedTask, lora_b: Tensor | None, feature: str) -> tuple[list, list]:
    """Each seed's accuracies by closed form under one adapter: on the features as they are, and at unit length."""
    parts = [support_of(task, seed) for seed in SEEDS]
    test = hidden_features(encoder, tested(task).tokens, lora_b)[feature]
    found: tuple[list, list] = ([], [])
    for part in parts:
        support = hidden_features(encoder, part.tokens, lora_b)[feature]
        for unit, rows in zip((False, True), found, strict=True):
            rows.append(head_accuracies(support, part.labels, task.ways, test, tested(task).labels, unit))
    return found


def baselines(encoder: AdaptedBert, task: EncodedTask, multitask: Tensor, mean: Tensor, default: Tensor) -> dict:
    """The frozen body, the default adapter, the multi-task adapter, the mean adapter."""
    plain, unit = fixed_adapter(encoder, task, None, "mean")
    adapters = {"default adapter": default, "multi-task": multitask, "mean adapter": mean}
    return {"frozen, mean pooled": plain, "frozen, mean pooled, unit length": unit} | {
        name: fixed_adapter(encoder, task, lora_b, "pooler")[0] for name, lora_b in adapters.items()
    }


def pick(encoder: AdaptedBert, task: EncodedTask, names: Sequence[str], adapters: Tensor, seed: int) -> dict:
    """The training adapter with the best leave-one-out accuracy on a seed's support, ties by squared error."""
    part, said = support_of(task, seed), []
    for lora_b in adapters:
        features = hidden_features(encoder, part.tokens, lora_b)["pooler"]
        right, error = left_out(features, part.labels, task.ways, features[:0], 1.0, 0.0)
        said.append((right, -error))
    return {"chosen": names[max(range(len(said)), key=lambda i: said[i])]}


def closed_forms(encoder: AdaptedBert, task: EncodedTask, lora_b: Tensor, seed: int) -> dict:
    """Accuracies of the closed forms on a seed's support under an adapter."""
    part, test = support_of(task, seed), tested(task)
    features = [hidden_features(encoder, one.tokens, lora_b)["pooler"] for one in (part, test)]
    return head_accuracies(features[0], part.labels, task.ways, features[1], test.labels)


def picked(
    encoder: AdaptedBert, task: EncodedTask, names: Sequence[str], adapters: Tensor, chosen: str, seed: int
) -> dict:
    """What the adapter that was picked has."""
    return {"picked": closed_forms(encoder, task, adapters[list(names).index(chosen)], seed), "chosen": chosen}


def generated(
    encoder: AdaptedBert, task: EncodedTask, generator: AdapterGenerator, bank: Bank, stored: Sequence[str],
    names: Tensor, other: EncodedTask,
) -> dict:  # fmt: skip
    """The generated adapter with its own head and with closed forms, told the names of the classes or not, and the controls.

    Args:
        stored: the stored tasks, without the default.
        names: `[N, D]`, of the classes on the frozen body.
        other: the task whose support the control is conditioned on.
    """
    found: dict[str, list] = {}
    for seed in SEEDS:
        part = support_of(task, seed)
        for title, told in (("", names), (", names hidden", None)):
            made = generator.generate(encoder, bank, part.tokens, part.labels, task.ways, seed, told)
            test, support = (hidden_features(encoder, one.tokens, made.lora_b)["pooler"] for one in (tested(task), part))
            closed = head_accuracies(support, part.labels, task.ways, test, tested(task).labels)
            said = zip(made.candidates.tolist(), made.weights.tolist(), strict=True)
            for key, value in (
                (f"generated{title}", _answered(test, made.classifier, task)),
                (f"generated{title}, closed form", closed),
                (f"weights{title}", {[*stored, "default"][i]: round(w, 3) for i, w in said if w > 0.02}),
            ):
                found.setdefault(key, []).append(value)
        for title, row in _controls(encoder, task, generator, bank, part, names, other, seed).items():
            found.setdefault(title, []).append(row)
    return found


def _controls(
    encoder: AdaptedBert, task: EncodedTask, generator: AdapterGenerator, bank: Bank, part: Part, names: Tensor,
    other: EncodedTask, seed: int,
) -> dict[str, dict]:  # fmt: skip
    """Closed forms of the support under the stored adapter that is retrieved first, and under another task's adapter."""
    chosen = generator.condition(encoder, bank, part.tokens, part.labels, task.ways, names)[1]
    wrong = support_of(other, seed)
    shuffled = generator.generate(encoder, bank, wrong.tokens, wrong.labels, other.ways, seed).lora_b
    said = {}
    for title, lora_b in (("retrieved", bank.adapters(chosen[:1])[0]), ("condition of another task", shuffled)):
        said[title] = closed_forms(encoder, task, lora_b, seed)
    return said


def _answered(test: Tensor, head: Tensor, task: EncodedTask) -> float:
    return percent(F.linear(test, head[:, :-1], head[:, -1]), tested(task).labels)


def kept(path: Path, make: Callable[..., dict], *arguments: object) -> dict:
    """What a file holds, or what `make` says of the arguments, kept there."""
    if not path.is_file():
        write_json(path, make(*arguments))
    return json.loads(path.read_text(encoding="utf-8"))

