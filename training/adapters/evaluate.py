"""Accuracy of every method on the tasks left out, a file a task and pass, kept from run to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from ltdi.adapter_bank import AdapterGenerator, Bank
from ltdi.bodies.adapted import AdaptedBert
from ltdi.files import write_json
from training.adapters.encoded import EncodedTask, Part, hidden_features
from training.adapters.heads import head_accuracies, left_out_errors, percent

SEEDS, SHOTS = (0, 1, 2), 16


def support_of(task: EncodedTask, seed: int) -> Part:
    """The support set of a seed."""
    return task.train.take(task.draw(seed, SHOTS))


def fixed_adapter(encoder: AdaptedBert, task: EncodedTask, lora_b: Tensor | None, feature: str, unit: bool = False) -> list:
    """Each seed's accuracies by closed form under one adapter."""
    test = hidden_features(encoder, task.test.tokens, lora_b)[feature]
    found = []
    for seed in SEEDS:
        part = support_of(task, seed)
        support = hidden_features(encoder, part.tokens, lora_b)[feature]
        found.append(head_accuracies(support, part.labels, task.ways, test, task.test.labels, unit))
    return found


def baselines(encoder: AdaptedBert, task: EncodedTask, multitask: Tensor, mean: Tensor, start: Tensor) -> dict:
    """The frozen body, the start, the multi-task adapter, the mean adapter."""
    return {
        "frozen, mean pooled": fixed_adapter(encoder, task, None, "mean"),
        "frozen, mean pooled, unit length": fixed_adapter(encoder, task, None, "mean", unit=True),
        "start": fixed_adapter(encoder, task, start, "pooler"),
        "multi-task": fixed_adapter(encoder, task, multitask, "pooler"),
        "mean adapter": fixed_adapter(encoder, task, mean, "pooler"),
    }


def picked(encoder: AdaptedBert, task: EncodedTask, names: Sequence[str], adapters: Tensor, seed: int) -> dict:
    """The training adapter with the best leave-one-out accuracy on a seed's support, ties by squared error."""
    part, said = support_of(task, seed), []
    for lora_b in adapters:
        features = hidden_features(encoder, part.tokens, lora_b)["pooler"]
        right, error = left_out_errors(features, part.labels, task.ways)
        said.append((right, -error))
    best = max(range(len(said)), key=lambda i: said[i])
    support = hidden_features(encoder, part.tokens, adapters[best])["pooler"]
    test = hidden_features(encoder, task.test.tokens, adapters[best])["pooler"]
    return {"picked": head_accuracies(support, part.labels, task.ways, test, task.test.labels), "chosen": names[best]}


def generated(
    encoder: AdaptedBert, task: EncodedTask, generator: AdapterGenerator, bank: Bank, names: Sequence[str], adapters: Tensor,
    other: EncodedTask,
) -> dict:  # fmt: skip
    """The generated adapter with its own head and with closed forms; its head on the anchor; the controls.

    Args:
        names, adapters: the stored tasks and their final adapters.
        other: the task whose support the control is conditioned on.
    """
    own, closed, anchored, weights, control, nearest = [], [], [], [], [], []
    anchor_test = hidden_features(encoder, task.test.tokens, bank.anchor)["pooler"]
    for seed in SEEDS:
        part = support_of(task, seed)
        made = generator.generate(encoder, bank, part.tokens, part.labels, task.ways, seed)
        test = hidden_features(encoder, task.test.tokens, made.lora_b)["pooler"]
        own.append(_answered(test, made.classifier, task))
        support = hidden_features(encoder, part.tokens, made.lora_b)["pooler"]
        closed.append(head_accuracies(support, part.labels, task.ways, test, task.test.labels))
        anchor = hidden_features(encoder, part.tokens, bank.anchor)["pooler"]
        head = generator.head(anchor, part.labels, task.ways, bank, made.weights).detach()
        anchored.append(_answered(anchor_test, head, task))
        top = made.weights.topk(3)
        weights.append({names[int(i)]: round(float(w), 3) for w, i in zip(top.values, top.indices, strict=True)})
        if seed == SEEDS[0]:
            wrong = support_of(other, seed)
            shuffled = generator.generate(encoder, bank, wrong.tokens, wrong.labels, other.ways, seed)
            control.append(_with_head(encoder, task, generator, bank, part, shuffled.lora_b, shuffled.weights))
            near = adapters[int(made.weights.argmax())]
            nearest.append(_with_head(encoder, task, generator, bank, part, near, made.weights))
    return {"generated": own, "generated, closed form": closed, "multi-task, generated head": anchored,
            "condition of another task": control, "nearest training adapter": nearest, "weights": weights}  # fmt: skip


def _with_head(
    encoder: AdaptedBert, task: EncodedTask, generator: AdapterGenerator, bank: Bank, part: Part, lora_b: Tensor, weights: Tensor
) -> float:  # fmt: skip
    support = hidden_features(encoder, part.tokens, lora_b)["pooler"]
    test = hidden_features(encoder, task.test.tokens, lora_b)["pooler"]
    return _answered(test, generator.head(support, part.labels, task.ways, bank, weights).detach(), task)


def _answered(test: Tensor, head: Tensor, task: EncodedTask) -> float:
    return percent(F.linear(test, head[:, :-1], head[:, -1]), task.test.labels)


def kept(path: Path, make: Callable[..., dict], *arguments: object) -> dict:
    """What a file holds, or what `make` says of the arguments, kept there."""
    if not path.is_file():
        write_json(path, make(*arguments))
    return json.loads(path.read_text(encoding="utf-8"))

