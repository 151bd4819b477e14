"""The experiment of domains: bodies trained on some, heads for one that they have not seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.schedule import ScheduleConfig
from training.classify import ClassifyConfig


@dataclass(frozen=True)
class DomainTraining:
    """How a generator for an unseen domain is trained.

    Args:
        steps: optimiser steps.
        tasks: of each of the three batches of a step: two with one example a class, one with two to five.
        queries: images a class that judge a head.
        lr, estimate_lr: peak learning rates of AdamW for the chain and for the numbers of the estimate, cosine to zero.
        seed: of initialisation, tasks and noise.
    """

    steps: int = 40
    tasks: int = 16
    queries: int = 10
    lr: float = 3e-5
    estimate_lr: float = 3e-2
    weight_decay: float = 0.05
    ema: float = 0.98
    seed: int = 0


@dataclass(frozen=True)
class DomainExperiment:
    """What `ltdi prepare`, `meta-train` and `evaluate` do for a config of domains.

    Args:
        name: of the config and the folder under `runs/`.
        source: the data set, of `training.domains.images.SOURCES`.
        body: how bodies are trained; `body.start` is the config whose body they begin with.
        training_images: images of a class of a domain that a body is trained on.
        most: images of a class of a domain that are embedded.
        changed: images of a class of a domain in each virtual domain.
        views: of each example.
        moved: how far the baseline moves class means of one and of five examples towards the known ones.
        shrink: of the baseline's covariance.
        view_share: how far the baseline moves examples to the mean of their views.
        episodes, validation_episodes: tasks of each column of the table, and of each inner problem.
    """

    name: str
    body: ClassifyConfig
    source: str = "pacs"
    training_images: int = 300
    most: int = 300
    changed: int = 40
    views: int = 3
    moved: tuple[float, float] = (0.9, 0.7)
    shrink: float = 0.2
    view_share: float = 0.5
    training: DomainTraining = field(default_factory=DomainTraining)
    denoiser: ClassTokensConfig = ClassTokensConfig(width=16, heads=2, encoder_layers=1)
    schedule: ScheduleConfig = ScheduleConfig()
    episodes: int = 2000
    validation_episodes: int = 100
    terms: str = "PACS (Li et al., 2017), no licence stated; the bodies begin with one trained on mini-ImageNet: research only"


PACS = DomainExperiment(
    "pacs", ClassifyConfig(steps=500, lr=1e-3, estranged=0.3, checkpoint_every=100, start="mini-imagenet")
)
DOMAINNET = replace(
    PACS, name="domainnet", source="domainnet", terms="DomainNet (Peng et al., 2019), fair use for research; the bodies begin with one trained on mini-ImageNet"
)
DOMAIN_EXPERIMENTS = {one.name: one for one in (PACS, DOMAINNET)}
