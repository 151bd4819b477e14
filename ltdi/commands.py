"""The library's own subcommands: make a head from a folder of images, and say which bundles there are."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.command import add_options, generate_lora
from ltdi.bundle import Bundle, load_bundle, shipped_bundles
from ltdi.errors import EmptySupport, InvalidImage, InvalidInput, InvalidSupport
from ltdi.files import read_safetensors
from ltdi.heads import Head
from ltdi.pipeline import FALLBACKS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Examples:
    """A task as it lies on disk.

    Args:
        inputs: paths of images, texts, pairs of texts, or features `[M, D]`.
        labels: one for each.
        classes: the rows of the head, where the task names them.
        descriptions: label to a name or sentence.
        unlabelled: texts, or features `[U, D]`.
    """

    inputs: list[Path] | list[str] | list[list[str]] | Tensor
    labels: list[str]
    classes: list[str] | None = None
    descriptions: dict[str, str] | None = None
    unlabelled: list[str] | Tensor | None = None


def read_folder(folder: Path) -> Examples:
    """The images of `FOLDER/LABEL/*.png` (JPEG and WebP too), sorted; names that begin with a dot are left out.

    Raises:
        InvalidInput: no such folder.
        EmptySupport: it holds no folder of images.
        InvalidSupport: a class without an image.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{str(folder)!r} is not a folder; give one that holds a folder of images for each class")
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not classes:
        raise EmptySupport(f"{str(folder)!r} holds no folders; put the images of each class into a folder of its name")
    found = [(path, of.name) for of in classes for path in _images(of)]
    return Examples([path for path, _ in found], [label for _, label in found])


def _images(folder: Path) -> list[Path]:
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not paths:
        raise InvalidSupport(
            f"class {folder.name!r} has no image; give it at least one of {', '.join(SUFFIXES)}, or remove its folder"
        )
    return paths


def read_features(path: Path) -> Examples:
    """The examples of a safetensors file with `features [M, D]` and `labels [M]` (integers).

    Labels are names where the metadata holds `classes`, a JSON list; else the integers themselves.

    Raises:
        DamagedFile: not a safetensors file.
        InvalidInput: tensors are missing or do not fit.
    """
    tensors, metadata = read_safetensors(path, "feature file")
    if not {"features", "labels"} <= set(tensors):
        raise InvalidInput(f"{path.name} holds {sorted(tensors)}; it needs `features` [M, D] and `labels` [M]")
    features, labels = tensors["features"], tensors["labels"]
    if labels.ndim != 1 or labels.is_floating_point():
        raise InvalidInput(f"`labels` of {path.name} has shape {list(labels.shape)} and type {labels.dtype}; "
                           "it must be a row of integers")
    names = _class_names(metadata, path.name)
    if names and not all(0 <= row < len(names) for row in labels.tolist()):
        raise InvalidInput(f"`labels` of {path.name} must lie in 0..{len(names) - 1}, as `classes` has {len(names)} names")
    return Examples(features, [names[row] if names else str(row) for row in labels.tolist()])


def read_task(path: Path) -> Examples:
    """A task as `/generate-head` takes it in JSON: `classes`, `support` and `unlabelled`, of texts, pairs or features.

    Raises:
        InvalidInput: no JSON object, an unknown key, or an item that is neither a text nor features.
    """
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path.name} is not a readable JSON file", field="task") from error
    known = ("classes", "support", "unlabelled")
    if not isinstance(task, dict) or set(task) - set(known):
        raise InvalidInput(f"{path.name} must be an object with {', '.join(known)} and nothing else", field="task")
    try:
        classes, support = task.get("classes"), task.get("support", [])
        return Examples(
            _items(support, "support"), [row["label"] for row in support],
            None if classes is None else [row["label"] for row in classes],
            {row["label"]: row["description"] for row in classes or () if row.get("description") is not None},
            _items(task.get("unlabelled", []), "unlabelled"),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path.name}: every class and every example is an object with a `label`", field="task") from error


def _items(rows: list[dict[str, Any]], where: str) -> list[str] | list[list[str]] | Tensor:
    texts = [row["text"] for row in rows if "text" in row]
    if len(texts) == len(rows):
        return texts
    pairs = [row["pair"] for row in rows if "pair" in row]
    if len(pairs) == len(rows):
        return pairs
    features = [row["features"] for row in rows if "features" in row]
    if len(features) != len(rows) or len({len(row) for row in features}) > 1:
        raise InvalidInput(f"{where}: all items hold `text`, or all hold `pair`, or all `features` of one size", field=where)
    return torch.tensor(features, dtype=torch.float32)


def _class_names(metadata: dict[str, str], file: str) -> list[str]:
    try:
        names = json.loads(metadata.get("classes", "[]"))
    except ValueError as error:
        raise InvalidInput(f"`classes` in the metadata of {file} is not JSON; write a list of names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"`classes` in the metadata of {file} is not a list of names")
    return names


def generate(argv: Sequence[str]) -> int:
    """Make a classifier head from a folder of images, from features, or from a task of texts; or a LoRA adapter."""
    options = _generate_parser().parse_args(argv)
    given = [source for source in (options.folder, options.features, options.task) if source is not None]
    if len(given) != 1:
        raise InvalidInput("give one of a folder of images, --features FILE and --task FILE")
    read = read_folder if options.folder else read_features if options.features else read_task
    examples = read(given[0])
    bundle = load_bundle(options.bundle, device=options.device)
    if options.kind == "lora":
        return generate_lora(bundle, examples, options)
    if bundle.kind != "head":
        raise InvalidInput(f"bundle {bundle.name!r} makes adapters; say --kind lora")
    out = options.out or Path("head.safetensors")
    seconds: Counter[str] = Counter()
    started = time.perf_counter()
    head = _generate(bundle, examples, options, lambda name, took: seconds.update({name: took}))
    seconds["total"] = time.perf_counter() - started
    head.save(out)
    facts = _facts(head, examples, seconds, out)
    print(json.dumps(facts, ensure_ascii=False, indent=2) if options.json else _head_report(facts))
    return 0


def _generate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ltdi generate", description=generate.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="holds one folder of images per class")
    parser.add_argument("--features", type=Path, metavar="FILE", help="a safetensors file with features and labels")
    parser.add_argument("--task", type=Path, metavar="FILE", help="JSON with classes, support and unlabelled, as the service takes")
    parser.add_argument("--bundle", default="omniglot", help="a shipped name or the path of a folder (%(default)s)")
    parser.add_argument("--out", type=Path, help="where to write it (head.safetensors; for an adapter the folder of its folder, adapters)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; the same seed, the same bytes (%(default)s)")
    parser.add_argument("--draws", type=int, default=1, help="chains to average (%(default)s)")
    parser.add_argument("--no-check", dest="check", action="store_false", help="leave out the accuracy on folds")
    parser.add_argument("--fallback", choices=FALLBACKS, default="baseline",
                        help="what comes back where the folds say that the baseline is better (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    add_options(parser)
    return parser


def _generate(bundle: Bundle, examples: Examples, options: argparse.Namespace, on_stage: Any) -> Head:
    try:
        return bundle.generate(
            examples.inputs, examples.labels, classes=examples.classes, descriptions=examples.descriptions,
            unlabelled=examples.unlabelled, seed=options.seed, draws=options.draws, check=options.check,
            fallback=options.fallback, on_stage=on_stage,
        )
    except InvalidImage as error:
        raise InvalidImage(f"{_file_of(error, examples)}: {error}", field=error.field) from error


def _file_of(error: InvalidImage, examples: Examples) -> str:
    place = (error.field or "").removeprefix("support/")
    return str(examples.inputs[int(place)]) if place.isdecimal() else "an image"


def _facts(head: Head, examples: Examples, seconds: Counter[str], out: Path) -> dict[str, Any]:
    counts = Counter(examples.labels)
    return {
        "labels": head.labels,
        "examples": {label: counts[label] for label in head.labels},
        "method": head.method,
        "support_accuracy": head.support_accuracy,
        "baseline_support_accuracy": head.baseline_support_accuracy,
        "timings_ms": {name: round(1000 * value, 3) for name, value in seconds.items()},
        "bundle": head.metadata["model"],
        "bundle_digest": head.metadata["bundle_digest"],
        "out": str(out),
        "bytes": out.stat().st_size,
    }


def _head_report(facts: dict[str, Any]) -> str:
    accuracy, baseline = facts["support_accuracy"], facts["baseline_support_accuracy"]
    measured = (
        "not measured: it takes two examples of a class, and the check" if accuracy is None
        else f"{accuracy:.1%} on held-out examples; the baseline {baseline:.1%}"
    )
    stages = ", ".join(f"{name} {value:.1f}" for name, value in facts["timings_ms"].items() if name != "total")
    return "\n".join([
        f"labels    {', '.join(facts['labels'])}",
        f"examples  {sum(facts['examples'].values())} of {len(facts['labels'])} classes",
        f"method    {facts['method']}, by bundle {facts['bundle']} ({facts['bundle_digest'][:12]})",
        f"accuracy  {measured}",
        f"time      {facts['timings_ms']['total']:.1f} ms ({stages})",
        f"head      {facts['out']} ({facts['bytes'] / 1000:.1f} kB)",
    ])


def bundles(argv: Sequence[str]) -> int:
    """List the bundles that ship, or show one with its card."""
    parser = argparse.ArgumentParser(prog="ltdi bundles", description=bundles.__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a shipped name or the path of a folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    if options.name is not None:
        bundle = load_bundle(options.name, device="cpu")
        facts = describe(bundle) | {"card": bundle.card}
        print(_json(facts) if options.json else _bundle_report(facts))
        return 0
    found = [describe(load_bundle(name, device="cpu")) for name in shipped_bundles()]
    print(_json(found) if options.json else _table(found))
    return 0


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a bundle is, for people and for JSON."""
    limits = bundle.limits
    return {
        "name": bundle.name,
        "kind": bundle.kind,
        "recipe": bundle.config.recipe,
        "ways": [bundle.fixed_ways or 2, bundle.fixed_ways or limits.max_ways],
        "shots": [0 if bundle.takes_descriptions else 1, limits.max_shots],
        "max_examples": limits.max_examples,
        "max_unlabelled": limits.max_unlabelled if bundle.takes_pool else 0,
        "mean_difference": bundle.card.get("mean_difference"),
        "body": bundle.config.body.name,
        "feature_size": bundle.feature_size,
        "digest": bundle.digest,
        "accuracy": measured(bundle.card),
    }


def measured(card: dict[str, Any]) -> dict[str, dict[str, float | str]]:
    """From a card: accuracy of generated heads and of the best closed form by protocol, percent."""
    return {
        protocol: {
            "generated": row["generated"]["mean"],
            "closed_form": row["closed_form"]["mean"],
            "difference": row["difference"]["mean"],
        }
        for protocol, row in card.get("accuracy", {}).items()
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _table(found: list[dict[str, Any]]) -> str:
    if not found:
        return "no bundle ships with this installation"
    return "\n\n".join(_bundle_report(facts) for facts in found)


def _bundle_report(facts: dict[str, Any]) -> str:
    size = f"{facts['feature_size']} features" if facts["feature_size"] else "features of any size"
    lines = [
        f"name      {facts['name']} (recipe {facts['recipe']}, body {facts['body']}, {size})",
        f"takes     {facts['ways'][0]} to {facts['ways'][1]} classes, {facts['shots'][0]} to {facts['shots'][1]} examples each",
        f"digest    {facts['digest']}",
    ]
    if facts["max_unlabelled"]:
        lines.append(f"          descriptions of classes, and a pool of up to {facts['max_unlabelled']} items")
    if facts["mean_difference"]:
        mean, low, high = (facts["mean_difference"][name] for name in ("mean", "low", "high"))
        lines.append(f"gain      {mean:+.2f} points ({low:+.2f} to {high:+.2f}) over the best closed form, mean of whole label sets")
    for protocol, row in () if facts["mean_difference"] else facts["accuracy"].items():
        lines.append(f"{protocol:<15} {row['generated']:.2f} %, best closed form {row['closed_form']:.2f} %")
    if facts.get("card", {}).get("text"):
        lines += ["", facts["card"]["text"]]
    return "\n".join(lines)
