"""Meta-trains a generator for an unseen domain on inner problems: domains unseen by the bodies of the others."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi import baselines
from ltdi.codec import Standardiser
from training.body import update_average
from training.configs.domains import DomainExperiment, DomainTraining
from training.domains.episodes import KnownEpisodes, Split, random_known
from training.domains.generator import Elsewhere, KnownClassGenerator, generate_known
from training.domains.modes import centred, means_of
from training.episodes import Protocol
from training.progress import RunLog

WAYS = 5


def lessons_of(split: Split, shrink: float) -> list[Elsewhere]:
    """What each lesson's tasks may know."""
    return [Elsewhere.of(one, shrink) for one in split.lessons]


def initial_generator(experiment: DomainExperiment, split: Split, elsewhere: list[Elsewhere]) -> KnownClassGenerator:
    """A generator whose residuals are standardised by those between the baseline and LDA on the domain's true means."""
    torch.manual_seed(experiment.training.seed)
    unit = Standardiser(torch.zeros(experiment.body.widths[-1] + 1), torch.ones(experiment.body.widths[-1] + 1))
    generator, residuals = KnownClassGenerator(experiment, unit), []
    chance = torch.Generator().manual_seed(0)
    for lesson, known in zip(split.lessons, elsewhere, strict=True):
        episodes = random_known(lesson.bank, Protocol(WAYS, 1), 100, chance)
        base = generator.describe_known(episodes, known)[0].base
        true = centred(means_of(lesson.bank)[episodes.classes])
        residuals.append((baselines.nearest_mean_in_metric(true, known.metric) - base).flatten(0, 1).detach())
    generator.codec = Standardiser(unit.mean, torch.cat(residuals).std(0).clamp_min(1e-4))
    return generator


def train_generator(experiment: DomainExperiment, split: Split, seed: int, log: Path | None = None) -> KnownClassGenerator:
    """A generator for the split's left-out domain, averaged over its training; the left-out domain is not looked at."""
    experiment = replace(experiment, training=replace(experiment.training, seed=seed))
    training, elsewhere = experiment.training, lessons_of(split, experiment.shrink)
    generator = initial_generator(experiment, split, elsewhere)
    average, optimizer = copy.deepcopy(generator).eval(), _optimizer(generator, training)
    progress = None if log is None else RunLog(log, "generator", total=training.steps)
    for step in range(training.steps):
        chance = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)
        factor = min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / training.steps)) / 2
        for group, peak in zip(optimizer.param_groups, (training.lr, training.estimate_lr), strict=True):
            group["lr"] = peak * factor
        generator.train()
        shots = (1, 1, int(torch.randint(2, 6, (1,), generator=chance)))
        loss = torch.stack([_loss(generator, split, elsewhere, k, training, chance) for k in shots]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        update_average(average, generator, training.ema, step)
        if progress is not None:
            progress.step(step + 1, loss=loss.item())
    if progress is not None:
        progress.close()
    return average.requires_grad_(False)


def _loss(
    generator: KnownClassGenerator, split: Split, elsewhere: list[Elsewhere], shots: int, training: DomainTraining,
    chance: torch.Generator,
) -> Tensor:
    """Cross entropy of queries of tasks of one lesson under generated heads."""
    place = int(torch.randint(len(elsewhere), (1,), generator=chance))
    protocol = Protocol(WAYS, shots, training.queries)
    episodes = random_known(split.lessons[place].bank, protocol, training.tasks, chance)
    logits = generator.sharpness(shots) * known_logits(generator, episodes, elsewhere[place], chance)
    return F.cross_entropy(logits.flatten(0, 1), episodes.target.repeat(training.tasks))


def known_logits(
    generator: KnownClassGenerator, episodes: KnownEpisodes, elsewhere: Elsewhere, chance: torch.Generator
) -> Tensor:
    """Logits `[B, N Q, N]` of generated heads, their noise drawn from `chance`."""
    batch, ways = episodes.classes.shape
    noise = torch.randn(batch, *generator.noise_shape(ways), generator=chance)
    heads, _, centre = generate_known(generator, episodes, elsewhere, noise)
    return baselines.logits(heads, episodes.queries - centre)


def _optimizer(generator: KnownClassGenerator, training: DomainTraining) -> torch.optim.Optimizer:
    """AdamW: the chain with decay, the numbers of the estimate without."""
    estimate = [*generator.log_deviation.parameters(), generator.moved, generator.log_sharpness]
    groups = [
        {"params": list(generator.denoiser.parameters()), "weight_decay": training.weight_decay},
        {"params": estimate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.lr)
