"""`ltdi bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ltdi.adapters.bundle import AdapterBundle
from ltdi.bundle import load_bundle
from ltdi.files import write_json
from training.bench import bench as run_bench
from training.bench import bench_whole_tasks
from training.bench_adapters import bench_adapters
from training.runs import commit


def bench(argv: list[str]) -> int:
    """Time generation against fine-tuning, side by side; heads against logistic regression too."""
    parser = argparse.ArgumentParser(prog="ltdi bench", description=bench.__doc__)
    parser.add_argument("--bundle", default="omniglot", help="a shipped name or a folder")
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5, help="whole repetitions; the median of each figure is kept")
    parser.add_argument("--out", type=Path, help="where the JSON goes, beside the terminal")
    args = parser.parse_args(argv)
    bundle = load_bundle(args.bundle, device=args.device)
    result = {"bundle": bundle.name, "bundle_digest": bundle.digest, "commit": commit()}
    if isinstance(bundle, AdapterBundle):
        run = bench_adapters
    else:
        run = bench_whole_tasks if bundle.takes_descriptions else run_bench
    result |= median_of([run(bundle, args.rounds) for _ in range(args.runs)])
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)
    return 0


def median_of(runs: list):
    """The same nested figures, each number the median over runs."""
    first = runs[0]
    if isinstance(first, dict):
        return {key: median_of([run[key] for run in runs]) for key in first}
    if isinstance(first, int | float):
        return sorted(runs)[len(runs) // 2]
    return first
