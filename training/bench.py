"""Times one head against what one would do instead, all in one process, interleaved."""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.bundle import Bundle, HeadRequest
from ltdi.pipeline import Options

ADAM_STEPS = 100


def made_support(ways: int, shots: int, size: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Features of well separated made classes, and labels: `[ways * shots, size]`."""
    chance = torch.Generator().manual_seed(seed)
    means = torch.randn(ways, 1, size, generator=chance)
    features = means + 0.3 * torch.randn(ways, shots, size, generator=chance)
    return features.flatten(0, 1).relu(), [f"class {n}" for n in range(ways) for _ in range(shots)]


def fine_tune(features: Tensor, target: Tensor, ways: int) -> Tensor:
    """100 Adam steps on a linear head: what generation replaces."""
    head = torch.nn.Linear(features.shape[1], ways)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(ADAM_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(head(features), target).backward()
        optimizer.step()
    return head.weight.detach()


def logistic_regression(features: np.ndarray, target: np.ndarray) -> None:
    """scikit-learn's, with its defaults."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that many classes for that few items look odd to it
        LogisticRegression(max_iter=200).fit(features, target)


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """p50 and p95 of each job in ms; the jobs take turns, so that a drift of the machine meets all."""
    for job in jobs.values():
        for _ in range(3):
            job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            times[name].append(1000 * (time.perf_counter() - started))
    return {
        name: {"p50_ms": round(statistics.median(t), 3), "p95_ms": round(float(np.quantile(t, 0.95)), 3)}
        for name, t in times.items()
    }


def floor(bundle: Bundle, ways: int) -> dict[str, float]:
    """The chain's multiply-adds and parameter bytes over what this machine does on a product and on a copy."""
    once, each = chain_parameters(bundle)
    steps = bundle.generator.schedule.steps
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    source, sink = torch.rand(2**24), torch.empty(2**24)
    rates = interleaved({"product": lambda: a @ b, "copy": lambda: sink.copy_(source)}, 20)
    multiply_adds = 1024**3 / (rates["product"]["p50_ms"] / 1000)
    copied = 2**26 / (rates["copy"]["p50_ms"] / 1000)
    weights = once + steps * each
    return {
        "matrix_product_gmac_per_s": round(multiply_adds / 1e9, 1),
        "copy_gb_per_s": round(copied / 1e9, 1),
        "weights_read_once": once,
        "weights_read_each_step": each,
        "chain_floor_ms": round(1000 * max(weights * ways / multiply_adds, 4 * weights / copied), 3),
    }


def chain_parameters(bundle: Bundle) -> tuple[int, int]:
    """Matrix entries that the chain reads once a task, and at each step; a fused chain has one matrix for two there."""
    sizes = {
        name: p.numel()
        for name, p in bundle.generator.denoiser.named_parameters()
        if name.endswith("weight") and p.ndim > 1
    }
    if bundle.generator.recipe == "paper":
        return sizes["read_task.0.weight"], sum(sizes.values()) - sizes["read_task.0.weight"]
    each = sum(size for name, size in sizes.items() if name.startswith(("layers", "last")))
    denoiser = bundle.generator.denoiser
    fused = denoiser.read_x.out_features * denoiser.answer.in_features
    return sum(sizes.values()) - each, each + fused


def bench(bundle: Bundle, rounds: int = 100) -> dict:
    """Every figure of the time section, JSON-ready; torch and what scikit-learn computes with run on one thread."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return {
                "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}",
                "device": str(bundle.device),
                "floor": floor(bundle, bundle.fixed_ways or 5),
                "one_head": _one_head(bundle, rounds),
                "by_ways": {str(w): _by_ways(bundle, w, rounds) for w in _ways(bundle)},
                "by_tasks": {str(n): _by_tasks(bundle, n, max(5, rounds // n)) for n in (1, 8, 64)},
            }
    finally:
        torch.set_num_threads(threads)


def _ways(bundle: Bundle) -> tuple[int, ...]:
    return (bundle.fixed_ways,) if bundle.fixed_ways else (5, 20, 64)


def _one_head(bundle: Bundle, rounds: int) -> dict:
    ways = bundle.fixed_ways or 5
    jobs: dict[str, Callable[[], object]] = {}
    for shots in (1, 5):
        features, labels = made_support(ways, shots, bundle.feature_size)
        target = torch.arange(ways).repeat_interleave(shots)
        array, classes = features.numpy(), target.numpy()
        name = f"{ways}-way {shots}-shot"
        jobs |= {
            f"generate, {name}": lambda f=features, y=labels: bundle.generate(f, y),
            f"generate without the support check, {name}": lambda f=features, y=labels: bundle.generate(
                f, y, check=False
            ),
            f"fine-tune, 100 Adam steps, {name}": lambda f=features, y=target: fine_tune(f, y, ways),
            f"scikit-learn logistic regression, {name}": lambda a=array, c=classes: logistic_regression(a, c),
        }
    size = bundle.config.body.image_size
    images = (torch.rand(25, size, size) * 255).to(torch.uint8)
    images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1] = 0, 0, 0, 0
    head, queries = bundle.generate(features, labels), made_support(ways, 15, bundle.feature_size)[0]
    names = [str(n) for n in range(ways)]
    jobs[f"generate from images, views included, {ways}-way 1-shot"] = lambda: bundle.generate(images[:ways], names)
    jobs["embed 25 images"] = lambda: bundle.embed(images)
    jobs["predict 75 queries"] = lambda: head.predict(queries)
    return interleaved(jobs, rounds)


def _by_ways(bundle: Bundle, ways: int, rounds: int) -> dict[str, float]:
    features, labels = made_support(ways, 1, bundle.feature_size)
    return interleaved({"generate": lambda: bundle.generate(features, labels)}, rounds)["generate"]


def _by_tasks(bundle: Bundle, tasks: int, rounds: int) -> dict[str, float]:
    made = [made_support(bundle.fixed_ways or 5, 1, bundle.feature_size, seed) for seed in range(tasks)]

    def job() -> object:
        requests = [HeadRequest(bundle.support(x, y), Options(seed=seed)) for seed, (x, y) in enumerate(made)]
        return bundle.generate_many(requests)

    result = interleaved({"generate": job}, rounds)["generate"]
    return result | {"p50_ms_per_task": round(result["p50_ms"] / tasks, 3)}


WHOLE_TASKS = ((20, 1), (20, 5), (150, 1), (150, 5))
POOL, FEATURES = 1000, 384


def bench_whole_tasks(bundle: Bundle, rounds: int = 20) -> dict:
    """Times of heads from features of names, examples and a pool of 1 000, JSON-ready; all cores that torch takes."""
    jobs: dict[str, Callable[[], object]] = {}
    others: dict[str, Callable[[], object]] = {}
    size = bundle.feature_size or FEATURES
    for ways, shots in WHOLE_TASKS:
        features, labels = made_support(ways, shots, size)
        names = dict(zip(dict.fromkeys(labels), made_support(ways, 1, size, seed=1)[0], strict=True))
        pool = made_support(ways, -(-POOL // ways), size, seed=2)[0][:POOL]
        target, array = np.repeat(np.arange(ways), shots), features.numpy()
        name = f"{ways}-way {shots}-shot, names and a pool of {POOL}"
        task = {"inputs": features, "labels": labels, "descriptions": names, "unlabelled": pool}
        jobs |= {
            f"generate without the support check, {name}": lambda t=task: bundle.generate(**t, check=False),
            f"generate, {name}": lambda t=task: bundle.generate(**t),
        }
        others[f"scikit-learn logistic regression on the examples, {ways}-way {shots}-shot"] = (
            lambda a=array, c=target: logistic_regression(a, c)
        )
    times = interleaved(jobs, rounds)
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "device": str(bundle.device),
        "one_head": times | interleaved(others, rounds),  # apart: its threads keep spinning into the next job
    }
