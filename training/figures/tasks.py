"""The laboratory's tasks: few-shot problems on frozen features whose best heads, and the way to them, are known.

A head is one linear layer on the leading principal components of the frozen body's features. Its loss, cross
entropy of everything there is of the classes (or of the few examples) with weight decay, is strongly convex, so that
the optimum is one point and gradient descent reaches it. All is in the frame of `prepare.Frame`: centred features of
unit mean square length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi import baselines
from ltdi.codec import Standardiser
from ltdi.errors import InvalidConfig
from training.figures.bodies import Bodies
from training.prepare import (
    FitTask,
    Frame,
    PrepareConfig,
    draw_tasks,
    fit,
    select_waypoints,
    task_generator,
)

TARGETS = ("many_shot", "few_shot")
STARTS = ("own", "shared")
SHARD = 250
LABORATORIES = 8  # kept in memory; the paths of 3000 tasks are 240 MB
PART_SEEDS = {"train": 1, "val": 2, "test": 3}


@dataclass(frozen=True)
class LabConfig:
    """Which tasks, and how their heads are fitted.

    Args:
        data: which images: `omniglot`, `mini-imagenet`, or `made` for a trial without data.
        body: which body reads them, of `training.figures.bodies`.
        most: images of each class that a `many_shot` head is fitted to, the task's own among them.
        size: D, principal components of the features that heads read.
        ways, shots, queries: of a task; queries only where accuracy is measured.
        tasks, measured: trajectories to train on, and tasks to measure on.
        target: `many_shot` fits a head to every drawing of its classes, `few_shot` to the examples alone.
        start: a Gaussian start of its `own` for each task, as wide as the heads themselves, or one `shared` by all.
        steps, lr, weight_decay: of gradient descent.
        sam_radius: rho; 0 for plain gradients.
        views, noise: augmentation of what heads are fitted to: views of a drawing (1 for the drawing alone), noise on features.
        seed: of tasks and starts.
    """

    data: str = "omniglot"
    body: str = "conv4"
    most: int = 100
    size: int = 64
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 3000
    measured: int = 500
    target: str = "many_shot"
    start: str = "own"
    steps: int = 60
    lr: float = 2.0
    weight_decay: float = 0.05
    sam_radius: float = 0.0
    views: int = 1
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("target", TARGETS), ("start", STARTS)):
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name} {getattr(self, name)!r} is unknown; known: {', '.join(known)}", field=name)

    @property
    def fit(self) -> PrepareConfig:
        """The same for `training.prepare`."""
        return PrepareConfig(
            ways=self.ways, shots=self.shots, steps=self.steps, lr=self.lr, weight_decay=self.weight_decay,
            sam_radius=self.sam_radius, views=self.views, noise=self.noise, seed=self.seed, waypoints=1,
        )

    @property
    def length(self) -> int:
        """P, the weights of a head."""
        return self.ways * (self.size + 1)


@dataclass(frozen=True)
class Tasks:
    """Tasks with their optima.

    Args:
        support: `[B, N, K, D]`.
        query: `[B, N, Q, D]`, drawings that are not support.
        items: `[B, N, M, D]`, what the target is fitted to, the images themselves; none of training tasks.
        path: `[steps + 1, B, N, D + 1]`, the recorded weights, the start first.
        classes: `[B, N]`.
    """

    support: Tensor
    query: Tensor
    items: Tensor
    path: Tensor
    classes: Tensor

    @property
    def optimum(self) -> Tensor:
        """theta_0, `[B, N, D + 1]`."""
        return self.path[-1]

    def trajectory(self, waypoints: int) -> Tensor:
        """theta_0 to theta_m at equal distance along the path, `[B, m + 1, N, D + 1]`."""
        return select_waypoints(self.path, waypoints, "path")

    def accuracy(self, heads: Tensor) -> Tensor:
        """Of each head `[B, N, D + 1]` on its queries, `[B]`, in percent."""
        ways, queries = self.query.shape[1:3]
        answers = baselines.logits(heads, self.query.flatten(1, 2)).argmax(-1)
        return 100 * (answers == torch.arange(ways).repeat_interleave(queries)).float().mean(1)


class Lab:
    """Features, tasks and optima of one `LabConfig`; features are embedded once and kept.

    Args:
        bodies: where images, bodies and features are.
    """

    def __init__(self, config: LabConfig, bodies: Bodies) -> None:
        self.config, self._bodies = config, bodies

    @functools.cached_property
    def stands_on(self) -> dict[str, str]:
        """The digest of a body that is trained here; nothing of the one that ships."""
        return self._bodies.trained_digest(self.config.data, self.config.body)

    @functools.cached_property
    def train(self) -> Tasks:
        """The tasks that generators learn from, of training classes."""
        return self._tasks("train", self.config.tasks, self.bank("train"), self.codec, items=False)

    def measured(self, part: str) -> Tasks:
        """Tasks of new classes, with the optimum that plain gradients reach from the drawings themselves."""
        if self._plain is not self:
            return self._plain.measured(part)
        if part not in self._measured:
            self._measured[part] = self._tasks(part, self.config.measured, self.bank(part), self.codec)
        return self._measured[part]

    @functools.cached_property
    def _measured(self) -> dict[str, Tasks]:
        return {}

    @property
    def _plain(self) -> Lab:
        """The laboratory of the same tasks without SAM and augmentation."""
        plain = replace(self.config, sam_radius=0.0, views=1, noise=0.0)
        return self if plain == self.config else laboratory(plain, self._bodies)

    def elsewhere(self, images: str) -> Tasks:
        """Tasks of another set of images, in this laboratory's frame and units."""
        raw = self._bodies.features(self.config.data, self.config.body, images)
        frame, basis = self._frame
        return self._tasks("test", self.config.measured, frame.features(raw @ basis), self.codec)

    def tasks(self, part: str, count: int) -> Tasks:
        """`count` tasks of a part, as the config fits them."""
        return self._tasks(part, count, self.bank(part), self.codec)

    @functools.cached_property
    def codec(self) -> Standardiser:
        """Mean and standard deviation of each column of optima of training tasks, `[D + 1]` each.

        One codec for every m, so that mean squared errors are in one unit: 1 is the mean head's.
        """
        if self._plain is not self:
            return self._plain.codec
        nought = Standardiser(torch.zeros(self.config.size + 1), torch.zeros(self.config.size + 1))
        return Standardiser.fit(self._tasks("train", min(500, self.config.tasks), self.bank("train"), nought).optimum)

    def bank(self, part: str) -> Tensor:
        """Features of each drawing and its views in the laboratory's frame, `[classes, drawings, V, D]`."""
        raw = self._embedded(part)
        frame, basis = self._frame
        return frame.features(raw @ basis)

    @functools.cached_property
    def _frame(self) -> tuple[Frame, Tensor]:
        """The frame, and the leading principal directions of training features, `[F, D]`."""
        rows = self._embedded("train")[:, :, 0].flatten(0, 1)
        centred = rows - rows.mean(0)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        basis = vectors[:, -self.config.size :].flip(1)
        return Frame.of(rows @ basis), basis

    def _embedded(self, part: str) -> Tensor:
        return self._bodies.features(self.config.data, self.config.body, part, self.config.views if part == "train" else 1)

    def _tasks(self, part: str, count: int, bank: Tensor, codec: Standardiser, items: bool = True) -> Tasks:
        config, seed = self.config, self.config.seed * 10 + PART_SEEDS[part]
        shards = [range(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]
        path, parts = torch.empty(config.steps + 1, count, config.ways, config.size + 1), []
        for numbers in shards:
            found = self._shard(seed, numbers, bank, codec)
            path[:, numbers.start : numbers.stop] = found.path
            kept = found.items if items else found.items[:, :, :0]
            parts.append(replace(found, items=kept.clone(), path=found.path[:0]))
        joined = [torch.cat([getattr(p, name) for p in parts]) for name in ("support", "query", "items", "classes")]
        return Tasks(*joined[:3], path, joined[3])

    def _shard(self, seed: int, numbers: range, bank: Tensor, codec: Standardiser) -> Tasks:
        config = self.config
        generators = [task_generator(seed, number) for number in numbers]
        classes, order = draw_tasks(config.fit, bank, generators)
        items = bank[classes.unsqueeze(-1), order[..., : config.most]]
        support, query = items[:, :, : config.shots, 0], items[:, :, config.shots :, 0][:, :, : config.queries]
        fitted = items if config.target == "many_shot" else items[:, :, : config.shots]
        start = codec.decode(torch.stack([_noise(config, g) for g in generators]))
        task = FitTask(start, torch.zeros_like(start), fitted, baselines.logits, generators)
        return Tasks(support, query, fitted[:, :, :, 0], fit(config.fit, task), classes)


@functools.lru_cache(maxsize=LABORATORIES)
def laboratory(config: LabConfig, bodies: Bodies) -> Lab:
    """The same laboratory at every call, of those that were asked for last."""
    return Lab(config, bodies)


def _noise(config: LabConfig, generator: torch.Generator) -> Tensor:
    """Where a task starts, standardised."""
    own = generator if config.start == "own" else torch.Generator().manual_seed(config.seed)
    return torch.randn(config.ways, config.size + 1, generator=own)


def loss_of(config: LabConfig, tasks: Tasks) -> Callable[[Tensor], Tensor]:
    """The loss that `tasks` were fitted by, without augmentation: heads `[B, N, D + 1]` to `[B]`."""
    ways, items = tasks.items.shape[1:3]
    target = torch.arange(ways).repeat_interleave(items).expand(len(tasks.items), -1)
    features = tasks.items.flatten(1, 2)

    def loss(heads: Tensor) -> Tensor:
        answers = baselines.logits(heads, features).transpose(1, 2)
        entropy = F.cross_entropy(answers, target, reduction="none").mean(1)
        return entropy + config.weight_decay / 2 * heads.square().flatten(1).sum(1)

    return loss
