"""The generator for classes that are known from other domains: a residual to the mixture of what they look like there and here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi import baselines
from ltdi.codec import Standardiser
from ltdi.denoisers.class_tokens import ClassTokens, ClassTokensConfig
from ltdi.generator import ResidualGenerator, TaskBatch
from ltdi.schedule import ScheduleConfig
from training.comparators import shrunk_metric
from training.domains.comparators import known_means, shown, task_centre
from training.domains.episodes import Known, KnownEpisodes

EXTRAS = 6  # of a token: two shares of counts, lengths of both means, their inner product, and the views' presence


@dataclass(frozen=True)
class BaseSettings:
    """The closed form that the generator begins with.

    Args:
        one, five: how far class means of one and of five examples are moved towards the known ones; between, by the logarithm.
        shrink: of the covariance within classes, domains' own part of it included.
        share: of the views.
    """

    one: float = 0.75
    five: float = 0.45
    shrink: float = 0.6
    share: float = 0.5

    def weight(self, shots: int) -> float:
        """At `shots` examples a class."""
        along = min(float(torch.tensor(float(shots)).log() / torch.tensor(5.0).log()), 1.0)
        return self.one + (self.five - self.one) * along


class KnownClassGenerator(ResidualGenerator):
    """A residual to LDA on means between examples and known ones; its chain, head and noise are those of the `default` recipe.

    Args:
        size: D.
        scale: `[D]`, standard deviation of features about the task's mean.
        codec: statistics of residuals, `[D + 1]`.
    """

    def __init__(
        self, size: int, schedule: ScheduleConfig, denoiser: ClassTokensConfig, base: BaseSettings, codec: Standardiser,
        scale: Tensor,
    ) -> None:
        super().__init__(size, schedule, denoiser, codec, torch.zeros(size), scale)
        self.base = base
        self.denoiser = ClassTokens(denoiser, self.schedule, 4 * size + EXTRAS, size + 1)
        self.from_features = None
        self.estimate = nn.Linear(3 * size, size)
        nn.init.zeros_(self.estimate.weight)
        nn.init.zeros_(self.estimate.bias)

    def describe_known(self, episodes: KnownEpisodes, metric: Tensor, known: Known) -> tuple[TaskBatch, Tensor]:
        """Tasks as the chain sees them, and the means `[B, 1, D]` that queries are taken less of."""
        examples = shown(episodes, self.base.share)
        centre = task_centre(examples)
        here, there = examples.mean(2) - centre, known_means(episodes, known)
        views = torch.zeros_like(here) if episodes.views is None else episodes.views.mean(2)[..., 0, :] - examples.mean(2)
        spread = torch.zeros_like(here) if episodes.views is None else episodes.views.mean(2)[..., 1, :]
        shots = examples.shape[2]
        means = torch.lerp(here, there, self.base.weight(shots))
        way = self.estimate(torch.cat([here, views, there], dim=-1))
        way = way - way.mean(1, keepdim=True)
        base = baselines.nearest_mean_in_metric(means, metric)
        hint = baselines.nearest_mean_in_metric(means + way, metric) - base
        counts = torch.full(here.shape[:2], shots)
        lengths = [part.square().sum(-1, keepdim=True).sqrt() / 4 for part in (here, there)]
        angle = (here * there).sum(-1, keepdim=True) / 16
        ones = torch.ones_like(angle)
        token = torch.cat(
            [here / self.scale, there / self.scale, views / self.scale, spread / self.scale, *lengths, angle,
             ones / shots, ones * counts[..., None].log() / 3, ones * (episodes.views is not None)], dim=-1,
        )
        return TaskBatch(token, base, counts, self.codec.encode(hint)), centre

    def heads(self, episodes: KnownEpisodes, metric: Tensor, known: Known, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Generated and base heads `[B, N, D + 1]`, and the centre, from noise `[B, N, D + 1]`."""
        tasks, centre = self.describe_known(episodes, metric, known)
        return self.decode(self.chain(tasks, noise), tasks.base, tasks.counts), tasks.base, centre


def metric_of(known: Known, base: BaseSettings) -> Tensor:
    """The metric of the base, `[D, D]`."""
    return shrunk_metric(known.across, base.shrink)
