"""Named experiments: `ltdi prepare|meta-train|evaluate|export --config NAME`."""

from __future__ import annotations

from dataclasses import replace

from ltdi.config import nearest
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.denoisers.unet import UNetConfig
from ltdi.errors import InvalidConfig
from ltdi.schedule import ScheduleConfig
from training.body import BodyConfig
from training.classify import ClassifyConfig
from training.configs.experiment import Experiment
from training.meta_train import MetaTrainConfig
from training.meta_train_paper import PaperConfig
from training.prepare import PrepareConfig

OMNIGLOT_TERMS = "Omniglot, Lake et al., Science 2015; MIT licence (brendenlake/omniglot)"

OMNIGLOT_PARTS = (
    "training characters only, in four rotations; strength, temperature and fallback margin fitted on validation characters; "
    "test characters used for this card alone."
)
DRAWINGS_ONLY = (
    "It reads small grey drawings of single symbols, {side} x {side} after preparation, in any polarity. It has "
    "seen handwriting by pen only: on photographs, textures or words its features say little, and the "
    "baseline's support accuracy beside each head is the first thing to look at."
)

OMNIGLOT = Experiment(
    name="omniglot",
    data="omniglot",
    body=BodyConfig(steps=4200),
    body_run="omniglot",
    prepare=PrepareConfig(tasks=2000, ways=20, shots=1),
    meta_train=MetaTrainConfig(
        steps=400, ways=(5, 20, 40), drawings=5, eq2_weight=0.01, validate_every=100,
        denoiser=ClassTokensConfig(width=32, heads=2),
    ),
    views=8,
    terms=OMNIGLOT_TERMS,
    trained_on=OMNIGLOT_PARTS,
    limits=DRAWINGS_ONLY.format(side=28),
)


OMNIGLOT_BACKGROUND = Experiment(
    name="omniglot-background",
    data="omniglot-background",
    body=BodyConfig(image_size=40, steps=600, whole_groups=True, bfloat16=True),
    body_run="omniglot-background",
    meta_train=replace(OMNIGLOT.meta_train, steps=200, eq2_weight=0.0, ways=(5, 20), validate_every=0),
    views=5,
    ways=(20,),
    within=True,
    episodes=1000,
    validation_episodes=200,
    terms=OMNIGLOT_TERMS,
    trained_on=(
        "25 of the 30 background alphabets, no rotations added; strength, temperature and fallback margin fitted on the other "
        "five; the 20 evaluation alphabets and the official one-shot runs used for this card alone."
    ),
    limits=DRAWINGS_ONLY.format(side=40),
)

MINI_IMAGENET = Experiment(
    name="mini-imagenet",
    data="mini-imagenet",
    body=ClassifyConfig(),
    body_run="mini-imagenet",
    meta_train=MetaTrainConfig(
        steps=2400, classes=60, drawings=12, ways=(5,), one_shot_splits=3, many_shot_splits=2, temperatures=(6.0, 2.5),
        blind=0.2, mixed=0.9, plain=0.5, estimate_lr=1.0, ridge_features=0.3, ridge_views=0.1, weight_decay=0.05,
        metric_shrink=0.9, denoiser=ClassTokensConfig(width=64, heads=4, encoder_layers=1, dropout=0.2),
        validate_every=400,
    ),
    views=3,
    view_share=0.5,
    virtual=75,
    familiar=0.98,
    rival="mini-imagenet-class-means",
    ways=(5,),
    terms=(
        "mini-ImageNet (Vinyals et al., 2016; split of Ravi and Larochelle), images of ImageNet: non-commercial research only, "
        "so that no bundle ships"
    ),
    trained_on=(
        "the 64 training classes for body and generator; strength, temperature and fallback margin fitted on the 16 validation "
        "classes; the 20 test classes used for this card alone."
    ),
    limits=(
        "It reads colour photographs of one thing, 48 x 48 after preparation. At that size and on half of the data set's images a "
        "head is right on half of the queries at one example of five classes: for use on photographs take a larger body. On "
        "other data sets see the transfer rows of the README."
    ),
)


def _eq2(weight: float) -> Experiment:
    return replace(
        OMNIGLOT,
        name=f"omniglot-eq2-{weight:g}",
        store_run="omniglot",
        meta_train=replace(OMNIGLOT.meta_train, eq2_weight=weight),
    )


FEW_SHOT = PrepareConfig(tasks=3000, shots=1, kind="few_shot", lr=0.5, sam_radius=0.05, weight_decay=0.0, noise=0.3)
PAPER = PaperConfig(
    steps=1000, tasks=32, outer_lr=0.001, denoiser=UNetConfig(channels=(16, 32), stride=8, embedding=512), validate_every=0
)
VANILLA = ScheduleConfig(segments=1)


def _paper(ways: int) -> Experiment:
    return Experiment(
        name=f"omniglot-paper-{ways}w",
        data="omniglot",
        body=OMNIGLOT.body,
        body_run="omniglot",
        prepare=replace(FEW_SHOT, ways=ways),
        meta_train=PAPER,
        terms=OMNIGLOT_TERMS,
    trained_on=OMNIGLOT_PARTS,
    limits=DRAWINGS_ONLY.format(side=28),
    )


def _vanilla(experiment: Experiment) -> Experiment:
    return replace(
        experiment,
        name=f"{experiment.name}-m1",
        store_run=experiment.name,
        meta_train=replace(experiment.meta_train, schedule=VANILLA),
    )


def _told_t_minus_k(experiment: Experiment) -> Experiment:
    return replace(
        experiment,
        name=f"{experiment.name}-tk",
        store_run=experiment.name,
        meta_train=replace(experiment.meta_train, denoiser=replace(experiment.meta_train.denoiser, time="t-k")),
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

_PAPER = [_paper(ways) for ways in (5, 20)]
_LADDER = [_eq2(weight) for weight in (0.0, 0.1, 1.0)]
_NEW_CLASSES = replace(
    OMNIGLOT,
    name="omniglot-new-classes",
    body_run="omniglot-new-classes",
    body=replace(OMNIGLOT.body, new_classes_from=2400),
)

_CLASS_MEANS = replace(
    MINI_IMAGENET,
    name="mini-imagenet-class-means",
    body_run="mini-imagenet-class-means",
    body=replace(MINI_IMAGENET.body, steps=800, lr=3e-4, by_class_means=True, start="mini-imagenet"),
    rival="",
)

_CIFAR_FS = replace(
    MINI_IMAGENET,
    name="cifar-fs",
    data="cifar-fs",
    body_run="cifar-fs",
    rival="",
    terms="CIFAR-FS (Bertinetto et al., 2019), classes of CIFAR-100 (Krizhevsky, 2009), from the 80 Million Tiny Images, which were withdrawn",
    limits="It reads colour photographs of one thing that have 32 x 32 pixels of their own, 48 x 48 after preparation.",
)

_VARIANTS = [*map(_vanilla, _PAPER), _told_t_minus_k(_PAPER[0])]

EXPERIMENTS = {e.name: e for e in (OMNIGLOT, OMNIGLOT_BACKGROUND, MINI_IMAGENET, _CIFAR_FS, _CLASS_MEANS, *_LADDER, _NEW_CLASSES, *_PAPER, *_VARIANTS, TINY, TINY_PAPER)}


def experiment(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        InvalidConfig: there is none; the message names the nearest.
    """
    if name not in EXPERIMENTS:
        raise InvalidConfig(f"no config {name!r}; {nearest(name, list(EXPERIMENTS))}", field="config")
    return EXPERIMENTS[name]
