"""The generator for classes that are known from other domains: a residual to the mixture of what they look like there and here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi import baselines
from ltdi.codec import Standardiser
from ltdi.denoisers.class_tokens import ClassTokens
from ltdi.generator import ResidualGenerator, TaskBatch
from training.comparators import shrunk_metric
from training.configs.domains import DomainExperiment
from training.domains.episodes import Known, KnownEpisodes, Problem, known_means, shown, task_centre
from training.domains.modes import common, fitted

FACTS = 6  # of a class in a token
PRECISION_SHRINK = 0.7
START = {"virtual": 0.05, "length": 0.12}  # standard deviations of modes, before training
START_MOVED = (0.95, 0.85)
SHARPNESS = 3.3  # of logits in the metric, about where the baseline's cross entropy is least


@dataclass(frozen=True)
class Elsewhere:
    """What other domains say of a task's classes, prepared once for a body.

    Args:
        known: of the body's domains.
        metric: `[D, D]`, of the heads' LDA.
        modes: by kind `[R, classes, D]`: moves in `virtual` domains, and the `length` of the means.
        weighed: the same times the precision of an example about its class's mean.
    """

    known: Known
    metric: Tensor
    modes: dict[str, Tensor]
    weighed: dict[str, Tensor]

    @classmethod
    def of(cls, problem: Problem, shrink: float) -> Elsewhere:
        """For the tasks of a problem."""
        known = problem.known
        modes = {"virtual": problem.virtual, "length": common(known).unsqueeze(0)}
        precision = shrunk_metric(known.within, PRECISION_SHRINK) / (2 * known.within.diagonal().mean())
        weighed = {kind: own @ precision for kind, own in modes.items()}
        return cls(known, shrunk_metric(known.across, shrink), modes, weighed)


class KnownClassGenerator(ResidualGenerator):
    """A residual to LDA on means between examples and known ones.

    Chain, noise and decoding are those of the `default` recipe. The hint is the same LDA on estimated means: known means moved
    along what virtual domains do to the whole configuration of classes, as far as the examples of all classes together say, then towards the class's own examples. How far each kind of mode may go is learned.

    Args:
        codec: statistics of residuals, `[D + 1]`.
    """

    def __init__(self, experiment: DomainExperiment, codec: Standardiser) -> None:
        size = len(codec.scale) - 1
        super().__init__(size, experiment.schedule, experiment.denoiser, codec, torch.zeros(size), torch.ones(size))
        self.experiment = experiment
        self.denoiser = ClassTokens(experiment.denoiser, self.schedule, FACTS, size + 1)
        self.from_features = None
        self.log_deviation = nn.ParameterDict({k: nn.Parameter(torch.tensor(v).log()) for k, v in START.items()})
        self.moved = nn.Parameter(torch.tensor(START_MOVED).logit())
        self.log_sharpness = nn.Parameter(torch.full((2,), math.log(SHARPNESS)))

    def describe_known(self, episodes: KnownEpisodes, elsewhere: Elsewhere) -> tuple[TaskBatch, Tensor]:
        """Tasks as the chain sees them, and the means `[B, 1, D]` that queries are taken less of."""
        examples = shown(episodes, self.experiment.view_share)
        centre, shots = task_centre(examples), examples.shape[2]
        here, there = examples.mean(2) - centre, known_means(episodes, elsewhere.known)
        start, end = self.experiment.moved
        base_means = torch.lerp(here, there, start + (end - start) * along(shots))
        first, last = self.moved.sigmoid().unbind()
        estimate = fitted(there, here, self._scaled(episodes, elsewhere.modes), self._scaled(episodes, elsewhere.weighed), shots)
        means = torch.lerp(here, estimate, first + (last - first) * along(shots))
        base = baselines.nearest_mean_in_metric(base_means, elsewhere.metric)
        hint = baselines.nearest_mean_in_metric(means, elsewhere.metric) - base
        counts = torch.full(here.shape[:2], shots)
        token = _facts(here, there, means, elsewhere.metric, shots)
        return TaskBatch(token, base, counts, self.codec.encode(hint)), centre

    def _scaled(self, episodes: KnownEpisodes, modes: dict[str, Tensor]) -> Tensor:
        """`[B, R, N, D]`, of the task's classes, times their learned standard deviations."""
        scaled = [self.log_deviation[kind].exp() * own for kind, own in modes.items()]
        return torch.cat(scaled)[:, episodes.classes].transpose(0, 1)

    def sharpness(self, shots: int) -> Tensor:
        """The factor of logits in the loss."""
        first, last = self.log_sharpness.unbind()
        return (first + (last - first) * along(shots)).exp()


def along(shots: int) -> float:
    """0 at one example a class, 1 from five on; between, by the logarithm."""
    return min(math.log(shots) / math.log(5), 1.0)


def generate_known(
    generator: KnownClassGenerator, episodes: KnownEpisodes, elsewhere: Elsewhere, noise: Tensor
) -> tuple[Tensor, TaskBatch, Tensor]:
    """Heads `[B, N, D + 1]` from noise of that shape, for queries less the centre `[B, 1, D]`; the tasks they were made of."""
    tasks, centre = generator.describe_known(episodes, elsewhere)
    return generator.decode(generator.chain(tasks, noise), tasks.base, tasks.counts), tasks, centre


def _facts(here: Tensor, there: Tensor, means: Tensor, metric: Tensor, shots: int) -> Tensor:
    """A token per class, `[B, N, FACTS]`: lengths and angles in the metric, and how many examples there are."""
    told, found = there @ metric, means @ metric
    products = [(here * told).sum(-1), (there * told).sum(-1), (means * found).sum(-1), (here * found).sum(-1)]
    numbers = [torch.asinh(one) for one in products]
    return torch.stack([*numbers, torch.full_like(numbers[0], 1 / shots), torch.full_like(numbers[0], along(shots))], dim=-1)
