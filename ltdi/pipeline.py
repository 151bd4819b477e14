"""From checked tasks to checked heads: the stages between features and artefacts, for a batch of tasks."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ltdi import baselines
from ltdi.embedding import ClassStatistics, token_size
from ltdi.errors import DamagedFile, GenerationFailed, InvalidInput, LimitExceeded, UnsupportedInput
from ltdi.files import parse_json, read_safetensors
from ltdi.generator import Generator, TaskBatch, describe, draw_noise, generate_weights
from ltdi.heads import Head, is_text, load_head
from ltdi.support import CanonicalTask, SupportSet

MAX_FOLDS = 5
MAX_DRAWS = 64
FALLBACKS = ("baseline", "none")
TASK_FORMAT = "ltdi.task"

OnStage = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """What a caller may choose for one head.

    Args:
        seed: of the noise, 0 <= seed < 2^63.
        draws: chains whose results are averaged.
        check: measure held-out accuracy on folds of the support.
        fallback: `baseline` returns the baseline where the folds say that it is clearly better; `none` never.
    """

    seed: int = 0
    draws: int = 1
    check: bool = True
    fallback: str = "baseline"

    def __post_init__(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise InvalidInput(f"seed is {self.seed!r}; it must be an integer in 0..2^63 - 1", field="seed")
        if type(self.draws) is not int:
            raise InvalidInput(f"draws is {self.draws!r}; it must be an integer", field="options/draws")
        if not 1 <= self.draws <= MAX_DRAWS:
            raise LimitExceeded(f"draws is {self.draws}; it must lie in 1..{MAX_DRAWS}", field="options/draws")
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
    """

    support: SupportSet
    features: Tensor

    @property
    def canonical(self) -> CanonicalTask:
        """Its canonical order."""
        return self.support.canonical


@dataclass(frozen=True)
class TaskEmbedding:
    """A task as the chain sees it, to keep and generate from later, in canonical order.

    Args:
        tokens: `[N, C]`.
        base: `[N, D + 1]`, the baseline head.
        counts: `[N]`, examples of each class.
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
    noise_row: Tensor
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    support_digest: str
    bundle_digest: str
    baseline_support_accuracy: float | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What its file holds."""
        return {"tokens": self.tokens, "base": self.base, "counts": self.counts, "noise_row": self.noise_row}

    def metadata(self) -> dict[str, str]:
        """The metadata of its file."""
        return {
            "format": TASK_FORMAT,
            "format_version": "1",
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
        if metadata.get("format") != TASK_FORMAT or metadata.get("format_version") != "1":
            raise DamagedFile(f"not a task embedding: format={metadata.get('format')!r}, expected {TASK_FORMAT!r}")
        try:
            task = cls(
                **{name: tensors[name] for name in ("tokens", "base", "counts", "noise_row")},
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
            for t in (self.tokens, self.base)
        )
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
    """One member of a batch: a whole task or what remains of it without a fold."""

    task: FeatureTask
    kept: Tensor | None = None

    @property
    def features(self) -> Tensor:
        return self.task.features if self.kept is None else self.task.features[self.kept]

    @property
    def class_index(self) -> Tensor:
        index = self.task.canonical.class_index
        return index if self.kept is None else index[self.kept]


def folds(class_index: Tensor, ways: int) -> list[Tensor]:
    """Held-out examples, at most five sets: `[M]` boolean masks; none where no class has two examples.

    Example j of a class is held out in fold j mod F, F = min(5, most examples of a class); a class
    with a single example is never held out, so that every class stays in every fold.
    """
    counts = torch.bincount(class_index, minlength=ways)
    count = min(MAX_FOLDS, int(counts.max()) if len(class_index) else 0)
    if count < 2:
        return []
    starts = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(class_index)) - starts[class_index]
    held = [(place % count == fold) & (counts[class_index] > 1) for fold in range(count)]
    return [mask for mask in held if mask.any()]


@torch.inference_mode()
def generate_heads(
    generator: Generator, tasks: Sequence[FeatureTask], options: Sequence[Options], facts: dict[str, str],
    *, fallback_margin: float, timer: Timer,
) -> list[Head]:
    """A checked head for each task, those of equal ways and draws sampled as one batch with all their folds.

    Args:
        facts: metadata that every head carries (model, bundle digest, body).
        fallback_margin: by how much the baseline must be ahead on the folds to be returned instead.

    Raises:
        GenerationFailed: weights that are not finite, or a head that does not survive its own file.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (task, option) in enumerate(zip(tasks, options, strict=True)):
        groups[task.support.ways, option.draws].append(i)
    heads: list[Head | None] = [None] * len(tasks)
    for (ways, _), members in groups.items():
        with timer.stage("sample"):
            rows, held = _rows([tasks[i] for i in members], [options[i] for i in members])
            batch = _batch(generator, rows, [options[i] for i, r in zip(_owners(members, held), rows, strict=True)], ways)
            weights = generate_weights(generator, batch)
        with timer.stage("check"):
            at = 0
            for i, masks in zip(members, held, strict=True):
                rows_of_task = slice(at, at + 1 + len(masks))
                at += 1 + len(masks)
                heads[i] = _finish(
                    generator, tasks[i], options[i], weights[rows_of_task], batch.base[rows_of_task], masks,
                    facts, fallback_margin,
                )
    return heads  # type: ignore[return-value]


def _rows(tasks: Sequence[FeatureTask], options: Sequence[Options]) -> tuple[list[_Row], list[list[Tensor]]]:
    rows, held = [], []
    for task, option in zip(tasks, options, strict=True):
        masks = folds(task.canonical.class_index, task.support.ways) if option.check else []
        rows += [_Row(task), *(_Row(task, ~mask) for mask in masks)]
        held.append(masks)
    return rows, held


def _owners(members: list[int], held: list[list[Tensor]]) -> list[int]:
    return [i for i, masks in zip(members, held, strict=True) for _ in range(1 + len(masks))]


def statistics_of(rows: Sequence[tuple[Tensor, Tensor]], ways: int) -> ClassStatistics:
    """Statistics of tasks given as features `[M, D]` and ascending class index `[M]`."""
    features = torch.cat([features for features, _ in rows]) if len(rows) > 1 else rows[0][0]
    index = torch.cat([index + place * ways for place, (_, index) in enumerate(rows)])
    return ClassStatistics(features, index.to(features.device), len(rows), ways)


def _batch(generator: Generator, rows: Sequence[_Row], options: Sequence[Options], ways: int) -> TaskBatch:
    statistics = statistics_of([(row.features, row.class_index) for row in rows], ways)
    embedding, base = describe(generator, statistics)
    noise: dict[tuple[int, int], Tensor] = {}
    per_class = generator.recipe == "default"
    stacked = []
    for row, option in zip(rows, options, strict=True):
        key = id(row.task), option.seed
        if key not in noise:
            drawn = draw_noise(option.seed, option.draws, generator.noise_shape(ways))
            noise[key] = drawn[:, row.task.canonical.noise_row] if per_class else drawn
        stacked.append(noise[key])
    return TaskBatch(embedding, base, statistics.counts, torch.stack(stacked).to(embedding.device))


def _finish(
    generator: Generator, task: FeatureTask, option: Options, weights: Tensor, base: Tensor, masks: list[Tensor],
    facts: dict[str, str], fallback_margin: float,
) -> Head:
    accuracy, baseline_accuracy = _fold_accuracies(generator, task, weights[1:], base[1:], masks)
    method = "generated"
    if option.fallback == "baseline" and accuracy is not None and baseline_accuracy - accuracy > fallback_margin:
        method = "baseline"
    if not torch.isfinite(weights[0]).all():
        if option.fallback == "none":
            raise GenerationFailed("the generated weights hold NaN or infinity; use fallback='baseline'")
        method = "baseline"
    head = build_head(
        generator, weights[0], base[0], task.canonical.restore, task.support.classes, task.support.counts, method,
        facts | {"seed": option.seed, "support_digest": task.canonical.digest},
        accuracy, baseline_accuracy,
    )
    verify_head(head, task.features)
    return head


def build_head(
    generator: Generator, weights: Tensor, base: Tensor, restore: Tensor, classes: Sequence[str], counts: Tensor,
    method: str, facts: dict, accuracy: float | None, baseline_accuracy: float | None,
) -> Head:
    """A head of canonical weights, its rows put back into the caller's order."""
    shots = counts.float().mean().round()
    if method == "generated":
        layers = generator.layers(generator.reorder(weights, restore.to(weights.device)))
        temperature = generator.calibration.at(shots, "temperature")
    else:
        rows = base[restore.to(base.device)]
        layers = [(rows[:, :-1], rows[:, -1])]
        temperature = generator.calibration.at(shots, "baseline_temperature")
    return Head(
        [(weight.float().cpu().contiguous(), bias.float().cpu().contiguous()) for weight, bias in layers],
        classes,
        temperature=float(temperature),
        metadata=facts
        | {
            "method": method,
            "support_accuracy": accuracy,
            "baseline_support_accuracy": baseline_accuracy,
            "reject_threshold": None,
        },
    )


def _fold_accuracies(
    generator: Generator, task: FeatureTask, weights: Tensor, base: Tensor, masks: list[Tensor]
) -> tuple[float | None, float | None]:
    """Share of held-out examples that generated heads and baselines get right, over all folds."""
    if not masks:
        return None, None
    index = task.canonical.class_index
    features, target = task.features.unsqueeze(0), index.unsqueeze(0).to(task.features.device)
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
    features = features.float().cpu()
    if not torch.equal(loaded(features), head(features)):
        raise GenerationFailed("the head that was loaded back answers differently")


@torch.inference_mode()
def embed_tasks(generator: Generator, task: FeatureTask, bundle_digest: str) -> TaskEmbedding:
    """The task embedding of one task, with its baseline's accuracy on folds."""
    masks = folds(task.canonical.class_index, task.support.ways)
    rows = [_Row(task), *(_Row(task, ~mask) for mask in masks)]
    statistics = statistics_of([(row.features, row.class_index) for row in rows], task.support.ways)
    tokens, base = describe(generator, statistics)
    accuracy = _baseline_accuracy(task, base[1:], masks)
    order = task.canonical.class_order.tolist()
    return TaskEmbedding(
        tokens=tokens[0].cpu(),
        base=base[0].cpu(),
        counts=statistics.counts[0].cpu(),
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
    ways = len(task.labels)
    shape = generator.noise_shape(ways)
    device = generator.centre.device
    size = len(generator.centre)
    token = size if generator.recipe == "paper" else token_size(size)
    if task.base.shape[1] != size + 1 or task.tokens.shape[1] != token:
        raise UnsupportedInput("the task embedding was made for features of another size", field="task_embedding")
    with timer.stage("sample"):
        noise = draw_noise(option.seed, option.draws, shape)
        if generator.recipe == "default":
            noise = noise[:, task.noise_row]
        batch = TaskBatch(
            task.tokens.unsqueeze(0).to(device), task.base.unsqueeze(0).to(device),
            task.counts.unsqueeze(0).to(device), noise.unsqueeze(0).to(device),
        )
        weights = generate_weights(generator, batch)
    with timer.stage("check"):
        method = "generated"
        if not torch.isfinite(weights).all():
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
