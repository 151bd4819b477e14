"""What the subcommands of `ltdi` that train have in common: their options, and where a config sends them on."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ltdi.bundle import Bundle
from ltdi.generator import Generator
from training.configs import EXPERIMENTS, experiment
from training.configs.domains import DOMAIN_EXPERIMENTS
from training.configs.text import TEXT_EXPERIMENTS
from training.pool_reader import attach_reader
from training.runs import Workspace, threads

Command = Callable[[list[str]], int]
SEEDS = (0, 1, 2)


def others_too(name: str) -> Callable[[Command], Command]:
    """Sends a command on where its config is one of text or of domains; what that needs is imported only then."""

    def wrap(of_images: Command) -> Command:
        @functools.wraps(of_images)
        def run(argv: list[str]) -> int:
            chooser = argparse.ArgumentParser(add_help=False)
            chooser.add_argument("--config", default="")
            config, command = chooser.parse_known_args(argv)[0].config, name.replace("-", "_")
            if config in TEXT_EXPERIMENTS:
                from training import text_commands

                return getattr(text_commands, f"{command}_text")(argv)
            if config in DOMAIN_EXPERIMENTS:
                from training import domain_commands

                return getattr(domain_commands, f"{command}_domains")(argv)
            return of_images(argv)

        return run

    return wrap


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """A command's options, those that all have among them."""
    parser = argparse.ArgumentParser(prog=f"ltdi {name}", description=description)
    parser.add_argument("--config", required=True, help=f"one of: {', '.join((*EXPERIMENTS, *TEXT_EXPERIMENTS, *DOMAIN_EXPERIMENTS))}")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data set (default: data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints and trajectories")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own)")
    return parser


def workspace_of(args: argparse.Namespace) -> Workspace:
    """The workspace that the options name."""
    threads(args.threads)
    return Workspace(replace(experiment(args.config)), args.runs, args.data)


def other_seeds(workspace: Workspace, bundle: Bundle) -> dict[int, Generator]:
    """Generators of the other training seeds that are there, at the bundle's calibration."""
    found = {}
    for seed in SEEDS[1:]:
        if workspace.generator_folder(seed).exists():
            found[seed] = workspace.generator(seed)
            found[seed].calibration = bundle.config.calibration
            if found[seed].recipe == "default":
                found[seed].metric = bundle.generator.metric
                attach_reader(found[seed], bundle.config.pool, workspace.generator_folder(seed))
    return found
