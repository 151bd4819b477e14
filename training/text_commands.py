"""What `ltdi prepare`, `meta-train`, `export` and `evaluate` do for a text config."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ltdi.bundle import Bundle, build_body
from ltdi.denoisers.geometry import describe
from ltdi.experts import logits
from ltdi.files import write_bytes, write_json
from ltdi.generator import Calibration, CalibrationRow, draw_noise
from training.configs.text import TEXT_EXPERIMENTS
from training.features import SHARED
from training.history_table import measure_history
from training.runs import commit, threads
from training.tasks import group_of, whole_task
from training.text_report import card_of_text, markdown_report, plot
from training.text_runs import EVERYTHING, TextWorkspace
from training.text_table import answer_set, base_statistics, other_answers, outside_scores, scores_of, table

TEMPERATURES = tuple(round(0.4 * 1.06**i, 4) for i in range(40))
KEPT = 0.95  # share of items of the classes that the threshold of `none of these` lets through
CALIBRATION_SHOTS = (1, 2, 5, 10)
HISTORY = "clinc150"  # whose intents are split into past and new ones


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """The arguments that all of them share."""
    parser = argparse.ArgumentParser(prog=f"ltdi {name}", description=description)
    parser.add_argument("--config", required=True, choices=tuple(TEXT_EXPERIMENTS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the text sets (default: data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of features and generators")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own)")
    return parser


def workspace_of(args: argparse.Namespace) -> TextWorkspace:
    """The workspace that the arguments name."""
    threads(args.threads)
    return TextWorkspace(TEXT_EXPERIMENTS[args.config], args.runs, args.data)


def prepare_text(argv: list[str]) -> int:
    """Embed all text sets of a config, once."""
    workspace = workspace_of(parser_of("prepare", prepare_text.__doc__).parse_args(argv))
    for encoder in dict.fromkeys((*workspace.experiment.encoders, workspace.experiment.measured)):
        count = sum(len(one.features) for one in workspace.sets(encoder))
        print(f"{encoder}: {count} texts at {workspace.features}")
    return 0


def meta_train_text(argv: list[str]) -> int:
    """Train the generators of one seed: one without each group of the table, and one of everything."""
    parser = parser_of("meta-train", meta_train_text.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    workspace = workspace_of(args)
    workspace.train(args.seed)
    print(f"generators at {workspace.folder}")
    return 0


def export_text(argv: list[str]) -> int:
    """Fit temperatures and thresholds where the generator had not trained, and write the bundle."""
    parser = parser_of("export", export_text.__doc__)
    parser.add_argument("--out", type=Path, help="folder of the bundle (default: bundles/CONFIG)")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the generator that ships")
    args = parser.parse_args(argv)
    workspace = workspace_of(args)
    config = workspace.bundle_config(fit_calibration(workspace, args.seed))
    generator = workspace.generator(EVERYTHING, args.seed)
    generator.calibration = config.calibration
    out = args.out or Path("bundles") / args.config
    print(f"bundle {out}, digest {Bundle(config, build_body(config.body), generator).save(out)}")
    return 0


@torch.inference_mode()
def fit_calibration(workspace: TextWorkspace, seed: int, repeats: int = 2) -> Calibration:
    """Temperatures with the least cross entropy, and thresholds that keep `KEPT` of the items of the classes.

    Each set is answered by a generator that left its group out, so that both hold for sets never seen; the value of a
    row is the median over sets.
    """
    rows = []
    tables = [one for one in workspace.measured if one.name in workspace.experiment.table]
    for shots in CALIBRATION_SHOTS:
        found: list[torch.Tensor] = []
        temperatures, own = [], []
        for data in tables:
            generator = workspace.generator(group_of(data.name), seed)
            for repeat in range(repeats):
                task = whole_task(data, shots, 10_000 + repeat)
                for information in ("examples", "all"):
                    described = describe(task.items(information, centre=workspace.experiment.geometry.centre))
                    noise = draw_noise(repeat, 1, tuple(described.base.shape))
                    queries = described.items.seen(task.queries)
                    found.append(logits(generator.generate_one(described, noise), queries))
                    temperatures.append(best_temperature(found[-1], task.targets))
                    own.append(best_temperature(logits(described.base, queries), task.targets))
        temperature = float(np.median(temperatures))  # the one that a head will have, and its scores with it
        thresholds = [float(torch.quantile(scores_of(answers / temperature)["energy"], KEPT)) for answers in found]
        rows.append(CalibrationRow(shots, 1.0, temperature, float(np.median(own)), round(float(np.median(thresholds)), 4)))
    return Calibration(tuple(rows))


def best_temperature(answers: torch.Tensor, targets: torch.Tensor) -> float:
    """Of `TEMPERATURES` the one with the least cross entropy."""
    losses = [torch.nn.functional.cross_entropy(answers / t, targets) for t in TEMPERATURES]
    return TEMPERATURES[int(torch.stack(losses).argmin())]


def evaluate_text(argv: list[str]) -> int:
    """Measure whole label sets by generators that never saw them, beside every closed form."""
    parser = parser_of("evaluate", evaluate_text.__doc__)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle whose card is written (bundles/CONFIG)")
    parser.add_argument("--seeds", type=int, default=10, help="supports of each cell")
    parser.add_argument("--sets", help="comma separated, instead of the config's table")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of JSON, report and plot")
    parser.add_argument("--no-card", action="store_true", help="leave the bundle's card as it is")
    args = parser.parse_args(argv)
    workspace = workspace_of(args)
    result = {"config": args.config, "commit": commit(), "seeds": args.seeds} | measure(
        workspace, args.seeds, tuple(args.sets.split(",")) if args.sets else workspace.experiment.table
    )
    write_json(args.results / f"{args.config}.json", result)
    write_bytes(args.results / f"{args.config}.md", markdown_report(result).encode())
    plot(result, args.results / f"{args.config}.png")
    print(markdown_report(result))
    folder = args.bundle or Path("bundles") / args.config
    if not args.no_card and folder.is_dir():
        card = card_of_text(workspace.experiment, (folder / "digest").read_text().strip(), result)
        write_json(folder / "card.json", card)
        write_bytes(folder / "card.md", (card["text"] + "\n").encode())
    return 0


def measure(workspace: TextWorkspace, seeds: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Everything that `ltdi evaluate` reports of a text config, JSON-ready."""
    sets = [one for one in workspace.measured if one.name in names]
    cells, controls, outside = {}, {}, {}
    started = time.monotonic()
    for data in tqdm(sets, desc="sets"):
        group = group_of(data.name)
        generators = workspace.generators(group)
        for generator in generators.values():
            generator.calibration = Calibration()
        base = base_statistics(workspace.measured, group) if workspace.experiment.measured in SHARED else None
        cells |= answer_set(data, generators, base, range(seeds))
        task = whole_task(data, 1, 0)
        controls[data.name] = {k: round(v, 2) for k, v in other_answers(task, generators[0], 0).items()}
        if len(task.outside):
            outside[data.name] = outside_scores(data, {0: generators[0]}, range(min(seeds, 5)), 5)
    history = next((one for one in sets if one.name == HISTORY and workspace.experiment.body), None)
    return table(cells, seeds) | {
        "own_history": {} if history is None else measure_history(
            history, workspace.generators(group_of(HISTORY)), seeds
        ),
        "controls_one_shot_all": controls,
        "none_of_these_auroc": outside,
        "seconds": round(time.monotonic() - started, 1),
    }
