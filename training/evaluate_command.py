"""`ltdi evaluate`: the tables of a bundle of images."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ltdi.bundle import Bundle, load_bundle
from ltdi.errors import UnsupportedInput
from ltdi.files import write_bytes, write_json
from ltdi.generator import ResidualGenerator
from training import other_bundle
from training.cards import card_of, controls_table, eq2_table, markdown_table, pool_table
from training.command_line import other_seeds, others_too, parser_of, workspace_of
from training.comparators import BaseStatistics
from training.configs import EXPERIMENTS, experiment
from training.configs.experiment import ELSEWHERE, Experiment
from training.controls import negative_controls
from training.data.omniglot import load_oneshot_runs
from training.episodes import Protocol, oneshot_episodes
from training.evaluate import Bank, columns, evaluate_column, evaluate_runs
from training.image_pools import POOL_KINDS, pool_protocol
from training.look import draw_picture, look, report
from training.pool_table import pool_row
from training.runs import Workspace, commit


@others_too("evaluate")
def evaluate(argv: list[str]) -> int:
    """Measure a bundle on test classes against the closed forms, and write its card."""
    parser = parser_of("evaluate", evaluate.__doc__)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle (default: bundles/CONFIG)")
    parser.add_argument("--episodes", type=int, help="tasks in each column (default: as the config says)")
    parser.add_argument("--part", choices=("val", "test"), default="test", help="val while choosing, test once")
    parser.add_argument("--on", choices=tuple(ELSEWHERE), help="images of another data set in place of test classes")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the JSON")
    parser.add_argument("--ways", type=int, help="classes of a task, in a file of its own (default: as the config says)")
    parser.add_argument("--pool", action="store_true", help="tasks with an unlabelled pool, in a table of their own")
    parser.add_argument("--heads-of", metavar="BUNDLE", help="measure another bundle, any-embedding for example, on this one's features")
    parser.add_argument("--history", type=Path, metavar="FILE", help="write training features as a history for `ltdi fit`, and no more")
    parser.add_argument("--look", type=int, metavar="N", help="draw the first N episodes of each column instead of measuring")
    parser.add_argument("--no-card", action="store_true", help="leave the bundle's card as it is")
    args = parser.parse_args(argv)
    workspace, folder = workspace_of(args), args.bundle or Path("bundles") / args.config
    bundle = load_bundle_without_card(folder)
    if args.ways:
        workspace.experiment = replace(workspace.experiment, ways=(args.ways,))
    if args.history:
        other_bundle.write_history([workspace.bank(bundle.body, "train"), *workspace.virtual_banks(bundle.body)], args.history)
        return 0
    own = _bank(workspace, bundle.body, args.part, args.on)
    if args.look:
        return _look(args, workspace, bundle, own)
    if args.heads_of:
        return _evaluate_other(args, own)
    generators = {0: bundle.generator} | other_seeds(workspace, bundle)
    episodes = args.episodes or workspace.experiment.episodes
    if args.pool:
        return _evaluate_pools(args, bundle, own, generators, workspace.features(bundle.body, "train"), episodes)
    found = columns(_ways(bundle, own, workspace.experiment), episodes, own.groups is not None)
    rival = _rival(workspace, args)
    chosen_on = workspace.experiment.validation_episodes
    table = [evaluate_column(p, own, generators, chosen_on, rival) for p in found]
    result = {
        "config": args.config,
        "commit": commit(),
        "bundle_digest": bundle.digest,
        "part": args.on or args.part,
        "seed": 0,
        "columns": table,
        **_further(workspace, bundle, own, generators, args.on),
    }
    suffix = (f"-{args.ways}w" if args.ways else "") + _measured_on(args)
    write_json(args.results / f"{args.config}{suffix}.json", result)
    text = markdown_table(table)
    if "controls" in result:
        text += f"\n\nNegative controls:\n\n{controls_table(result['controls'])}"
    if "official_runs" in result:
        text += f"\n\nErrors on the official one-shot runs, percent: {json.dumps(result['official_runs'])}"
    print(text)
    if not args.no_card and not suffix:
        ladder = _by_eq2_weight(workspace.experiment, args.results)
        card = card_of(workspace.experiment, bundle, result, ladder)
        write_json(folder / "card.json", card)
        tables = [text, f"On validation classes, by weight of Eq. 2:\n\n{eq2_table(ladder)}"] if ladder else [text]
        write_bytes(folder / "card.md", ("\n\n".join([card["text"], *tables]) + "\n").encode())
    return 0


def _measured_on(args: argparse.Namespace) -> str:
    """The end of a result's name."""
    return f"-on-{args.on}" if args.on else "" if args.part == "test" else "-val"


def _look(args: argparse.Namespace, workspace: Workspace, bundle: Bundle, bank: Bank) -> int:
    chosen = workspace.experiment
    images = ELSEWHERE[args.on](args.data, chosen.body.image_size) if args.on else chosen.load(args.data, args.part)
    for protocol in columns(_ways(bundle, bank, chosen), chosen.episodes, bank.groups is not None):
        seen = look(bundle.generator, bank.test, protocol, args.look, bank.groups)
        path = args.results / f"{args.config}-episodes-{protocol.ways}w{protocol.shots}s.png"
        draw_picture(seen, images, path)
        print(f"{protocol.name}: {path}\n{report(seen, images.names)}")
    return 0


def _evaluate_other(args: argparse.Namespace, bank: Bank) -> int:
    other = load_bundle(args.heads_of, device="cpu")
    rows = other_bundle.rows_of(other, bank.validation, bank.test, args.episodes or 500)
    result = {"config": args.config, "commit": commit(), "bundle": other.name, "bundle_digest": other.digest, "part": args.on or args.part, "rows": rows}
    write_json(args.results / f"{args.config}-{other.name}{_measured_on(args)}.json", result)
    print(other_bundle.table(rows))
    return 0


def _evaluate_pools(
    args: argparse.Namespace, bundle: Bundle, bank: Bank, generators: dict, train: Tensor, episodes: int
) -> int:
    if not bundle.takes_pool:
        raise UnsupportedInput(f"bundle {bundle.name!r} takes no pool; run `ltdi train-pool` first", field="bundle")
    generators = {seed: one for seed, one in generators.items() if one.takes_pool}
    rows = []
    for shots in (1, 5):
        protocol, size = pool_protocol(bank.test, shots, episodes)
        rows += [
            pool_row(generators, train, bank.validation, bank.test, protocol, replace(kind, size=size)) for kind in POOL_KINDS
        ]
    result = {"config": args.config, "commit": commit(), "bundle_digest": bundle.digest, "part": args.on or args.part, "rows": rows}
    write_json(args.results / f"{args.config}-pool{_measured_on(args)}.json", result)
    print(pool_table(rows))
    return 0


def _by_eq2_weight(chosen: Experiment, results: Path) -> dict[str, list[dict]]:
    """Validation columns of the configs that are `chosen` but for the weight of Eq. 2, where they were measured."""
    found = {}
    for other in EXPERIMENTS.values():
        path = results / f"{other.name}-val.json"
        if other.recipe == chosen.recipe == "default" and path.exists():
            alike = replace(other, name=chosen.name, store_run=chosen.store_run, meta_train=chosen.meta_train) == chosen
            weight = other.meta_train.eq2_weight
            if alike and replace(other.meta_train, eq2_weight=chosen.meta_train.eq2_weight) == chosen.meta_train:
                found[weight] = json.loads(path.read_text())["columns"]
    return {f"{weight:g}": found[weight] for weight in sorted(found)}


def load_bundle_without_card(folder: Path):
    """The bundle at `folder`; a card of an earlier export is removed first, since it is about to be made anew."""
    card = folder / "card.json"
    if card.exists() and json.loads(card.read_text()).get("bundle_digest") != (folder / "digest").read_text().strip():
        card.unlink()
    return load_bundle(folder, device="cpu")




def _ways(bundle: Bundle, bank: Bank, chosen: Experiment) -> tuple[int, ...]:
    most = len(bank.test) if bank.groups is None else int(bank.groups.bincount().max())
    return (bundle.fixed_ways,) if bundle.fixed_ways else tuple(dict.fromkeys(min(w, most) for w in chosen.ways))


def _rival(workspace: Workspace, args: argparse.Namespace) -> Bank | None:
    """The bank of the rival body, where the config names one."""
    if not workspace.experiment.rival or args.on:
        return None
    other = Workspace(experiment(workspace.experiment.rival), args.runs, args.data)
    return _bank(other, other.body(), args.part)


def _further(workspace: Workspace, bundle: Bundle, bank: Bank, generators: dict, elsewhere: str | None) -> dict:
    """Negative controls, and the official runs where the config has them."""
    if not isinstance(bundle.generator, ResidualGenerator) or elsewhere:
        return {}
    chosen = workspace.experiment
    train = workspace.bank(bundle.body, "train")
    tasks = Protocol(5, 1, episodes=1000), Protocol(5, 5, episodes=1000)
    controls = {p.name: negative_controls(bundle.generator, bank.test, train, p) for p in tasks}
    if chosen.data != "omniglot-background":
        return {"controls": controls}
    runs = oneshot_episodes(bundle.body, load_oneshot_runs(workspace.data, chosen.body.image_size), chosen.view_maps)
    return {"controls": controls, "official_runs": evaluate_runs(runs, bank, generators)}


def _bank(workspace: Workspace, body: nn.Module, part: str, elsewhere: str | None = None) -> Bank:
    chosen, data = workspace.experiment, workspace.data
    validation, base = workspace.bank(body, "val"), BaseStatistics.of(workspace.features(body, "train"))
    if elsewhere is None:
        measured = workspace.bank(body, part)
        groups = [chosen.load(data, p).groups if chosen.within else None for p in ("val", part)]
        return Bank(validation, measured, base, *groups)
    images = ELSEWHERE[elsewhere](data, chosen.body.image_size)
    groups = images.groups if "/" in images.names[0] else None
    return Bank(validation, workspace.bank_of(body, images, elsewhere), base, None, groups)
