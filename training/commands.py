"""The subcommands of `ltdi` that train: prepare, meta-train, export, train-pool, evaluate, bench."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ltdi.adapters.bundle import AdapterBundle
from ltdi.bundle import Bundle, load_bundle
from ltdi.errors import UnsupportedInput
from ltdi.files import write_bytes, write_json
from ltdi.generator import ResidualGenerator
from ltdi.pool import ROUNDS
from training import other_bundle
from training.bench import bench as run_bench
from training.bench import bench_whole_tasks
from training.bench_adapters import bench_adapters
from training.cards import card_of, controls_table, eq2_table, markdown_table, pool_table
from training.comparators import BaseStatistics
from training.configs import EXPERIMENTS, experiment
from training.configs.domains import DOMAIN_EXPERIMENTS
from training.configs.experiment import ELSEWHERE, Experiment
from training.configs.text import TEXT_EXPERIMENTS
from training.controls import negative_controls
from training.data.omniglot import load_oneshot_runs
from training.episodes import Protocol, oneshot_episodes
from training.evaluate import Bank, columns, evaluate_column, evaluate_runs
from training.export import make_bundle
from training.image_pools import POOL_KINDS, pool_protocol
from training.look import draw_picture, look, report
from training.meta_train import meta_train as train_default
from training.meta_train import validation_gain
from training.meta_train_paper import train_paper
from training.pool_reader import add_reader, attach_reader, save_reader, train_pool_reader
from training.pool_table import pool_row
from training.prepare import prepare as prepare_trajectories
from training.runs import Workspace, centre_and_scale, commit, seeded, threads

SEEDS = (0, 1, 2)
Command = Callable[[list[str]], int]


def _others_too(name: str) -> Callable[[Command], Command]:
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


@_others_too("prepare")
def prepare(argv: list[str]) -> int:
    """Train the body and prepare trajectories (Algorithm 1)."""
    parser = _parser("prepare", prepare.__doc__)
    parser.add_argument("--body-from", help="a bundle whose body is taken instead of training one")
    args = parser.parse_args(argv)
    workspace = _workspace(args)
    given = args.body_from
    body = workspace.adopt_body(load_bundle(given, device="cpu")) if given else workspace.train_body()
    if not _wants_trajectories(workspace.experiment):
        workspace.record("prepare")
        print(f"body at {workspace.body_folder}; this config trains on no trajectories")
        return 0
    images = workspace.experiment.load(workspace.data, "train")
    store = prepare_trajectories(
        workspace.experiment.prepare,
        body,
        images,
        workspace.store,
        features=workspace.body_folder / "views.safetensors",
    )
    workspace.record("prepare", trajectories=len(store))
    print(f"{len(store)} trajectories at {workspace.store}")
    return 0


def _wants_trajectories(chosen: Experiment) -> bool:
    return chosen.recipe == "paper" or chosen.meta_train.eq2_weight > 0


@_others_too("meta-train")
def meta_train(argv: list[str]) -> int:
    """Meta-train the denoiser (Algorithm 2, or the default recipe's own)."""
    parser = _parser("meta-train", meta_train.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="training seed of the generator")
    args = parser.parse_args(argv)
    workspace = _workspace(args)
    workspace.experiment = seeded(workspace.experiment, args.seed)
    out = workspace.generator_folder(args.seed)
    body = workspace.body()
    if workspace.experiment.recipe == "paper":
        statistics = centre_and_scale(workspace.features(body, "train"))
        train_paper(workspace.experiment.meta_train, workspace.trajectories(), statistics, out)
    else:
        _train_default(workspace, body, out)
    workspace.record(f"meta-train-seed{args.seed}")
    print(f"generator at {out}")
    return 0


def _train_default(workspace: Workspace, body: nn.Module, out: Path) -> None:
    config = workspace.experiment.meta_train
    store = workspace.trajectories() if config.eq2_weight else None
    validation = workspace.bank(body, "val")
    episodes = 200 if len(validation) >= 20 else 0

    def validate(generator: ResidualGenerator) -> dict[str, float]:
        return validation_gain(generator, validation, episodes) if episodes else {}

    train_default(
        config, workspace.bank(body, "train"), out, store=store, view_maps=workspace.experiment.view_maps,
        view_share=workspace.experiment.view_share, virtual=workspace.virtual_banks(body), validate=validate,
    )


@_others_too("export")
def export(argv: list[str]) -> int:
    """Fit strength, temperature and fallback margin on validation classes, and write the bundle."""
    parser = _parser("export", export.__doc__)
    parser.add_argument("--out", type=Path, help="folder of the bundle (default: bundles/CONFIG)")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the generator that ships")
    args = parser.parse_args(argv)
    workspace = _workspace(args)
    body, generator = workspace.body(), workspace.generator(args.seed)
    bundle = make_bundle(
        workspace.bundle_config(), body, generator, workspace.features(body, "train"), workspace.bank(body, "val"),
        keep_metric=getattr(workspace.experiment.meta_train, "metric_shrink", None) is not None,
        familiar=workspace.experiment.familiar,
    )
    out = args.out or Path("bundles") / args.config
    print(f"bundle {out}, digest {bundle.save(out)}")
    return 0


def train_pool(argv: list[str]) -> int:
    """Teach a bundle, and the generators of the other training seeds, to read unlabelled pools."""
    parser = _parser("train-pool", train_pool.__doc__)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle, which is written anew (default: bundles/CONFIG)")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(argv)
    workspace, folder = _workspace(args), args.bundle or Path("bundles") / args.config
    bundle = load_bundle(folder, device="cpu")
    if bundle.config.recipe != "default":
        raise UnsupportedInput(f"bundle {bundle.name!r} is of recipe {bundle.config.recipe!r}; pools are taught to `default`")
    banks = [workspace.some_of_train(bundle.body), *workspace.virtual_banks(bundle.body)]
    validation = workspace.bank(bundle.body, "val")
    for seed, generator in _other_seeds(workspace, bundle).items():
        reader = train_pool_reader(seeded(workspace.experiment, seed).meta_train, generator, banks, ROUNDS, args.steps)
        save_reader(reader, workspace.generator_folder(seed))
    print(f"bundle {folder}, digest {add_reader(bundle, workspace.experiment.meta_train, banks, validation, args.steps, folder)}")
    return 0


@_others_too("evaluate")
def evaluate(argv: list[str]) -> int:
    """Measure a bundle on test classes against the closed forms, and write its card."""
    parser = _parser("evaluate", evaluate.__doc__)
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
    workspace, folder = _workspace(args), args.bundle or Path("bundles") / args.config
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
    generators = {0: bundle.generator} | _other_seeds(workspace, bundle)
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


def _other_seeds(workspace: Workspace, bundle) -> dict:
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


def _parser(name: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"ltdi {name}", description=description)
    parser.add_argument("--config", required=True, help=f"one of: {', '.join((*EXPERIMENTS, *TEXT_EXPERIMENTS, *DOMAIN_EXPERIMENTS))}")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data set (default: data)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints and trajectories")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own)")
    return parser


def _workspace(args: argparse.Namespace) -> Workspace:
    threads(args.threads)
    return Workspace(replace(experiment(args.config)), args.runs, args.data)
