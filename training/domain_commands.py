"""What `ltdi prepare`, `meta-train` and `evaluate` do for a config of domains."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ltdi.codec import Standardiser
from ltdi.errors import DataMissing, InvalidConfig
from ltdi.files import read_safetensors, write_bytes, write_json, write_safetensors
from training.configs.domains import DOMAIN_EXPERIMENTS
from training.domains.comparators import Rivals
from training.domains.episodes import Split
from training.domains.generator import Elsewhere, KnownClassGenerator
from training.domains.meta_train import WAYS, train_generator
from training.domains.report import markdown_report
from training.domains.table import (
    SHOTS,
    STRENGTHS,
    evaluate_column,
    means_over_domains,
    strength_accuracies,
    with_strength,
)
from training.domains.workspace import DomainWorkspace
from training.episodes import Protocol
from training.runs import commit, threads

SEEDS = (0, 1, 2)


def prepare_domains(argv: list[str]) -> int:
    """Train the bodies, without each domain and on each pair, and embed the images."""
    workspace = _workspace(_parser("prepare", prepare_domains.__doc__).parse_args(argv))
    workspace.train_bodies()
    for left in workspace.images.domains:
        workspace.split(left)
        workspace.outer(left)
    print(f"bodies and features at {workspace.folder}")
    return 0


def meta_train_domains(argv: list[str]) -> int:
    """Train the generators of one seed, one for each domain that is left out; seed 0 also fits their strengths on inner problems."""
    parser = _parser("meta-train", meta_train_domains.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    workspace = _workspace(args)
    for left in workspace.images.domains:
        path = workspace.generator_path(left, args.seed)
        if path.exists():
            continue
        split = workspace.split(left)
        if args.seed == SEEDS[0]:
            write_json(_strengths_path(workspace, left), fit_strengths(workspace, split))
        generator = train_generator(workspace.experiment, split, args.seed, path.with_suffix(".log.jsonl"))
        tensors = {name: value.detach().contiguous() for name, value in generator.state_dict().items()}
        write_safetensors(path, tensors, {"seed": str(args.seed)})
        print(f"generator at {path}", flush=True)
    record = {"commit": commit(), "experiment": asdict(workspace.experiment)}
    write_json(workspace.folder / f"meta-train-seed{args.seed}.json", record)
    return 0


def fit_strengths(workspace: DomainWorkspace, split: Split) -> dict[str, dict]:
    """By examples a class, the strength that is best in the mean over inner problems, each by a generator trained without it."""
    experiment = workspace.experiment
    found: dict[int, list[torch.Tensor]] = {shots: [] for shots in SHOTS}
    for lesson in split.lessons:
        inner = split.without(lesson.name)
        generator = train_generator(experiment, inner, SEEDS[0])
        elsewhere = Elsewhere.of(lesson, experiment.shrink)
        for shots in SHOTS:
            protocol = Protocol(WAYS, shots, episodes=experiment.validation_episodes, seed=1)
            found[shots].append(strength_accuracies(generator, lesson, elsewhere, protocol))
    mean = {shots: torch.stack(values).mean(0) for shots, values in found.items()}
    return {
        str(shots): {"strength": STRENGTHS[int(values.argmax())], "accuracy": [100 * float(value) for value in values]}
        for shots, values in mean.items()
    }


def export_domains(argv: list[str]) -> int:
    """Refused: no bundle holds what is known of classes."""
    raise InvalidConfig("a config of domains has no bundle; `ltdi evaluate` measures its generators", field="config")


def evaluate_domains(argv: list[str]) -> int:
    """Measure heads for each left-out domain against the best closed forms with the same information."""
    parser = _parser("evaluate", evaluate_domains.__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the JSON and the page")
    args = parser.parse_args(argv)
    workspace = _workspace(args)
    rows, differences = [], {shots: [] for shots in SHOTS}
    for left in workspace.images.domains:
        lessons, rivals = [Rivals(one) for one in workspace.split(left).lessons], Rivals(workspace.outer(left))
        generators = _generators(workspace, left)
        for shots in SHOTS:
            row, own = evaluate_column(rivals, lessons, generators, shots, workspace.experiment)
            rows.append(row)
            differences[shots].append(own)
            print(f"{left}, {shots}: {row['difference_by_seed']}", flush=True)
    result = {
        "config": args.config,
        "commit": commit(),
        "rows": rows,
        "mean_difference": {str(shots): means_over_domains(own) for shots, own in differences.items()},
        "strengths": {left: _strengths(workspace, left) for left in workspace.images.domains},
        "terms": workspace.experiment.terms,
    }
    write_json(args.results / f"{args.config}.json", result)
    text = markdown_report(result)
    write_bytes(args.results / f"{args.config}.md", text.encode())
    print(text)
    return 0


def _generators(workspace: DomainWorkspace, left: str) -> dict[int, KnownClassGenerator]:
    """Those of the seeds that were trained, at least the first."""
    there = [seed for seed in SEEDS if workspace.generator_path(left, seed).exists()] or [SEEDS[0]]
    strengths = _strengths(workspace, left)
    return {seed: with_strength(_load(workspace, left, seed), strengths) for seed in there}


def _load(workspace: DomainWorkspace, left: str, seed: int) -> KnownClassGenerator:
    tensors = read_safetensors(_there(workspace, workspace.generator_path(left, seed)), "checkpoint")[0]
    size = len(tensors["codec.scale"])
    generator = KnownClassGenerator(workspace.experiment, Standardiser(torch.zeros(size), torch.ones(size)))
    generator.load_state_dict(tensors)
    return generator.eval().requires_grad_(False)


def _strengths_path(workspace: DomainWorkspace, left: str) -> Path:
    return workspace.folder / f"without-{left}-strengths.json"


def _strengths(workspace: DomainWorkspace, left: str) -> dict[int, float]:
    found = json.loads(_there(workspace, _strengths_path(workspace, left)).read_text())
    return {int(shots): row["strength"] for shots, row in found.items()}


def _there(workspace: DomainWorkspace, path: Path) -> Path:
    if not path.exists():
        raise DataMissing(f"{path} is not there; run `ltdi meta-train --config {workspace.experiment.name}` first")
    return path


def _parser(name: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"ltdi {name}", description=description)
    parser.add_argument("--config", required=True, choices=tuple(DOMAIN_EXPERIMENTS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data set (default: data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of bodies, features and generators")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own)")
    return parser


def _workspace(args: argparse.Namespace) -> DomainWorkspace:
    threads(args.threads)
    return DomainWorkspace(DOMAIN_EXPERIMENTS[args.config], args.runs, args.data)
