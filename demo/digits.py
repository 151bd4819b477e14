"""Ten handwritten digits that no training saw, one example each: a head from the running service.

Starts `ltdi serve` on a free port, or takes `--url`. The digits are scikit-learn's (8 x 8, 43 writers); the bundle
has seen characters of other alphabets only. Writes a picture of the support set and of the confusion.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ltdi.baselines import class_means, logits
from service.client import LtDiClient
from training.data.digits import framed

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parent / "out" / "digits.png"


@contextmanager
def running_service(url: str | None, bundle: str) -> Iterator[LtDiClient]:
    """A client of the service at `url`, or of one that lives as long as the block."""
    if url is not None:
        with LtDiClient(url) as client:
            yield client
        return
    port = free_port()
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", str(port), "--bundle", bundle]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with LtDiClient(f"http://127.0.0.1:{port}") as client:
                wait_until_ready(client, process)
                yield client
        finally:
            process.terminate()


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(client: LtDiClient, process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Return when the service takes work; end the program with the reason where it never will."""
    deadline = time.monotonic() + seconds
    while not client.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("error: the service did not become ready; `ltdi serve` says why")
        if reason := why_failed(client):
            raise SystemExit(f"error: the service is not ready: {reason}")
        time.sleep(0.1)


def why_failed(client: LtDiClient) -> str | None:
    """Why the bundle did not load; None while it loads, and while nothing listens yet."""
    try:
        return next((model["reason"] for model in client.models() if model["state"] == "failed"), None)
    except httpx.TransportError:
        return None


def choose_support(target: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` examples of each digit, digit by digit."""
    chance = np.random.default_rng(seed)
    return np.concatenate([chance.choice(np.flatnonzero(target == digit), shots, replace=False) for digit in range(10)])


def measure(
    client: LtDiClient, images: np.ndarray, features: Tensor, target: Tensor, chosen: np.ndarray
) -> tuple[Tensor, float]:
    """What the generated head answers for every digit that is not in the support, and the class means' accuracy."""
    head = client.generate_head(images[chosen], [str(d) for d in target[chosen].tolist()])
    rest = torch.ones(len(target), dtype=torch.bool)
    rest[chosen] = False
    base = class_means(features[chosen].unflatten(0, (10, -1)).unsqueeze(0))
    by_means = logits(base, features[rest].unsqueeze(0))[0].argmax(-1)
    answers = torch.full((len(target),), -1)
    answers[rest] = head(features[rest]).argmax(-1)
    return answers, float((by_means == target[rest]).float().mean())


def accuracy(answers: Tensor, target: Tensor) -> float:
    """Share of right answers among the queries."""
    asked = answers >= 0
    return float((answers[asked] == target[asked]).float().mean())


def draw(images: np.ndarray, chosen: np.ndarray, answers: Tensor, target: Tensor, title: str) -> None:
    """The support set above, the confusion below."""
    confusion = np.zeros((10, 10), dtype=int)
    asked = (answers >= 0).numpy()
    np.add.at(confusion, (target.numpy()[asked], answers.numpy()[asked]), 1)
    figure = plt.figure(figsize=(8, 8.5), layout="constrained")
    grid = figure.add_gridspec(2, 10, height_ratios=[1, 8])
    for digit in range(10):
        axis = figure.add_subplot(grid[0, digit])
        axis.imshow(images[chosen[digit]], cmap="gray_r")
        axis.set_title(str(digit))
        axis.axis("off")
    axis = figure.add_subplot(grid[1, :])
    axis.imshow(confusion, cmap="Blues")
    for row, column in np.ndindex(10, 10):
        if confusion[row, column]:
            shade = "white" if confusion[row, column] > confusion.max() / 2 else "black"
            axis.text(column, row, confusion[row, column], ha="center", va="center", color=shade)
    axis.set(xticks=range(10), yticks=range(10), xlabel="answer", ylabel="digit")
    figure.suptitle(title)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=110)


def main() -> None:
    """Measure over several supports, show the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a running service; one is started where absent")
    parser.add_argument("--bundle", default="omniglot")
    parser.add_argument("--supports", type=int, default=20, help="supports to average over")
    args = parser.parse_args()
    digits = load_digits()
    target = torch.from_numpy(digits.target)
    images = framed(digits.images)
    with running_service(args.url, args.bundle) as client:
        features = torch.cat([client.embed(images[i : i + 500]) for i in range(0, len(images), 500)])
        for shots in (1, 5):
            supports = [choose_support(digits.target, shots, seed) for seed in range(args.supports)]
            results = [measure(client, images, features, target, chosen) for chosen in supports]
            generated = [accuracy(answers, target) for answers, _ in results]
            means = [value for _, value in results]
            print(
                f"{shots} example(s) a digit, {args.supports} supports: generated head {np.mean(generated):.1%}, "
                f"class means {np.mean(means):.1%}, first support {generated[0]:.1%} and {means[0]:.1%}"
            )
            if shots == 1:
                title = f"One example each: generated head {generated[0]:.1%}, class means {means[0]:.1%}"
                draw(images, supports[0], results[0][0], target, title)
    print(f"picture: {OUT.relative_to(Path.cwd()) if OUT.is_relative_to(Path.cwd()) else OUT}")


if __name__ == "__main__":
    main()
