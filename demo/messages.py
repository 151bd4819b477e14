"""A text task, typed step by step: first the names of its classes, then sentences, then a log.

Asks the running service (or `--url`) for a head after each step, and shows the accuracies side by side, beside what costs
nothing: class means and logistic regression on the same features. The messages are written for this page; a shop's
customers wrote none of them. Writes a plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import torch
from digits import running_service
from sklearn.linear_model import LogisticRegression

from service.client import LtDiClient

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OUT = HERE / "out" / "messages.png"
SHOTS = 2


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a running service; one is started where absent")
    args = parser.parse_args()
    data = json.loads((HERE / "messages.json").read_text(encoding="utf-8"))
    with running_service(args.url, "minilm") as client:
        if "texts" not in client.model("minilm")["input_kinds"] or not client.model("minilm")["body"]["installed"]:
            print("the sentence encoder is not installed; `make demo` installs it")
            return 0
        rows = steps(client, data)
    width = max(len(name) for name, *_ in rows)
    for name, generated, means, logistic in rows:
        print(f"{name:<{width}}  generated {generated:5.1f} %   class means {means:5.1f} %   logistic regression {logistic:5.1f} %")
    draw(rows)
    print(f"plot: {OUT}")
    return 0


def steps(client: LtDiClient, data: dict) -> list[tuple[str, float, float, float]]:
    """What is known, and the accuracies of the generated head and of the two closed forms, percent."""
    classes = list(data["classes"])
    support = [(label, text) for label in classes for text in data["messages"][label][:SHOTS]]
    queries = [(label, text) for label in classes for text in data["messages"][label][SHOTS:]]
    truth = [label for label, _ in queries]
    features = client.embed([text for _, text in queries], model="minilm").numpy()
    named = client.embed(list(data["classes"].values()), model="minilm").numpy()
    examples = client.embed([text for _, text in support], model="minilm").numpy()
    rows = []
    for name, shots, pool in (
        ("names only", 0, None), ("names and one sentence each", 1, None), ("names and two sentences each", 2, None),
        ("names, two sentences, a log of 60 lines", 2, data["log"]),
    ):  # fmt: skip
        chosen = [i for i, _ in enumerate(support) if i % SHOTS < shots]
        head = client.generate_head(
            [support[i][1] for i in chosen], [support[i][0] for i in chosen], model="minilm",
            descriptions=data["classes"], unlabelled=pool,
        )
        right = np.mean([a == b for a, b in zip(head.predict(torch.from_numpy(features)), truth, strict=True)])
        x = np.concatenate([named, examples[chosen]])
        y = np.array(classes + [support[i][0] for i in chosen])
        rows.append((name, 100 * right, *(100 * np.mean(p == np.array(truth)) for p in closed_forms(x, y, features))))
    return rows


def closed_forms(x: np.ndarray, y: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers of class means and of logistic regression, names as examples."""
    classes = np.unique(y)
    means = np.stack([x[y == label].mean(0) for label in classes])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return classes[(queries @ means.T).argmax(1)], LogisticRegression(C=10.0, max_iter=1000).fit(x, y).predict(queries)


def draw(rows: list[tuple[str, float, float, float]]) -> None:
    """A bar for each method at each step."""
    OUT.parent.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for offset, (column, name, colour) in enumerate(
        ((1, "generated", "#b2182b"), (2, "class means", "#999999"), (3, "logistic regression", "#444444"))
    ):
        axes.bar(np.arange(len(rows)) + 0.27 * offset, [row[column] for row in rows], 0.25, label=name, color=colour)
    axes.set_xticks(np.arange(len(rows)) + 0.27, [textwrap.fill(row[0], 20) for row in rows], fontsize=8)
    axes.set_ylabel("accuracy on new messages, %")
    axes.set_ylim(min(min(row[1:]) for row in rows) - 10, 100)
    axes.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(OUT, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
