"""`ltdi fit`: a bundle of one's own from the history of past tasks."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ltdi.bodies.loader import BodyConfig
from ltdi.bodies.sentence import SentenceBody, model_folder, weights_digest
from ltdi.bundle import Bundle, build_body, load_bundle
from ltdi.denoisers.geometry import describe
from ltdi.errors import InvalidInput
from ltdi.experts import logits, unit
from ltdi.files import write_bytes, write_json
from ltdi.generator import GeometryGenerator, draw_noise
from training.data.texts import spaced
from training.directions import DirectionsTraining, fit_directions
from training.features import FeatureSet
from training.geometry import Described, GeometryTraining, continue_mixing, describe_task
from training.tasks import Mixture, draw_task, whole_task

FIELDS = ("task", "label", "text", "features", "description")
LEAST_CLASSES, LEAST_ITEMS = 12, 4
HELD_OUT = 0.25
CHECKS = ((0, "names"), (1, "names"), (1, "examples"), (5, "examples"))  # what a fitted bundle is tried on
MOST_WAYS = 50


@dataclass(frozen=True)
class History:
    """Past tasks, as one set of classes.

    Args:
        inputs: texts, or features `[M, D]`.
        class_index: `[M]`.
        tasks, labels, names: of each class; a name is its description, or its label with separators as spaces.
        described: whether any class came with a description, or labels are all there is.
    """

    inputs: list[str] | Tensor
    class_index: list[int]
    tasks: list[str]
    labels: list[str]
    names: list[str]
    described: bool


def read_history(path: Path) -> History:
    """A file of JSON lines with `label`, `text` or `features`, and, where there are any, `task` and `description`.

    Raises:
        InvalidInput: no such file, nothing in it, or a bad line, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read as UTF-8 text", field="tasks") from error
    rows = [_row(line, number, path.name) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InvalidInput(f"{path.name} holds no line", field="tasks")
    kinds = {"text" if "text" in row else "features" for row in rows}
    if len(kinds) > 1:
        raise InvalidInput(f"{path.name} holds texts and features; give one of them", field="tasks")
    keys = sorted({(row.get("task", ""), row["label"]) for row in rows})
    place = {key: i for i, key in enumerate(keys)}
    names = {(row.get("task", ""), row["label"]): row["description"] for row in rows if row.get("description")}
    inputs: list[str] | Tensor = [row["text"] for row in rows] if kinds == {"text"} else _stacked(rows, path.name)
    return History(
        inputs, [place[row.get("task", ""), row["label"]] for row in rows], [task for task, _ in keys],
        [label for _, label in keys], [names.get(key, spaced(key[1])) for key in keys], bool(names),
    )


def _row(line: str, number: int, file: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"line {number} of {file} is not JSON", field=f"tasks/{number}") from error
    where, complaint = f"line {number} of {file}", None
    if not isinstance(row, dict):
        complaint = "is no object"
    elif unknown := sorted(set(row) - set(FIELDS)):
        complaint = f"has the unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}"
    elif not isinstance(row.get("label"), str):
        complaint = "has no `label`, a string"
    elif ("text" in row) == ("features" in row):
        complaint = "must have one of `text` and `features`"
    elif "text" in row and (not isinstance(row["text"], str) or not row["text"].strip()):
        complaint = "has an empty `text`, or one that is no string"
    elif "features" in row and not _numbers(row["features"]):
        complaint = "has `features` that are no list of finite numbers"
    elif not all(isinstance(row.get(name, ""), str) for name in ("task", "description")):
        complaint = "has a `task` or `description` that is no string"
    if complaint is not None:
        raise InvalidInput(f"{where} {complaint}", field=f"tasks/{number}")
    return row


def _numbers(values: Any) -> bool:
    return (
        isinstance(values, list) and bool(values)
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e6 for v in values)
    )  # fmt: skip


def _stacked(rows: Sequence[dict[str, Any]], file: str) -> Tensor:
    sizes = {len(row["features"]) for row in rows}
    if len(sizes) > 1:
        raise InvalidInput(f"features of {file} have sizes {sorted(sizes)}; all must be of one", field="tasks")
    return torch.tensor([row["features"] for row in rows], dtype=torch.float32)


def as_set(history: History, features: Tensor, names: Tensor | None) -> FeatureSet:
    """The history as a set whose classes keep a fifth of their items, two at least, to ask about."""
    index = torch.tensor(history.class_index)
    test = torch.zeros(len(index), dtype=torch.bool)
    chance = np.random.default_rng(0)
    for row in range(len(history.labels)):
        items = chance.permutation((index == row).nonzero().squeeze(1).numpy())
        if len(items) >= LEAST_ITEMS:
            test[torch.from_numpy(items[: max(2, len(items) // 5)])] = True
    return FeatureSet("history", "own", unit(features), index, ~test, test, tuple(history.labels), names, names)


def split_classes(history: History, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Classes to learn from and classes held out: whole tasks where there are five or more, else single classes."""
    chance = np.random.default_rng(seed)
    tasks = sorted(set(history.tasks))
    if len(tasks) >= 5:
        held_tasks = set(chance.permutation(tasks)[: max(1, round(share * len(tasks)))])
        held = [i for i, task in enumerate(history.tasks) if task in held_tasks]
    else:
        held = sorted(chance.permutation(len(history.labels))[: round(share * len(history.labels))].tolist())
    return [i for i in range(len(history.labels)) if i not in set(held)], held


def fit_generator(
    data: FeatureSet, classes: Sequence[int], start: GeometryGenerator, seed: int = 0, tasks: int = 300
) -> GeometryGenerator:
    """The generator `start` with directions learnt from `classes`, and a mixture that knows what they are worth.

    What directions are worth to a *new* class is learnt by halves: those of one half of the classes serve tasks of the
    other.
    """
    chance = np.random.default_rng(seed)
    order = chance.permutation(list(classes)).tolist()
    halves = order[::2], order[1::2]
    mixture = replace(HISTORY_TASKS, centre=start.denoiser.config.centre)
    bank: list[Described] = []
    for own, other in (halves, halves[::-1]):
        directions = directions_of(data, own, seed)
        with torch.no_grad():
            while len(bank) < (tasks // 2 if own is halves[0] else tasks):
                task = draw_task(_only(data, other), mixture, chance)
                if task is not None:
                    bank.append(describe_task(task, directions))
    config = replace(start.denoiser.config, directions=True)
    generator = GeometryGenerator(start.schedule.config, config, start.calibration, data.features.shape[1])
    generator.denoiser.load_state_dict(start.denoiser.state_dict())
    continue_mixing(generator, bank, GeometryTraining(seed=seed, mixing_steps=200))
    generator.directions.copy_(directions_of(data, classes, seed))
    return generator.eval().requires_grad_(False)


HISTORY_TASKS = Mixture(shots=(0, 0, 1, 1, 2, 5), whole=0.5, most_ways=MOST_WAYS, pools=(30, 300), polluted=0.0, queries=200)


def directions_of(data: FeatureSet, classes: Sequence[int], seed: int = 0) -> Tensor:
    """Directions learnt from some classes of a set."""
    kept = [row for row in classes if len(data.train_rows[row]) >= 3]
    rows = torch.tensor(kept)
    names = [one[rows] for one in (data.names, data.raw_names) if one is not None]
    return fit_directions(data.features, [data.train_rows[row] for row in kept], names, DirectionsTraining(seed=seed))


def _only(data: FeatureSet, classes: Sequence[int]) -> FeatureSet:
    """The same set with some of its classes alone."""
    place = torch.full((len(data.classes) + 2,), -2)
    rows = torch.tensor(list(classes))
    place[rows] = torch.arange(len(rows))
    return FeatureSet(
        data.name, data.encoder, data.features, place[data.class_index], data.train, data.test,
        tuple(data.classes[row] for row in classes), None if data.names is None else data.names[rows],
        None if data.raw_names is None else data.raw_names[rows],
    )


@torch.inference_mode()
def compare(
    data: FeatureSet, classes: Sequence[int], own: GeometryGenerator, other: GeometryGenerator, repeats: int = 6
) -> dict[str, dict[str, float]]:
    """Accuracy of two generators on tasks of classes that neither learnt from, percent, with the paired difference."""
    held = _only(data, classes)
    chance = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    every: list[float] = []
    for shots, information in CHECKS:
        pairs = []
        for repeat in range(repeats):
            some = chance.permutation(len(held.classes))[:MOST_WAYS].tolist()
            task = whole_task(held, shots, repeat, classes=some)
            if task is None or not len(task.targets) or (information == "names" and task.names is None):
                continue
            items = task.items(information, centre=own.denoiser.config.centre)
            noise = draw_noise(repeat, 1, (items.ways, items.examples.shape[-1] + 1))
            pairs.append([
                100 * float((logits(g.generate_one(describe(items, g.directions), noise), items.seen(task.queries)).argmax(1)
                             == task.targets).float().mean())
                for g in (own, other)
            ])  # fmt: skip
        if pairs:
            mine, theirs = np.array(pairs).T
            every += (mine - theirs).tolist()
            found[f"{shots} examples, {information}"] = {
                "fitted": round(float(mine.mean()), 2), "shipped": round(float(theirs.mean()), 2),
                "difference": round(float((mine - theirs).mean()), 2),
            }  # fmt: skip
    half = 1.96 * float(np.std(every)) / max(len(every), 1) ** 0.5
    mean = float(np.mean(every)) if every else 0.0
    found["all"] = {"difference": round(mean, 2), "low": round(mean - half, 2), "high": round(mean + half, 2)}
    return found


def fit(argv: list[str]) -> int:
    """Make a bundle of your own from the history of your past tasks."""
    args = _parser().parse_args(argv)
    started = time.monotonic()
    history = read_history(args.tasks)
    body = body_config(args.body, history)
    known = args.body == "minilm" and not isinstance(history.inputs, Tensor)
    start = load_bundle("minilm" if known else "any-embedding", device="cpu")
    data = _embedded(history, body)
    result: dict[str, Any] = {
        "classes": len(history.labels), "items": len(history.class_index), "tasks": len(set(history.tasks))
    }
    generator, helps, why = _generator(history, data, start.generator, args.seed, result)
    config = replace(
        start.config, name=args.out.name, body=body, head_sizes=(data.features.shape[1], 0),
        geometry=generator.denoiser.config, calibration=generator.calibration,
    )
    bundle = Bundle(config, build_body(body), generator)
    digest = bundle.save(args.out)
    result |= {"helps": helps, "why": why, "seconds": round(time.monotonic() - started, 1), "bundle_digest": digest}
    write_json(args.out / "card.json", {"bundle_digest": digest, "accuracy": {}, "fit": result, "text": _text(args, result)})
    write_bytes(args.out / "card.md", (_text(args, result) + "\n").encode())
    print(_text(args, result))
    return 0


def _generator(
    history: History, data: FeatureSet, start: GeometryGenerator, seed: int, result: dict[str, Any]
) -> tuple[GeometryGenerator, bool, str]:
    """What ships, whether it is fitted, and why."""
    usable = [row for row in range(len(data.classes)) if len(data.train_rows[row]) >= 3]
    if len(usable) < LEAST_CLASSES:
        return start, False, (
            f"{len(usable)} classes have {LEAST_ITEMS} items or more; with fewer than {LEAST_CLASSES} there is nothing "
            "to hold out, so the shipped generator is kept"
        )
    learn, held = split_classes(history, HELD_OUT, seed)
    learn, held = [row for row in learn if row in usable], [row for row in held if row in usable]
    with tqdm(total=3, desc="fit") as bar:
        fitted = fit_generator(data, learn, start, seed)
        bar.update()
        result["held_out"] = compare(data, held, fitted, start) if len(held) > 1 else {"all": {"low": 0.0}}
        bar.update()
        gain = result["held_out"]["all"]
        if gain["low"] <= 0:
            return start, False, (
                f"on {len(held)} held-out classes the fitted generator is not clearly better ({gain}), so the shipped one "
                "is kept"
            )
        whole = fit_generator(data, usable, start, seed)
        bar.update()
    return whole, True, f"on {len(held)} held-out classes it gains {gain['difference']:+.1f} points over the shipped generator"


def body_config(body: str, history: History) -> BodyConfig:
    """The body of the new bundle: `minilm`, a path to a sentence-transformers model, or none for features."""
    if isinstance(history.inputs, Tensor):
        return BodyConfig("features", 0, 0, feature_size=history.inputs.shape[1])
    name = "all-MiniLM-L6-v2" if body == "minilm" else body
    folder = model_folder(name)
    if folder is None:
        raise InvalidInput(f"body {body!r} is neither `minilm` nor the folder of a sentence-transformers model", field="body")
    size = SentenceBody(name, 1).embed(["one"]).shape[1]
    return BodyConfig("sentence", 0, 0, name, size, weights_digest(folder))


def _embedded(history: History, config: BodyConfig) -> FeatureSet:
    if isinstance(history.inputs, Tensor):
        return as_set(history, history.inputs, None)
    body = build_body(config)
    parts = [
        body.embed(body.prepare(history.inputs[i : i + 256], "tasks", truncate=True))
        for i in tqdm(range(0, len(history.inputs), 256), desc="embed")
    ]
    return as_set(history, torch.cat(parts), F.normalize(body.embed(history.names), dim=1))


def _text(args: argparse.Namespace, result: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {row.get('fitted', '')} | {row.get('shipped', '')} | {row.get('difference', '')} |"
        for name, row in result.get("held_out", {}).items()
    ]
    table = ["", "| held-out tasks | fitted | shipped | difference |", "|---|---|---|---|", *rows] if rows else []
    return "\n".join([
        f"# Bundle `{args.out.name}`",
        "",
        f"From {result['items']} items of {result['classes']} classes in {result['tasks']} tasks, "
        f"{result['seconds']:.0f} s. {'Fitted' if result['helps'] else 'Not fitted'}: {result['why']}.",
        *table,
    ])  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ltdi fit", description=fit.__doc__)
    parser.add_argument("--tasks", type=Path, required=True, metavar="FILE",
                        help="JSON lines: label, text or features, and, where there are any, task and description")
    parser.add_argument("--body", default="minilm", help="`minilm` or the folder of a sentence-transformers model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    parser.add_argument("--seed", type=int, default=0)
    return parser
