"""The story: support -> features -> task embedding -> x_T .. x_0 -> weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdi import baselines
from ltdi.codec import Layout, Standardiser
from ltdi.denoisers.class_tokens import ClassTokens, ClassTokensConfig
from ltdi.denoisers.unet import UNet, UNetConfig
from ltdi.embedding import ClassStatistics, embed_task, token_size
from ltdi.errors import InvalidConfig
from ltdi.sampler import Observer, sample
from ltdi.schedule import Schedule, ScheduleConfig

SEVERAL_SHOTS = 1.5


@dataclass(frozen=True)
class CalibrationRow:
    """What validation said for one number of examples a class.

    Args:
        shots: examples a class.
        strength: factor of the generated residual; 0 is the baseline.
        temperature, baseline_temperature: divisors of logits for probabilities.
    """

    shots: int
    strength: float
    temperature: float = 1.0
    baseline_temperature: float = 1.0


@dataclass(frozen=True)
class Calibration:
    """Rows by ascending shots, interpolated in the logarithm of shots, constant beyond the ends."""

    rows: tuple[CalibrationRow, ...] = (CalibrationRow(1, 1.0),)

    def __post_init__(self) -> None:
        shots = [row.shots for row in self.rows]
        if not shots or shots[0] < 1 or sorted(set(shots)) != shots:
            raise InvalidConfig(f"calibration is for shots {shots}; give rows of ascending shots from 1 on")
        for row in self.rows:
            temperatures = (row.temperature, row.baseline_temperature)
            if not math.isfinite(row.strength) or not all(0 < t < math.inf for t in temperatures):
                raise InvalidConfig(f"calibration {row} needs a finite strength and finite temperatures above 0")

    def at(self, shots: Tensor, field: str) -> Tensor:
        """`field` of the rows at `shots` (any shape, at least 1), float32."""
        x = [math.log(row.shots) for row in self.rows]
        y = [float(getattr(row, field)) for row in self.rows]
        logs = shots.clamp_min(1).float().log()
        value = torch.full_like(logs, y[0])
        for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=True), strict=False):
            value = value + (y1 - y0) * ((logs - x0) / (x1 - x0)).clamp(0, 1)
        return value


class ResidualGenerator(nn.Module):
    """The `default` recipe: a residual to the baseline, a token per class, any number of ways.

    Args:
        feature_size: D.
        codec: statistics of residuals, `[D + 1]`.
        centre, scale: `[D]`, mean and standard deviation of features over the base classes.
    """

    recipe = "default"

    def __init__(
        self,
        feature_size: int,
        schedule: ScheduleConfig,
        denoiser: ClassTokensConfig,
        codec: Standardiser,
        centre: Tensor,
        scale: Tensor,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        self.schedule = Schedule(schedule)
        self.denoiser = ClassTokens(denoiser, self.schedule, token_size(feature_size), feature_size + 1)
        self.codec = codec
        self.calibration = calibration or Calibration()
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.register_buffer("metric", 2 * torch.eye(feature_size))

    def base(self, statistics: ClassStatistics) -> Tensor:
        """The baseline heads `[B, N, D + 1]`.

        Nearest class means for tasks of one example a class; from two on (in the mean over classes) linear
        discriminant analysis with the covariance of the base classes, `metric`, fitted at export.
        """
        euclidean = baselines.nearest_mean(statistics.means)
        several = statistics.counts.float().mean(1) >= SEVERAL_SHOTS
        if not bool(several.any()):
            return euclidean
        in_metric = baselines.nearest_mean_in_metric(statistics.means, self.metric)
        return torch.where(several[:, None, None], in_metric, euclidean)

    def noise_shape(self, ways: int) -> tuple[int, ...]:
        """Of x_T for one task: `(N, D + 1)`."""
        return ways, len(self.codec.scale)

    def rows_per_task(self, ways: int) -> int:
        """Rows of a task in the chain's matrix products."""
        return ways

    def embed_task(self, statistics: ClassStatistics) -> Tensor:
        """`[B, N, C]`, a token per class."""
        return embed_task(statistics, self.centre, self.scale)

    def chain(self, task: Tensor, noise: Tensor, observer: Observer | None = None) -> Tensor:
        """x_0 `[B, N, D + 1]` from x_T of the same shape and the task embedding `[B, N, C]`."""
        condition = self.denoiser.condition(task)
        return sample(lambda x, t: self.denoiser(x, t, condition), noise, self.schedule, observer)

    def decode(self, x: Tensor, base: Tensor, counts: Tensor) -> Tensor:
        """Heads `[B, N, D + 1]`: the base plus the residual, at the strength fitted for `counts` `[B, N]`."""
        strength = self.calibration.at(counts, "strength").to(x).unsqueeze(-1)
        return torch.addcmul(base, strength, self.codec.decode(x))

    def layers(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of the head's layers, of one task's weights `[N, D + 1]`, rows as given."""
        return [(weights[:, :-1], weights[:, -1])]

    def reorder(self, weights: Tensor, rows: Tensor) -> Tensor:
        """The weights `[N, D + 1]` with their class rows taken in the order of `rows` `[N]`."""
        return weights[rows]

    def logits(self, weights: Tensor, features: Tensor) -> Tensor:
        """`[B, Q, N]` of features `[B, Q, D]` under weights `[B, N, D + 1]`."""
        return baselines.logits(weights, features)


class FlatGenerator(nn.Module):
    """The `paper` recipe: all weights of a two-layer head of fixed ways, as one flat vector.

    Args:
        layout: the head's sizes `(D, H, N)`.
        codec: statistics of weights along trajectories, `[P]`.
        centre, scale: as for `ResidualGenerator`.
    """

    recipe = "paper"

    def __init__(
        self,
        layout: Layout,
        schedule: ScheduleConfig,
        denoiser: UNetConfig,
        codec: Standardiser,
        centre: Tensor,
        scale: Tensor,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.ways = layout, layout.sizes[-1]
        self.schedule = Schedule(schedule)
        self.denoiser = UNet(denoiser, self.schedule, self.ways * layout.sizes[0], layout.length)
        self.codec = codec
        self.calibration = calibration or Calibration()
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def base(self, statistics: ClassStatistics) -> Tensor:
        """The baseline heads `[B, N, D + 1]`: nearest class means; this recipe does not build on them."""
        return baselines.nearest_mean(statistics.means)

    def noise_shape(self, ways: int) -> tuple[int, ...]:
        """Of x_T for one task: `(P,)`."""
        return (self.layout.length,)

    def rows_per_task(self, ways: int) -> int:
        """Rows of a task in the chain's matrix products."""
        return 1

    def embed_task(self, statistics: ClassStatistics) -> Tensor:
        """`[B, N, D]`: the mean support feature of each class, standardised."""
        return (statistics.means - self.centre) / self.scale

    def chain(self, task: Tensor, noise: Tensor, observer: Observer | None = None) -> Tensor:
        """x_0 `[B, P]` from x_T of the same shape and the task embedding `[B, N, D]`."""
        condition = task.flatten(1)
        return sample(lambda x, t: self.denoiser(x, t, condition), noise, self.schedule, observer)

    def decode(self, x: Tensor, base: Tensor, counts: Tensor) -> Tensor:
        """Weights `[B, P]`; this recipe builds on no baseline."""
        return self.codec.decode(x)

    def layers(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of the head's two layers, of one task's weights `[P]`."""
        return self.layout.split(weights)

    def reorder(self, weights: Tensor, rows: Tensor) -> Tensor:
        """The weights `[P]` with the rows of the last layer taken in the order of `rows` `[N]`."""
        *hidden, (weight, bias) = self.layout.split(weights)
        return self.layout.join([*hidden, (weight[rows], bias[rows])])

    def logits(self, weights: Tensor, features: Tensor) -> Tensor:
        """`[B, Q, N]` of features `[B, Q, D]` under weights `[B, P]`."""
        return self.layout.logits(weights, features)


Generator = ResidualGenerator | FlatGenerator


def draw_noise(seed: int, draws: int, shape: Sequence[int]) -> Tensor:
    """x_T of one task, `[draws, ...]`, standard normal; the same on every device."""
    return torch.randn(draws, *shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class TaskBatch:
    """Tasks of equal ways, ready for the chain.

    Args:
        embedding: `[B, N, C]`.
        base: `[B, N, D + 1]`, the baseline heads.
        counts: `[B, N]`, examples of each class.
        noise: `[B, draws, ...]`, x_T.
    """

    embedding: Tensor
    base: Tensor
    counts: Tensor
    noise: Tensor


def describe(generator: Generator, statistics: ClassStatistics) -> tuple[Tensor, Tensor]:
    """The task embedding `[B, N, C]` and the baseline heads `[B, N, D + 1]` of a batch."""
    return generator.embed_task(statistics), generator.base(statistics)


def generate_weights(generator: Generator, batch: TaskBatch, observer: Observer | None = None) -> Tensor:
    """Weights of each task, `[B, ...]`; the mean of x_0 over draws where there are several.

    A task gets the same bytes whatever shares its batch. Matrix products on one thread give a row the same
    bytes from four rows on, so smaller batches are filled up with copies of their first task.
    """
    draws = batch.noise.shape[1]
    x, task = batch.noise.flatten(0, 1), batch.embedding
    task = task if draws == 1 else task.repeat_interleave(draws, dim=0)
    count = len(x)
    fill = -(-baselines.LEAST_ROWS // generator.rows_per_task(task.shape[1])) - count
    if fill > 0:
        x, task = (torch.cat([part, part[:1].expand(fill, *part.shape[1:])]) for part in (x, task))
    x = generator.chain(task, x, observer)[:count]
    x = x if draws == 1 else x.unflatten(0, (-1, draws)).mean(1)
    return generator.decode(x, batch.base, batch.counts)
