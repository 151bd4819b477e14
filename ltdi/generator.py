"""The story: support -> features -> task embedding -> x_T .. x_0 -> weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ltdi import baselines
from ltdi.codec import Layout, Standardiser
from ltdi.denoisers.class_tokens import ClassTokens, ClassTokensConfig
from ltdi.denoisers.geometry import Geometry, GeometryConfig, GeometryTask, describe
from ltdi.denoisers.unet import UNet, UNetConfig
from ltdi.embedding import ClassStatistics, embed_task, token_size
from ltdi.errors import InvalidConfig
from ltdi.estimator import MeanEstimator
from ltdi.experts import TaskItems
from ltdi.pool import PoolConfig, PoolReader, between, counted, soft_k_means
from ltdi.sampler import Observer, sample
from ltdi.schedule import Schedule, ScheduleConfig

SEVERAL_SHOTS = 1.5
VIEWS_UP_TO = 5  # examples a class; with more of them views add nothing (`DECISIONS.md`), and cost an embedding each


@dataclass(frozen=True)
class CalibrationRow:
    """What validation said for one number of examples a class.

    Args:
        shots: examples a class.
        strength: factor of the generated residual; 0 is the baseline.
        temperature, baseline_temperature: divisors of logits for probabilities.
        reject_threshold: of `Head.none_of_these`; None where none was fitted.
        familiar: the greatest `strangeness` of a task that is not given its baseline; None for no such limit.
    """

    shots: int
    strength: float
    temperature: float = 1.0
    baseline_temperature: float = 1.0
    reject_threshold: float | None = None
    familiar: float | None = None


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
        x, y = self._nodes(field)
        logs = shots.clamp_min(1).float().log()
        value = torch.full_like(logs, y[0])
        for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=True), strict=False):
            value = value + (y1 - y0) * ((logs - x0) / (x1 - x0)).clamp(0, 1)
        return value

    def once(self, shots: float, field: str) -> float:
        """`at` for a single number."""
        x, y = self._nodes(field)
        return float(np.interp(math.log(max(shots, 1)), x, y))

    def reject_threshold(self, shots: float) -> float | None:
        """Where none of the classes begins; None where it was not fitted for every row."""
        if any(row.reject_threshold is None for row in self.rows):
            return None
        return self.once(shots, "reject_threshold")

    @property
    def has_familiar(self) -> bool:
        """Whether strange tasks are given their baseline."""
        return all(row.familiar is not None for row in self.rows)

    def _nodes(self, field: str) -> tuple[list[float], list[float]]:
        return [math.log(row.shots) for row in self.rows], [float(getattr(row, field)) for row in self.rows]


class OneLayer(nn.Module):
    """What generators of heads of one layer, `[N, D + 1]`, have in common."""

    normalise = "none"

    def layers(self, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of the head's layers, of one task's weights `[N, D + 1]`, rows as given."""
        return [(weights[:, :-1], weights[:, -1])]

    def reorder(self, weights: Tensor, rows: Tensor) -> Tensor:
        """The weights `[N, D + 1]` with their class rows taken in the order of `rows` `[N]`."""
        return weights[rows]

    def logits(self, weights: Tensor, features: Tensor) -> Tensor:
        """`[B, Q, N]` of features `[B, Q, D]` under weights `[B, N, D + 1]`."""
        return baselines.logits(weights, features)


class ResidualGenerator(OneLayer):
    """The `default` recipe: a residual to the baseline, a token per class, any number of ways.

    Args:
        feature_size: D.
        codec: statistics of residuals, `[D + 1]`.
        centre, scale: `[D]`, mean and standard deviation of features over the base classes.
        view_maps: `[V, 2, 3]`, affine maps of an example image to its views; none for bodies without.
        view_share: how far the baseline's class means are moved to the mean of the views, where the task has them.
        pool: what validation said of pools; None for a generator that takes none.
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
        view_maps: Tensor | None = None,
        view_share: float = 0.0,
        pool: PoolConfig | None = None,
    ) -> None:
        super().__init__()
        self.schedule, self.view_share, self.pool = Schedule(schedule), view_share, pool
        self.register_buffer("view_maps", torch.zeros(0, 2, 3) if view_maps is None else view_maps)
        inputs = token_size(feature_size, self.has_views)
        self.denoiser = ClassTokens(denoiser, self.schedule, inputs, feature_size + 1)
        self.codec = codec
        self.calibration = calibration or Calibration()
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.register_buffer("metric", 2 * torch.eye(feature_size))
        self.from_features = MeanEstimator(feature_size, views=False)
        self.from_views = MeanEstimator(feature_size, views=True) if self.has_views else None
        self.pool_reader = None if pool is None else PoolReader(pool.rounds)

    @property
    def takes_pool(self) -> bool:
        """Whether it looks at unlabelled items."""
        return self.pool_reader is not None

    @property
    def has_views(self) -> bool:
        """Whether it looks at views of example images."""
        return len(self.view_maps) > 0

    def wants_views(self, examples: int, ways: int) -> bool:
        """Whether it looks at views of the example images of a task of this size."""
        return self.has_views and examples <= VIEWS_UP_TO * ways

    def describe(self, statistics: ClassStatistics) -> TaskBatch:
        """Tasks as the chain sees them.

        The baseline is nearest class means for tasks of one example a class; from two on (in the mean over
        classes) linear discriminant analysis with the covariance of the base classes, `metric`, fitted at export.
        The hint is the way from there to the same on estimated means of many examples.
        """
        several = statistics.counts.float().mean(1) >= SEVERAL_SHOTS
        estimate = self.from_features if statistics.view_means is None else self.from_views
        base = self._closed_form(self.shown(statistics), several)
        hint = self._closed_form(statistics.means + estimate(statistics), several) - base
        embedding = embed_task(statistics, self.centre, self.scale, self.has_views)
        return TaskBatch(embedding, base, statistics.counts, self.codec.encode(hint))

    def shown(self, statistics: ClassStatistics) -> Tensor:
        """Class means of the examples, moved to their views."""
        if not self.view_share or statistics.view_means is None:
            return statistics.means
        return torch.lerp(statistics.means, statistics.view_means, self.view_share)

    def _closed_form(self, means: Tensor, several: Tensor) -> Tensor:
        if not bool(several.any()):
            return baselines.nearest_mean(means)
        in_metric = baselines.nearest_mean_in_metric(means, self.metric)
        if bool(several.all()):
            return in_metric
        return torch.where(several[:, None, None], in_metric, baselines.nearest_mean(means))

    def noise_shape(self, ways: int, feature_size: int = 0) -> tuple[int, ...]:
        """Of x_T for one task: `(N, D + 1)`."""
        return ways, len(self.codec.scale)

    def chain(self, tasks: TaskBatch, noise: Tensor, observer: Observer | None = None) -> Tensor:
        """x_0 `[B, N, D + 1]` from x_T of the same shape; with an observer step by step, else fused.

        Matrix products on one thread give a row the same bytes from four rows on, so smaller batches are filled
        up with copies of their first task.
        """
        count, embedding, hint = len(noise), tasks.embedding, tasks.hint
        fill = -(-baselines.LEAST_ROWS // embedding.shape[1]) - count
        if fill > 0:
            noise, embedding, hint = (
                None if part is None else torch.cat([part, part[:1].expand(fill, *part.shape[1:])])
                for part in (noise, embedding, hint)
            )
        condition = self.denoiser.condition(embedding, hint)
        if observer is None:
            return self.denoiser.chain(noise, condition)[:count]
        return sample(lambda x, t: self.denoiser(x, t, condition), noise, self.schedule, observer)[:count]

    def familiar(self, tasks: TaskBatch) -> Tensor | None:
        """Which tasks are of a domain like that of the base classes, `[B]`, boolean; None where all are taken to be."""
        if not self.calibration.has_familiar:
            return None
        shots = tasks.counts.float().mean(1)
        return strangeness(tasks.embedding[..., : len(self.scale)] * self.scale) <= self.calibration.at(shots, "familiar")

    def decode(self, x: Tensor, base: Tensor, counts: Tensor) -> Tensor:
        """Heads `[B, N, D + 1]`: the base plus the residual, at the strength fitted for `counts` `[B, N]`."""
        strength = self.calibration.at(counts, "strength").to(x).unsqueeze(-1)
        return torch.addcmul(base, strength, self.codec.decode(x))


def strangeness(means: Tensor) -> Tensor:
    """The squared distance of a task's domain from that of the base classes, without bias, `[B]`.

    Means of different classes of the base domain point to all sides of its centre; those of another domain have a part
    in common, whose square is the mean of their inner products. It can be below 0.

    Args:
        means: `[B, N, D]`, class means less the mean of the base classes.
    """
    ways = means.shape[-2]
    pairs = means.sum(-2).square().sum(-1) - means.square().sum((-2, -1))
    return pairs / (ways * (ways - 1))


class GeometryGenerator(OneLayer):
    """The `geometry` recipe: closed forms of the task mixed and carried on, for any encoder.

    It takes names of classes and a pool beside examples, and sees similarities alone, but for the directions of a
    domain where the bundle knows one. Tasks go one by one: they share no size.

    Args:
        feature_size: D, for a bundle with directions.
    """

    recipe = "geometry"
    has_views = False

    @property
    def normalise(self) -> str:  # type: ignore[override]
        """What its heads do to a feature first."""
        return "center_l2" if self.denoiser.config.centre else "l2"

    def __init__(
        self, schedule: ScheduleConfig, denoiser: GeometryConfig, calibration: Calibration | None = None,
        feature_size: int = 0,
    ) -> None:
        super().__init__()
        self.schedule = Schedule(schedule)
        self.denoiser = Geometry(denoiser, self.schedule)
        self.calibration = calibration or Calibration()
        known = torch.zeros(feature_size, feature_size) if denoiser.directions else None
        self.register_buffer("directions", known)

    def wants_views(self, examples: int, ways: int) -> bool:
        """Never."""
        return False

    def noise_shape(self, ways: int, feature_size: int = 0) -> tuple[int, ...]:
        """Of x_T for one task: `(N, D + 1)`."""
        return ways, feature_size + 1

    def describe_items(self, items: TaskItems) -> GeometryTask:
        """A task as the chain sees it, in float32 on the device of its features."""
        return describe(items, self.directions)

    def chain(self, task: GeometryTask, noise: Tensor, observer: Observer | None = None) -> Tensor:
        """x_0 `[N, D + 1]` of one task, from x_T of the same shape: Eq. 1 in the form of Eq. 7."""
        if observer is not None:
            return sample(lambda x, t: self.denoiser(x, t, task), noise, self.schedule, observer)
        x = noise
        for t in range(self.schedule.steps, 0, -1):
            keep, move = self.schedule.posterior_factors[t]
            x = keep * x + move * self.denoiser.standardised_waypoint(x, t, task)
        return x

    def generate_one(self, task: GeometryTask, noise: Tensor, observer: Observer | None = None) -> Tensor:
        """The head `[N, D + 1]` of one task; the mean of x_0 over draws where there are several.

        Args:
            noise: `[draws, N, D + 1]`, x_T.
        """
        x = torch.stack([self.chain(task, one, observer) for one in noise]).mean(0)
        strength = self.calibration.at(task.items.counts, "strength").to(x).unsqueeze(-1)
        return task.base + strength * task.scale * x


class FlatGenerator(nn.Module):
    """The `paper` recipe: all weights of a two-layer head of fixed ways, as one flat vector.

    Args:
        layout: the head's sizes `(D, H, N)`.
        codec: statistics of weights along trajectories, `[P]`.
        centre, scale: as for `ResidualGenerator`.
    """

    recipe = "paper"
    normalise = "none"

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

    has_views = False

    def wants_views(self, examples: int, ways: int) -> bool:
        """Never."""
        return False

    def describe(self, statistics: ClassStatistics) -> TaskBatch:
        """Tasks as the chain sees them: standardised mean support features `[B, N, D]`.

        The baseline is nearest class means; this recipe does not build on it.
        """
        embedding = (statistics.means - self.centre) / self.scale
        return TaskBatch(embedding, baselines.nearest_mean(statistics.means), statistics.counts)

    def noise_shape(self, ways: int, feature_size: int = 0) -> tuple[int, ...]:
        """Of x_T for one task: `(P,)`."""
        return (self.layout.length,)

    def chain(self, tasks: TaskBatch, noise: Tensor, observer: Observer | None = None) -> Tensor:
        """x_0 `[B, P]` from x_T of the same shape.

        Without an observer tasks go one by one: convolutions give a task other bytes in other company.
        """
        condition = tasks.embedding.flatten(1)
        size = 1 if observer is None else len(noise)
        parts = [
            sample(lambda x, t, c=c: self.denoiser(x, t, c), x, self.schedule, observer)
            for x, c in zip(noise.split(size), condition.split(size), strict=True)
        ]
        return torch.cat(parts)

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


Generator = ResidualGenerator | FlatGenerator | GeometryGenerator
BatchGenerator = ResidualGenerator | FlatGenerator


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
        hint: `[B, N, D + 1]`, a standardised guess at the residual; None for recipes without.
    """

    embedding: Tensor
    base: Tensor
    counts: Tensor
    hint: Tensor | None = None

    def repeated(self, times: int) -> TaskBatch:
        """Each task `times` times in a row."""
        if times == 1:
            return self
        parts = (self.embedding, self.base, self.counts, self.hint)
        return TaskBatch(*(None if part is None else part.repeat_interleave(times, dim=0) for part in parts))


def generate_weights(
    generator: BatchGenerator, tasks: TaskBatch, noise: Tensor, observer: Observer | None = None
) -> Tensor:
    """Weights of each task, `[B, ...]`; the mean of x_0 over draws where there are several; the baseline for strange tasks.

    A task gets the same bytes whatever shares its batch.

    Args:
        noise: `[B, draws, ...]`, x_T.
    """
    weights = _decoded(generator, tasks, noise, observer)
    return _or_baseline(generator, tasks, weights, tasks.base) if isinstance(generator, ResidualGenerator) else weights


def generate_with_pool(
    generator: ResidualGenerator, statistics: ClassStatistics, pool: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights of tasks with a pool, and their baselines, `[B, N, D + 1]` each; the baseline for strange tasks.

    A head is generated without the pool; the pool is read, led by its answers; the generator is asked again with what was found among
    the examples; and that head is mixed with the one of the class means that reading gave. A small pool counts in part, or not at all.

    Args:
        statistics: of the examples.
        pool: `[B, U, D]`.
        noise: `[B, draws, N, D + 1]`, x_T, the same for both heads.
    """
    config, metric = generator.pool, generator.metric
    tasks, shown, shots = generator.describe(statistics), generator.shown(statistics), statistics.counts.float().mean(1)
    weight, worth, share = (
        between(pool.new_tensor(values), shots) for values in (config.item_weight, config.item_worth, config.share)
    )
    plain, counts = _decoded(generator, tasks, noise), counted(pool.shape[1], shown.shape[1])
    if not counts:
        return _or_baseline(generator, tasks, plain, tasks.base), tasks.base
    base = baselines.nearest_mean_in_metric(soft_k_means(shown, statistics.counts, pool, metric, config), metric)
    leading = baselines.logits(plain, pool)
    answers, means = generator.pool_reader(shown, statistics.counts, pool, metric, leading)
    again = _decoded(generator, generator.describe(statistics.with_pool(pool, answers, weight, worth)), noise)
    weights = torch.lerp(baselines.nearest_mean_in_metric(means, metric), again, share.view(-1, 1, 1))
    if counts < 1:
        weights, base = torch.lerp(plain, weights, counts), torch.lerp(tasks.base, base, counts)
    return _or_baseline(generator, tasks, weights, base), base


def _decoded(
    generator: BatchGenerator, tasks: TaskBatch, noise: Tensor, observer: Observer | None = None
) -> Tensor:
    draws = noise.shape[1]
    x = generator.chain(tasks.repeated(draws), noise.flatten(0, 1), observer)
    x = x if draws == 1 else x.unflatten(0, (-1, draws)).mean(1)
    return generator.decode(x, tasks.base, tasks.counts)


def _or_baseline(generator: ResidualGenerator, tasks: TaskBatch, weights: Tensor, base: Tensor) -> Tensor:
    familiar = generator.familiar(tasks)
    return weights if familiar is None else torch.where(familiar[:, None, None], weights, base)
