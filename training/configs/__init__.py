"""Named experiments: `ltdi prepare|meta-train|evaluate|export --config NAME`."""

from __future__ import annotations

from dataclasses import replace

from ltdi.config import nearest
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.denoisers.unet import UNetConfig
from ltdi.errors import InvalidConfig
from ltdi.schedule import ScheduleConfig
from training.body import BodyConfig
from training.configs.experiment import Experiment
from training.meta_train import MetaTrainConfig
from training.meta_train_paper import PaperConfig
from training.prepare import PrepareConfig

OMNIGLOT_TERMS = "Omniglot, Lake et al., Science 2015; MIT licence (brendenlake/omniglot)"

OMNIGLOT = Experiment(
    name="omniglot",
    data="omniglot",
    body=BodyConfig(steps=4200, new_classes_from=2400),
    body_run="omniglot",
    prepare=PrepareConfig(tasks=2000, ways=20, shots=1),
    meta_train=MetaTrainConfig(steps=600, ways=(20, 40), drawings=5, eq2_weight=0.01),
    terms=OMNIGLOT_TERMS,
)

FEW_SHOT = PrepareConfig(tasks=4000, ways=5, shots=1, kind="few_shot")
VANILLA = ScheduleConfig(segments=1)


def _paper(ways: int, shots: int) -> Experiment:
    return Experiment(
        name=f"omniglot-paper-{ways}w{shots}s",
        data="omniglot",
        body=OMNIGLOT.body,
        body_run="omniglot",
        prepare=replace(FEW_SHOT, ways=ways, shots=shots),
        meta_train=PaperConfig(),
        terms=OMNIGLOT_TERMS,
    )


def _vanilla(experiment: Experiment) -> Experiment:
    return replace(
        experiment,
        name=f"{experiment.name}-m1",
        meta_train=replace(experiment.meta_train, schedule=VANILLA),
    )


TINY = Experiment(
    name="tiny",
    data="made",
    body=BodyConfig(channels=8, steps=30, classes=20, drawings=4, checkpoint_every=10),
    body_run="tiny",
    prepare=PrepareConfig(tasks=24, ways=5, shots=1, steps=10, views=2, shard_tasks=12),
    meta_train=MetaTrainConfig(
        steps=20,
        classes=20,
        drawings=4,
        ways=(5,),
        eq2_weight=0.01,
        trajectory_tasks=8,
        denoiser=ClassTokensConfig(width=32),
        checkpoint_every=10,
    ),
)

TINY_PAPER = replace(
    TINY,
    name="tiny-paper",
    prepare=replace(TINY.prepare, kind="few_shot", hidden=4),
    meta_train=PaperConfig(
        steps=6,
        tasks=8,
        inner_steps=2,
        denoiser=UNetConfig(channels=(4, 8), embedding=16),
        checkpoint_every=3,
        validate_every=0,
        log_every=2,
    ),
)

_PAPER = [_paper(ways, shots) for ways in (5, 20) for shots in (1, 5)]

EXPERIMENTS = {e.name: e for e in (OMNIGLOT, *_PAPER, *map(_vanilla, _PAPER), TINY, TINY_PAPER)}


def experiment(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        InvalidConfig: there is none; the message names the nearest.
    """
    if name not in EXPERIMENTS:
        raise InvalidConfig(f"no config {name!r}; {nearest(name, list(EXPERIMENTS))}", field="config")
    return EXPERIMENTS[name]
