"""The subcommands of `ltdi` that train: prepare, meta-train, export, train-pool."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ltdi.bundle import load_bundle
from ltdi.errors import UnsupportedInput
from ltdi.generator import ResidualGenerator
from ltdi.pool import ROUNDS
from training.command_line import other_seeds, others_too, parser_of, workspace_of
from training.configs.experiment import Experiment
from training.export import make_bundle
from training.meta_train import meta_train as train_default
from training.meta_train import validation_gain
from training.meta_train_paper import train_paper
from training.pool_reader import add_reader, save_reader, train_pool_reader
from training.prepare import prepare as prepare_trajectories
from training.runs import Workspace, centre_and_scale, seeded


@others_too("prepare")
def prepare(argv: list[str]) -> int:
    """Train the body and prepare trajectories (Algorithm 1)."""
    parser = parser_of("prepare", prepare.__doc__)
    parser.add_argument("--body-from", help="a bundle whose body is taken instead of training one")
    args = parser.parse_args(argv)
    workspace = workspace_of(args)
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


@others_too("meta-train")
def meta_train(argv: list[str]) -> int:
    """Meta-train the denoiser (Algorithm 2, or the default recipe's own)."""
    parser = parser_of("meta-train", meta_train.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="training seed of the generator")
    args = parser.parse_args(argv)
    workspace = workspace_of(args)
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


@others_too("export")
def export(argv: list[str]) -> int:
    """Fit strength, temperature and fallback margin on validation classes, and write the bundle."""
    parser = parser_of("export", export.__doc__)
    parser.add_argument("--out", type=Path, help="folder of the bundle (default: bundles/CONFIG)")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the generator that ships")
    args = parser.parse_args(argv)
    workspace = workspace_of(args)
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
    parser = parser_of("train-pool", train_pool.__doc__)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle, which is written anew (default: bundles/CONFIG)")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(argv)
    workspace, folder = workspace_of(args), args.bundle or Path("bundles") / args.config
    bundle = load_bundle(folder, device="cpu")
    if bundle.config.recipe != "default":
        raise UnsupportedInput(f"bundle {bundle.name!r} is of recipe {bundle.config.recipe!r}; pools are taught to `default`")
    banks = [workspace.some_of_train(bundle.body), *workspace.virtual_banks(bundle.body)]
    validation = workspace.bank(bundle.body, "val")
    for seed, generator in other_seeds(workspace, bundle).items():
        reader = train_pool_reader(seeded(workspace.experiment, seed).meta_train, generator, banks, ROUNDS, args.steps)
        save_reader(reader, workspace.generator_folder(seed))
    print(f"bundle {folder}, digest {add_reader(bundle, workspace.experiment.meta_train, banks, validation, args.steps, folder)}")
    return 0
