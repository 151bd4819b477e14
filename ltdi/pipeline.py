"""From checked tasks to checked heads: the stages between features and artefacts, for a batch of tasks."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ltdi import baselines
from ltdi.embedding import ClassStatistics, token_size
from ltdi.errors import DamagedFile, GenerationFailed, InvalidInput, LimitExceeded, UnsupportedInput
from ltdi.experts import TaskItems
from ltdi.files import all_finite, parse_json, read_safetensors
from ltdi.generator import (
    Generator,
    GeometryGenerator,
    ResidualGenerator,
    TaskBatch,
    draw_noise,
    generate_weights,
    generate_with_pool,
)
from ltdi.heads import Head, is_text, load_head
from ltdi.pool import counted
from ltdi.refine import MAX_STEPS, refine
from ltdi.support import CanonicalTask, SupportSet

MAX_FOLDS = 5
FEW_FOLDS = 2  # where tasks are not sampled as a batch, so that each fold costs as much as the head
MAX_DRAWS = 64
FALLBACKS = ("baseline", "none")
TASK_FORMAT, TASK_VERSION = "ltdi.task", "2"
TASK_TENSORS = ("tokens", "base", "counts", "hint", "noise_row")

OnStage = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """What a caller may choose for one head.

    Args:
        seed: of the noise, 0 <= seed < 2^63.
        draws: chains whose results are averaged.
        check: measure held-out accuracy on folds of the support.
        fallback: `baseline` returns the baseline where the folds say that it is clearly better; `none` never.
        refine_steps: gradient steps from the generated weights.
    """

    seed: int = 0
    draws: int = 1
    check: bool = True
    fallback: str = "baseline"
    refine_steps: int = 0

    def __post_init__(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise InvalidInput(f"seed is {self.seed!r}; it must be an integer in 0..2^63 - 1", field="seed")
        if type(self.draws) is not int:
            raise InvalidInput(f"draws is {self.draws!r}; it must be an integer", field="options/draws")
        if not 1 <= self.draws <= MAX_DRAWS:
            raise LimitExceeded(f"draws is {self.draws}; it must lie in 1..{MAX_DRAWS}", field="options/draws")
        if type(self.refine_steps) is not int or not 0 <= self.refine_steps <= MAX_STEPS:
            raise LimitExceeded(
                f"refine_steps is {self.refine_steps!r}; it must be an integer in 0..{MAX_STEPS}",
                field="options/refine_steps",
            )
        if self.fallback not in FALLBACKS:
            raise InvalidInput(
                f"fallback is {self.fallback!r}; known: {', '.join(FALLBACKS)}", field="options/fallback"
            )


@dataclass(frozen=True)
class FeatureTask:
    """A support set whose features are known.

    Args:
        support: the checked task.
        features: `[M, D]`, in canonical order.
        views: `[M, 2, D]`, mean and spread of each example's views; None for features and for bundles without views.
        names: `[N, D]`, features of the descriptions in canonical order of classes; None where there are none.
        named: `[N]`, boolean: which classes have one.
        pool: `[U, D]`, in canonical order; None where there is none.
        centre: whether the generator subtracts the mean of the items.
    """

    support: SupportSet
    features: Tensor
    views: Tensor | None = None
    names: Tensor | None = None
    named: Tensor | None = None
    pool: Tensor | None = None
    centre: bool = False

    @property
    def canonical(self) -> CanonicalTask:
        """Its canonical order."""
        return self.support.canonical

    @cached_property
    def items(self) -> TaskItems:
        """The same for generators that look at single items."""
        index = self.canonical.class_index.to(self.features.device)
        return TaskItems.of(self.features, index, self.support.ways, self.names, self.named, self.pool, self.centre)


@dataclass(frozen=True)
class TaskEmbedding:
    """A task as the chain sees it, to keep and generate from later, in canonical order.

    Args:
        tokens: `[N, C]`.
        base: `[N, D + 1]`, the baseline head.
        counts: `[N]`, examples of each class.
        hint: `[N, D + 1]`, a standardised guess at the residual; zeros for recipes without.
        noise_row: `[N]`, which row of noise each class takes.
        labels: of the canonical rows.
        rows: the labels in the order of the head's rows.
        support_digest: of the content of the task.
        bundle_digest: of the bundle that made it.
        baseline_support_accuracy: on folds of the support, or None.
    """

    tokens: Tensor
    base: Tensor
    counts: Tensor
    hint: Tensor
    noise_row: Tensor
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    support_digest: str
    bundle_digest: str
    baseline_support_accuracy: float | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What its file holds."""
        return {name: getattr(self, name) for name in TASK_TENSORS}

    def metadata(self) -> dict[str, str]:
        """The metadata of its file."""
        return {
            "format": TASK_FORMAT,
            "format_version": TASK_VERSION,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "rows": json.dumps(self.rows, ensure_ascii=False),
            "support_digest": self.support_digest,
            "bundle_digest": self.bundle_digest,
            "baseline_support_accuracy": json.dumps(self.baseline_support_accuracy),
        }

    @classmethod
    def from_bytes(cls, content: bytes) -> TaskEmbedding:
        """A task embedding from its safetensors file.

        Raises:
            DamagedFile: it is not one.
        """
        tensors, metadata = read_safetensors(content, "task embedding")
        if metadata.get("format") != TASK_FORMAT or metadata.get("format_version") != TASK_VERSION:
            raise DamagedFile(f"not a task embedding: format={metadata.get('format')!r}, expected {TASK_FORMAT!r}")
        try:
            task = cls(
                **{name: tensors[name] for name in TASK_TENSORS},
                labels=tuple(parse_json(metadata["labels"])),
                rows=tuple(parse_json(metadata["rows"])),
                support_digest=metadata["support_digest"],
                bundle_digest=metadata["bundle_digest"],
                baseline_support_accuracy=parse_json(metadata["baseline_support_accuracy"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFile(f"the task embedding is incomplete: {error}") from error
        task._check()
        return task

    def _check(self) -> None:
        ways = len(self.labels)
        integers = all(t.shape == (ways,) and t.dtype == torch.long for t in (self.counts, self.noise_row))
        floats = all(
            t.ndim == 2 and len(t) == ways and t.dtype == torch.float32 and bool((t.abs() < 1e16).all())
            for t in (self.tokens, self.base, self.hint)
        ) and self.hint.shape == self.base.shape
        texts = all(map(is_text, self.labels + self.rows))
        rows = texts and sorted(self.rows) == sorted(self.labels) and len(set(self.labels)) == ways
        if not (ways >= 2 and integers and floats and rows and self._counts_are_sane(ways)):
            raise DamagedFile("the task embedding's tensors and labels do not fit each other")
        accuracy = self.baseline_support_accuracy
        if accuracy is not None and not (isinstance(accuracy, float | int) and 0 <= accuracy <= 1):
            raise DamagedFile(f"the task embedding's baseline_support_accuracy is {accuracy!r}; it lies in 0..1 or is null")

    def _counts_are_sane(self, ways: int) -> bool:
        return bool((self.counts >= 0).all() and (self.noise_row >= 0).all() and (self.noise_row < ways).all())


@dataclass
class Timer:
    """Adds up seconds by stage and tells `on_stage` of each."""

    on_stage: OnStage | None = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.seconds[name] += elapsed
        if self.on_stage is not None:
            self.on_stage(name, elapsed)


@dataclass(frozen=True)
class _Row:
    """One member of a batch: a whole task, or the examples `kept` of it without a fold."""

    task: FeatureTask
    kept: Tensor | None = None

    @property
    def features(self) -> Tensor:
        return self.task.features if self.kept is None else self.task.features[self.kept]

    @property
    def views(self) -> Tensor | None:
        whole = self.task.views is None or self.kept is None
        return self.task.views if whole else self.task.views[self.kept]

    @property
    def class_index(self) -> Tensor:
        index = self.task.canonical.class_index
        return index if self.kept is None else index[self.kept]

    @property
    def items(self) -> TaskItems:
        return self.task.items if self.kept is None else self.task.items.kept(self.kept)


def folds(class_index: Tensor, ways: int, most: int = MAX_FOLDS, named: Tensor | None = None) -> list[Tensor]:
    """Held-out examples, at most `most` sets: `[M]` boolean masks; none where no example can be spared.

    Example j of a class is held out in fold j mod F, F = min(most, most examples of a class); the only example of a
    class is never held out, unless the class has a description, so that every class stays in every fold.

    Args:
        named: `[N]`, boolean: which classes have a description.
    """
    counts = torch.bincount(class_index, minlength=ways)
    spare = counts if named is None else counts + named.cpu()
    largest = int(counts.max()) if len(class_index) else 0
    count = min(most, max(largest, 2) if bool((spare[class_index] > 1).any()) else 0)
    if count < 2:
        return []
    starts = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(class_index)) - starts[class_index]
    alone = counts[class_index] == 1
    place = torch.where(alone, class_index, place)  # single examples take turns, class by class
    held = (place % count == torch.arange(count).unsqueeze(1)) & (spare[class_index] > 1)
    return [mask for mask, some in zip(held, held.any(1).tolist(), strict=True) if some]


@torch.inference_mode()
def generate_heads(
    generator: Generator, tasks: Sequence[FeatureTask], options: Sequence[Options], facts: dict[str, str],
    *, fallback_margin: float, timer: Timer,
) -> list[Head]:
    """A checked head for each task, those of equal ways, draws and kind of input sampled as one batch with all their folds.

    Args:
        facts: metadata that every head carries (model, bundle digest, body).
        fallback_margin: by how much the baseline must be ahead on the folds to be returned instead.

    Raises:
        GenerationFailed: weights that are not finite, or a head that does not survive its own file.
    """
    groups: dict[tuple[int, int, bool, bool], list[int]] = defaultdict(list)
    for i, (task, option) in enumerate(zip(tasks, options, strict=True)):
        groups[task.support.ways, option.draws, task.views is None, task.pool is None].append(i)
    heads: list[Head | None] = [None] * len(tasks)
    for (ways, *_), members in groups.items():
        with timer.stage("sample"):
            rows, held = _rows(generator, [tasks[i] for i in members], [options[i] for i in members])
            noise = _noise(generator, rows, [options[i] for i in _owners(members, held)], ways)
            weights, base = _sampled(generator, rows, noise, ways)
            owners = _owners(members, held)
            weights = _refined(generator, rows, [options[i].refine_steps for i in owners], weights)
        with timer.stage("check"):
            at = 0
            for i, masks in zip(members, held, strict=True):
                rows_of_task = slice(at, at + 1 + len(masks))
                at += 1 + len(masks)
                heads[i] = _finish(
                    generator, tasks[i], options[i], weights[rows_of_task], base[rows_of_task], masks,
                    facts, fallback_margin,
                )
    return heads  # type: ignore[return-value]


def _sampled(generator: Generator, rows: Sequence[_Row], noise: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """Weights and baselines of the members of a batch, `[B, ...]` and `[B, N, D + 1]`."""
    if isinstance(generator, GeometryGenerator):
        described = [generator.describe_items(row.items) for row in rows]
        made = [generator.generate_one(task, x.to(task.base)) for task, x in zip(described, noise, strict=True)]
        return torch.stack(made), torch.stack([task.base for task in described])
    if rows[0].task.pool is not None:  # one by one: pools are of different sizes
        pairs = [
            generate_with_pool(generator, statistics_of([row], ways), row.task.pool.unsqueeze(0), x.unsqueeze(0).to(row.features))
            for row, x in zip(rows, noise, strict=True)
        ]
        return torch.cat([weights for weights, _ in pairs]), torch.cat([base for _, base in pairs])
    batch = generator.describe(statistics_of(rows, ways))
    return generate_weights(generator, batch, noise.to(batch.base.device)), batch.base


def _refined(generator: Generator, rows: Sequence[_Row], steps: Sequence[int], weights: Tensor) -> Tensor:
    """Weights after each row's own steps, on the examples of the row.

    Raises:
        UnsupportedInput: steps are asked of a recipe whose heads have two layers.
    """
    if not any(steps):
        return weights
    if generator.recipe == "paper":
        raise UnsupportedInput("heads of two layers are not refined; leave it 0", field="options/refine_steps")
    made = []
    for row, count, own in zip(rows, steps, weights, strict=True):
        features = row.features if generator.normalise == "none" else row.items.examples
        made.append(refine(own, features, row.class_index.to(features.device), count))
    return torch.stack(made)


def _rows(
    generator: Generator, tasks: Sequence[FeatureTask], options: Sequence[Options]
) -> tuple[list[_Row], list[list[Tensor]]]:
    rows, held = [], []
    most = FEW_FOLDS if isinstance(generator, GeometryGenerator) else MAX_FOLDS
    for task, option in zip(tasks, options, strict=True):
        index = task.canonical.class_index
        masks = folds(index, task.support.ways, most, task.named) if option.check else []
        rows += [_Row(task), *(_Row(task, (~mask).nonzero().squeeze(1)) for mask in masks)]
        held.append(masks)
    return rows, held


def _owners(members: list[int], held: list[list[Tensor]]) -> list[int]:
    return [i for i, masks in zip(members, held, strict=True) for _ in range(1 + len(masks))]


def statistics_of(rows: Sequence[_Row], ways: int) -> ClassStatistics:
    """Statistics of the members of a batch, all of them with views or none."""
    features = [row.features for row in rows]
    index = [row.class_index + place * ways for place, row in enumerate(rows)]
    views = None if rows[0].task.views is None else torch.cat([row.views for row in rows])
    index = torch.cat(index).to(features[0].device)
    return ClassStatistics(torch.cat(features), index, len(rows), ways, views)


def _noise(generator: Generator, rows: Sequence[_Row], options: Sequence[Options], ways: int) -> Tensor:
    """x_T of each row, `[B, draws, ...]`; a task and its folds share theirs."""
    drawn: dict[tuple[int, int], Tensor] = {}
    stacked = []
    for row, option in zip(rows, options, strict=True):
        key = id(row.task), option.seed
        if key not in drawn:
            size = row.task.features.shape[-1]
            drawn[key] = canonical_noise(generator, option, ways, row.task.canonical.noise_row, size)
        stacked.append(drawn[key])
    return torch.stack(stacked)


def canonical_noise(
    generator: Generator, option: Options, ways: int, noise_row: Tensor, feature_size: int
) -> Tensor:
    """x_T of one task, `[draws, ...]`, where the recipe has rows in the order of `noise_row` `[N]`."""
    noise = draw_noise(option.seed, option.draws, generator.noise_shape(ways, feature_size))
    return noise if generator.recipe == "paper" else noise[:, noise_row]


def _finish(
    generator: Generator, task: FeatureTask, option: Options, weights: Tensor, base: Tensor, masks: list[Tensor],
    facts: dict[str, str], fallback_margin: float,
) -> Head:
    accuracy, baseline_accuracy = _fold_accuracies(generator, task, weights[1:], base[1:], masks)
    method = "generated"
    if option.fallback == "baseline" and accuracy is not None and baseline_accuracy - accuracy > fallback_margin:
        method = "baseline"
    if not all_finite(weights[0]):
        if option.fallback == "none":
            raise GenerationFailed("the generated weights hold NaN or infinity; use fallback='baseline'")
        method = "baseline"
    head = build_head(
        generator, weights[0], base[0], task.canonical.restore, task.support.classes, task.support.counts, method,
        facts | {"seed": option.seed, "support_digest": task.canonical.digest},
        accuracy, baseline_accuracy, task.items.mean if generator.normalise == "center_l2" else None,
        pool=None if task.pool is None else len(task.pool),
    )
    verify_head(head, task.features)
    return head


def build_head(
    generator: Generator, weights: Tensor, base: Tensor, restore: Tensor, classes: Sequence[str], counts: Tensor,
    method: str, facts: dict, accuracy: float | None, baseline_accuracy: float | None,
    feature_mean: Tensor | None = None, pool: int | None = None,
) -> Head:
    """A head of canonical weights, its rows put back into the caller's order; `pool` is how many items it had."""
    shots = round(float(counts.float().mean()))
    pooled = isinstance(generator, ResidualGenerator) and counted(pool or 0, len(classes)) > 0
    if method == "generated":
        layers = generator.layers(generator.reorder(weights, restore.to(weights.device)))
        name = "temperature"
    else:
        rows = base[restore.to(base.device)]
        layers = [(rows[:, :-1], rows[:, -1])]
        name = "baseline_temperature"
    temperature = generator.pool.at(shots, name) if pooled else generator.calibration.once(shots, name)
    return Head(
        [(weight.float().cpu().contiguous(), bias.float().cpu().contiguous()) for weight, bias in layers],
        classes,
        normalise=generator.normalise,
        feature_mean=None if feature_mean is None else feature_mean.float().cpu().contiguous(),
        temperature=temperature,
        metadata=facts
        | {
            "method": method,
            "support_accuracy": accuracy,
            "baseline_support_accuracy": baseline_accuracy,
            "reject_threshold": None if pooled else generator.calibration.reject_threshold(shots),
        },
    )


def _fold_accuracies(
    generator: Generator, task: FeatureTask, weights: Tensor, base: Tensor, masks: list[Tensor]
) -> tuple[float | None, float | None]:
    """Share of held-out examples that generated heads and baselines get right, over all folds."""
    if not masks:
        return None, None
    index = task.canonical.class_index
    seen = task.features if generator.normalise == "none" else task.items.examples
    features, target = seen.unsqueeze(0), index.unsqueeze(0).to(seen.device)
    held = torch.stack(masks).to(target.device)
    spread = features.expand(len(masks), -1, -1)
    right = (generator.logits(weights, spread).argmax(-1) == target) & held
    baseline_right = (baselines.logits(base, spread).argmax(-1) == target) & held
    total = int(held.sum())
    return int(right.sum()) / total, int(baseline_right.sum()) / total


def verify_head(head: Head, features: Tensor) -> None:
    """What a user would do with the file, before it is handed out.

    Raises:
        GenerationFailed: the file does not load, or its logits differ from the head's.
    """
    try:
        loaded = load_head(head.to_bytes())
    except DamagedFile as error:
        raise GenerationFailed(f"the head does not load back: {error}") from error
    features = features.float().cpu() if len(features) else torch.eye(head.feature_size)
    if not torch.equal(loaded(features), head(features)):
        raise GenerationFailed("the head that was loaded back answers differently")


@torch.inference_mode()
def embed_tasks(generator: Generator, task: FeatureTask, bundle_digest: str) -> TaskEmbedding:
    """The task embedding of one task, with its baseline's accuracy on folds."""
    rows, (masks,) = _rows(generator, [task], [Options()])
    batch = generator.describe(statistics_of(rows, task.support.ways))
    accuracy = _baseline_accuracy(task, batch.base[1:], masks)
    hint = torch.zeros_like(batch.base) if batch.hint is None else batch.hint
    order = task.canonical.class_order.tolist()
    return TaskEmbedding(
        tokens=batch.embedding[0].cpu(),
        base=batch.base[0].cpu(),
        counts=batch.counts[0].cpu(),
        hint=hint[0].cpu(),
        noise_row=task.canonical.noise_row,
        labels=tuple(task.support.classes[row] for row in order),
        rows=task.support.classes,
        support_digest=task.canonical.digest,
        bundle_digest=bundle_digest,
        baseline_support_accuracy=accuracy,
    )


def _baseline_accuracy(task: FeatureTask, base: Tensor, masks: list[Tensor]) -> float | None:
    if not masks:
        return None
    index = task.canonical.class_index.to(task.features.device)
    answers = baselines.logits(base, task.features.expand(len(masks), -1, -1)).argmax(-1)
    held = torch.stack(masks).to(index.device)
    return int(((answers == index) & held).sum()) / int(held.sum())


@torch.inference_mode()
def generate_from_embedding(
    generator: Generator, task: TaskEmbedding, option: Options, facts: dict[str, str], timer: Timer
) -> Head:
    """A head from a task embedding; it carries the baseline's support accuracy only.

    Raises:
        UnsupportedInput: the embedding is of another shape than this bundle's.
        GenerationFailed: weights that are not finite.
    """
    if isinstance(generator, GeometryGenerator):
        raise UnsupportedInput("this bundle takes no task embedding; send the task itself", field="task_embedding")
    ways = len(task.labels)
    device = generator.centre.device
    size = len(generator.centre)
    token = size if generator.recipe == "paper" else token_size(size, generator.has_views)
    if task.base.shape[1] != size + 1 or task.tokens.shape[1] != token:
        raise UnsupportedInput("the task embedding was made for features of another size", field="task_embedding")
    with timer.stage("sample"):
        noise = canonical_noise(generator, option, ways, task.noise_row, size)
        tensors = (task.tokens, task.base, task.counts, task.hint)
        batch = TaskBatch(*(tensor.unsqueeze(0).to(device) for tensor in tensors))
        weights = generate_weights(generator, batch, noise.unsqueeze(0).to(device))
    with timer.stage("check"):
        method = "generated"
        if not all_finite(weights):
            if option.fallback == "none":
                raise GenerationFailed("the generated weights hold NaN or infinity; use fallback='baseline'")
            method = "baseline"
        place = {label: at for at, label in enumerate(task.labels)}
        restore = task.noise_row[[place[label] for label in task.rows]]
        head = build_head(
            generator, weights[0], batch.base[0], restore, task.rows, task.counts, method,
            facts | {"seed": option.seed, "support_digest": task.support_digest},
            None, task.baseline_support_accuracy,
        )
        verify_head(head, task.base[:, :-1])
    return head
