"""SetFit beside generated heads and logistic regression: accuracy and wall time, from texts to a classifier.

Run it as `python -m training.peers --data data` where `setfit` is installed (`pip install setfit`); no other part of the
project needs it. Where it is not, its rows of an earlier run stay and the others are made again. SetFit fine-tunes the encoder by contrast and then fits logistic regression (Tunstall et al., 2022).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltdi import load_bundle
from ltdi.bodies.sentence import model_folder
from training.data.texts import TextSet, load_texts
from training.features import MINILM

SETS, SHOTS, QUERIES, ITERATIONS = ("hint3_curekart", "stackoverflow20"), 5, 500, 20


def draw(texts: TextSet, seed: int) -> tuple[list[str], list[str], list[str], list[str]]:
    """Support texts and labels, test texts and labels."""
    chance = np.random.default_rng(seed)
    support, tested = [], []
    for label in texts.names:
        rows = [i for i, (of, part) in enumerate(zip(texts.labels, texts.parts, strict=True)) if of == label and part == "train"]
        support += chance.permutation(rows)[: min(SHOTS, max(1, len(rows) - 1))].tolist()
        tested += [i for i, (of, part) in enumerate(zip(texts.labels, texts.parts, strict=True)) if of == label and part == "test"]
    tested = np.random.default_rng(0).permutation(tested)[:QUERIES].tolist()
    return (
        [texts.texts[i] for i in support], [texts.labels[i] for i in support],
        [texts.texts[i] for i in tested], [texts.labels[i] for i in tested],
    )  # fmt: skip


def set_fit(x: list[str], y: list[str], queries: list[str], seed: int) -> tuple[list[str], float]:
    """SetFit's answers and the seconds that it trained; its own defaults, with `num_iterations` of its paper."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    labels = sorted(set(y))
    started = time.monotonic()
    model = SetFitModel.from_pretrained(str(model_folder(MINILM)), local_files_only=True, labels=labels)
    settings = TrainingArguments(
        batch_size=16, num_iterations=ITERATIONS, num_epochs=1, seed=seed, report_to="none", save_strategy="no",
        output_dir="runs/setfit",
    )  # fmt: skip
    data = Dataset.from_dict({"text": x, "label": [labels.index(label) for label in y]})
    Trainer(model=model, args=settings, train_dataset=data).train()
    seconds = time.monotonic() - started
    return [str(label) for label in model.predict(queries)], seconds


def measure(texts: TextSet, seed: int) -> dict[str, Any]:
    """Accuracy in percent and seconds from texts to a classifier, by method."""
    from sklearn.linear_model import LogisticRegression

    x, y, queries, truth = draw(texts, seed)
    bundle = load_bundle("minilm", device="cpu")
    features = bundle.embed(queries).numpy()
    found = {}
    started = time.monotonic()
    model = LogisticRegression(C=10.0, max_iter=1000).fit(bundle.embed(x).numpy(), y)
    found["logistic regression"] = model.predict(features).tolist(), time.monotonic() - started
    for name, named in (("generated", None), ("generated, with names", texts.names)):
        started = time.monotonic()
        head = bundle.generate(x, y, descriptions=named, classes=sorted(set(y)) if named is None else None)
        found[name] = head.predict(torch.from_numpy(features)), time.monotonic() - started
    if find_spec("setfit") is not None:
        found["SetFit"] = set_fit(x, y, queries, seed)
    right = {name: np.mean([a == b for a, b in zip(answers, truth, strict=True)]) for name, (answers, _) in found.items()}
    return {
        "examples": len(x), "classes": len(set(y)), "queries": len(queries),
        "methods": {n: {"accuracy": round(100 * float(right[n]), 2), "seconds": round(s, 2)} for n, (_, s) in found.items()},
    }  # fmt: skip


def main(argv: list[str]) -> int:
    """Measure and write `results/peers.json`."""
    parser = argparse.ArgumentParser(prog="python -m training.peers", description=main.__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("results") / "peers.json")
    args = parser.parse_args(argv)
    before = json.loads(args.out.read_text(encoding="utf-8"))["sets"] if args.out.exists() else {}
    result = {
        "bundle_digest": load_bundle("minilm", device="cpu").digest,
        "note": "the shipped minilm bundle saw both sets in training; the table of whole label sets is of sets left out",
        "shots": SHOTS, "sets": {name: measure(load_texts(args.data, name), 0) for name in SETS},
    }  # fmt: skip
    for name, found in result["sets"].items():  # where SetFit is not installed, its row stays: the supports are the same
        for method, row in before.get(name, {}).get("methods", {}).items():
            found["methods"].setdefault(method, row)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
