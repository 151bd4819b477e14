"""A bundle: a trained generator with its body, as a folder that is checked whenever it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ltdi.bodies.features import MAX_FEATURE
from ltdi.bodies.loader import Body, BodyConfig, TextBody, build_body
from ltdi.codec import Layout, Standardiser
from ltdi.config import from_json, to_json
from ltdi.denoisers.class_tokens import ClassTokensConfig
from ltdi.denoisers.geometry import GeometryConfig
from ltdi.denoisers.unet import UNetConfig
from ltdi.errors import (
    BundleNotFound,
    DamagedFile,
    EmbedderFailed,
    InvalidConfig,
    InvalidFeatures,
    InvalidInput,
    InvalidSupport,
    LimitExceeded,
    UnsupportedInput,
)
from ltdi.files import digest, parse_json, read_safetensors, write_bytes, write_json, write_safetensors
from ltdi.generator import Calibration, FlatGenerator, Generator, GeometryGenerator, ResidualGenerator
from ltdi.heads import Head
from ltdi.images import prepare_images, prepare_photos
from ltdi.pipeline import (
    FeatureTask,
    OnStage,
    Options,
    TaskEmbedding,
    Timer,
    embed_tasks,
    generate_from_embedding,
    generate_heads,
)
from ltdi.pool import PoolConfig
from ltdi.schedule import ScheduleConfig
from ltdi.support import Items, Limits, SupportSet, take
from ltdi.views import all_views, summarise

if TYPE_CHECKING:
    from ltdi.adapters.bundle import AdapterBundle

FORMAT_VERSION = 2
RECIPES = ("default", "paper", "geometry")
MAX_VIEWS = 64
ADAPTERS = "bundle.json"  # the config of a bundle that makes adapters
CONFIG, WEIGHTS, DIGEST, CARD = "config.json", "weights.safetensors", "digest", "card.json"


@dataclass(frozen=True)
class BundleConfig:
    """What a bundle is; stored with it, and enough to build its modules.

    Args:
        head_sizes: `(D, N)` is open in N for the `default` and `geometry` recipes, where N is 0, and in D where D is 0;
            `(D, H, N)` for `paper`.
        fallback_margin: by how much the baseline must lead on the folds to be returned instead.
        views: V, how many changed copies of each example image the generator sees beside it.
        view_share: how far the baseline moves class means to the mean of the views.
        pool: what validation said of unlabelled pools, for the `default` recipe; None for a bundle that takes none.
    """

    name: str
    format_version: int = FORMAT_VERSION
    recipe: str = "default"
    body: BodyConfig = BodyConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    class_tokens: ClassTokensConfig | None = None
    unet: UNetConfig | None = None
    geometry: GeometryConfig | None = None
    head_sizes: tuple[int, ...] = (256, 0)
    limits: Limits = Limits()
    calibration: Calibration = Calibration()
    fallback_margin: float = 0.1
    views: int = 0
    view_share: float = 0.0
    pool: PoolConfig | None = None

    def __post_init__(self) -> None:
        if self.pool is not None and self.recipe != "default":
            raise InvalidConfig(f"recipe {self.recipe!r} takes no `pool`", field="pool")
        if not 0 <= self.views <= MAX_VIEWS or (self.views and self.recipe != "default"):
            raise InvalidConfig(f"views is {self.views}; it lies in 0..{MAX_VIEWS}, and is 0 for other recipes", field="views")


def build_generator(config: BundleConfig) -> Generator:
    """A generator with fresh parameters, as `config` says."""
    if config.recipe == "geometry":
        if config.geometry is None:
            raise InvalidConfig("the geometry recipe needs `geometry`", field="geometry")
        return GeometryGenerator(config.schedule, config.geometry, config.calibration, config.head_sizes[0])
    size = config.head_sizes[0]
    centre, scale = torch.zeros(size), torch.ones(size)
    if config.recipe == "default":
        if config.class_tokens is None:
            raise InvalidConfig("the default recipe needs `class_tokens`", field="class_tokens")
        codec = Standardiser(torch.zeros(size + 1), torch.ones(size + 1))
        return ResidualGenerator(
            size, config.schedule, config.class_tokens, codec, centre, scale, config.calibration,
            torch.zeros(config.views, 2, 3), config.view_share, config.pool,
        )
    if config.recipe != "paper" or config.unet is None:
        raise InvalidConfig(f"recipe {config.recipe!r} is unknown, or lacks its denoiser; known: {RECIPES}")
    layout = Layout(config.head_sizes)
    codec = Standardiser(torch.zeros(layout.length), torch.ones(layout.length))
    return FlatGenerator(layout, config.schedule, config.unet, codec, centre, scale, config.calibration)


@dataclass(frozen=True)
class HeadRequest:
    """One task of a batch, and what its caller chose.

    Args:
        task: a support set whose inputs are prepared images or features, or a task embedding.
        options: seed, draws, check, fallback.
        embedded: features `[D]` of the task's texts that a remote body has embedded beforehand.
        truncate: ask a remote body to cut texts that are too long.
        base_model_name_or_path: what an adapter calls its base model; the bundle's own where None.
    """

    task: SupportSet | TaskEmbedding
    options: Options = field(default_factory=Options)
    embedded: Mapping[str, Tensor] | None = None
    truncate: bool = False
    base_model_name_or_path: str | None = None


class Bundle:
    """A trained generator and the frozen body it belongs to.

    Build it with `load_bundle`; `Bundle(...)` itself is for those who train one.
    """

    kind = "head"  # what it makes

    def __init__(
        self, config: BundleConfig, body: Body, generator: Generator, *, digest: str = "", card: dict | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config, self.digest, self.card = config, digest, card or {}
        self.device = torch.device(device)
        self.body = body.to(self.device).eval().requires_grad_(False)
        self.generator = generator.to(self.device).eval().requires_grad_(False)

    name = property(lambda self: self.config.name, doc="The bundle's name.")
    limits = property(lambda self: self.config.limits, doc="What it takes in one task.")
    feature_size = property(lambda self: self.config.head_sizes[0], doc="D, the size of features; 0 where it takes any.")

    @property
    def takes_a_body(self) -> bool:
        """Whether an encoder of texts may be put before it: it has none, and uses descriptions."""
        return self.config.body.name == "features" and self.takes_descriptions

    def with_body(self, body: TextBody) -> Bundle:
        """The same bundle, which takes texts too.

        Raises:
            InvalidConfig: it has a body of its own, or that one reads no texts or gives features of another size.
        """
        if not self.takes_a_body or body.kind != "text":
            raise InvalidConfig(f"bundle {self.name!r} takes no such body; any-embedding takes one of texts", field="body")
        if self.feature_size and body.feature_size not in (0, self.feature_size):
            raise InvalidConfig(f"the body gives {body.feature_size} numbers; the bundle takes {self.feature_size}", field="body")
        return Bundle(self.config, body, self.generator, digest=self.digest, card=self.card, device=self.device)

    @property
    def input_kinds(self) -> tuple[str, ...]:
        """What an example may be."""
        return {"images": ("images", "features"), "text": ("texts", "features"), "features": ("features",)}[self.body.kind]

    @property
    def takes_descriptions(self) -> bool:
        """Whether it uses descriptions of classes."""
        return self.config.recipe == "geometry"

    @property
    def takes_pool(self) -> bool:
        """Whether it uses unlabelled items."""
        return self.takes_descriptions or self.config.pool is not None

    @property
    def fixed_ways(self) -> int | None:
        """The only number of classes it takes; None where it takes any."""
        return self.config.head_sizes[-1] or None

    def prepare(self, inputs: Any, *, field: str = "support", truncate: bool = False) -> Items:
        """Examples in the one form that digests and the body see.

        Args:
            inputs: features (a float array or tensor `[M, D]`), or what the bundle's body reads: texts, or images as
                `ltdi.images.prepare_images` takes them.
            field: where they stand, for errors.
            truncate: shorten texts that are too long instead of refusing them.

        Returns:
            `[M, D]` float32 features, `[M, S, S]` uint8 images, or M texts.

        Raises:
            InvalidFeatures, InvalidImage, InvalidText: what is wrong with them.
            UnsupportedInput: what this body does not read.
        """
        if isinstance(inputs, np.ndarray) and inputs.dtype.kind in ("OU" if self.body.kind == "text" else "O"):
            inputs = inputs.tolist()
        if isinstance(inputs, Tensor | np.ndarray) and inputs.ndim <= 2:
            return self._features(_tensor(inputs), field)
        if isinstance(inputs, Sequence) and inputs and isinstance(inputs[0], Tensor | np.ndarray) and inputs[0].ndim == 1:
            return self._feature_rows(inputs, field)
        if self.body.kind == "text":
            return self._texts(inputs, field, truncate)
        if self.body.kind == "images":
            prepare = prepare_photos if self.body.colours == 3 else prepare_images
            return prepare(inputs, self.config.body.image_size, field)
        raise UnsupportedInput(f"bundle {self.name!r} takes features only; send floats [M, D]", field=field)

    def _texts(self, inputs: Any, field: str, truncate: bool) -> tuple[str, ...]:
        if isinstance(inputs, str) or not isinstance(inputs, Sequence):
            raise UnsupportedInput(
                f"bundle {self.name!r} takes a list of texts, or features; this is a {type(inputs).__name__}", field=field
            )
        return self.body.prepare(inputs, field, truncate)

    def _feature_rows(self, rows: Sequence[Any], field: str) -> Tensor:
        size = self.feature_size or len(rows[0])
        for i, row in enumerate(rows):
            if not isinstance(row, Tensor | np.ndarray) or row.shape != (size,):
                raise InvalidFeatures(
                    f"item {list(getattr(row, 'shape', []))} is not a feature; "
                    f"bundle {self.name!r} takes floats [{size}]",
                    field=f"{field}/{i}",
                )
        return self._features(torch.stack([_tensor(row) for row in rows]), field)

    def _features(self, features: Tensor, field: str) -> Tensor:
        wrong_size = features.ndim == 2 and self.feature_size not in (0, features.shape[1])
        if features.ndim != 2 or wrong_size or not features.shape[1] or not features.is_floating_point():
            raise InvalidFeatures(
                f"features have shape {list(features.shape)} and type {features.dtype}; "
                f"bundle {self.name!r} takes floats [M, {self.feature_size or 'D'}]",
                field=field,
            )
        most = float(features.detach().abs().max()) if len(features) else 0.0  # NaN where there is one
        if not math.isfinite(most):
            raise InvalidFeatures("the features hold NaN or infinity; every number must be finite", field=field)
        if most > MAX_FEATURE:
            raise InvalidFeatures(
                f"a feature is {most:.3g}; every number must lie within +-{MAX_FEATURE:g}",
                field=field,
            )
        return features.detach().cpu().to(torch.float32).contiguous()

    def support(
        self, inputs: Any = (), labels: Sequence[str] = (), *, classes: Sequence[str] | None = None,
        descriptions: Mapping[str, Any] | None = None, unlabelled: Any = None, truncate: bool = False,
    ) -> SupportSet:
        """A checked task of this bundle.

        Raises:
            InvalidInput: any of its subclasses, with the field and the remedy.
        """
        for name, value, taken in (
            ("descriptions", descriptions, self.takes_descriptions), ("unlabelled", unlabelled, self.takes_pool)
        ):  # fmt: skip
            if value is not None and len(value) and not taken:
                raise UnsupportedInput(f"bundle {self.name!r} does not use {name}; leave them out", field=name)
        if not self.takes_descriptions:
            descriptions = None
        described = self._descriptions(descriptions, truncate)
        pool = None
        if unlabelled is not None and len(unlabelled):
            pool = self.prepare(unlabelled, field="unlabelled", truncate=truncate)
        prepared = self._examples(inputs, described, pool, truncate)
        self._check_sizes(prepared, described, pool)
        task = SupportSet.of(
            prepared, labels, classes=classes, limits=self.limits, descriptions=described, unlabelled=pool
        )
        if self.fixed_ways not in (None, task.ways):
            raise UnsupportedInput(
                f"the task has {task.ways} classes; bundle {self.name!r} makes heads of {self.fixed_ways} classes only",
                field="classes",
            )
        return task

    def too_long(self, support: SupportSet) -> int:
        """How many texts of a task are longer than the body reads, and are cut."""
        parts = [support.inputs, support.unlabelled, tuple((support.descriptions or {}).values())]
        texts = [item for part in parts if isinstance(part, tuple) for item in part if isinstance(item, str)]
        return self.body.too_long(texts) if texts else 0

    def _examples(self, inputs: Any, described: Mapping[str, Any], pool: Items | None, truncate: bool) -> Items:
        """Prepared examples; where there are none, an empty one of the kind that the rest of the task has."""
        if inputs is not None and len(inputs):
            return self.prepare(inputs, truncate=truncate)
        if not self.takes_descriptions:
            return self.prepare(() if inputs is None else inputs)
        vectors = [part for part in (pool, *described.values()) if isinstance(part, Tensor)]
        if vectors:
            return torch.zeros(0, vectors[0].shape[-1])
        return () if self.body.kind == "text" else torch.zeros(0, self.feature_size)

    def _descriptions(self, descriptions: Mapping[str, Any] | None, truncate: bool) -> dict[str, str | Tensor]:
        prepared: dict[str, str | Tensor] = {}
        for label, value in (descriptions or {}).items():
            field = f"descriptions/{label}"
            if isinstance(value, Tensor | np.ndarray):
                prepared[label] = self._features(_tensor(value).unsqueeze(0), field)[0]
            elif self.body.kind == "text":
                prepared[label] = self.body.prepare([value], field, truncate)[0]
            else:
                raise UnsupportedInput(
                    f"bundle {self.name!r} reads no text; give descriptions as features [D], or leave them out",
                    field="descriptions",
                )
        return prepared

    def _check_sizes(self, inputs: Items, described: Mapping[str, Any], pool: Items | None) -> None:
        """All features of a task are of one size."""
        if not isinstance(inputs, Tensor) or inputs.ndim > 2:
            return
        size = inputs.shape[-1]
        others = {"unlabelled": pool} | {f"descriptions/{label}": value for label, value in described.items()}
        for where, part in others.items():
            if isinstance(part, Tensor) and part.ndim <= 2 and part.shape[-1] != size:
                raise InvalidFeatures(
                    f"features of {where} have size {part.shape[-1]}; those of the examples {size}", field=where
                )

    @torch.inference_mode()
    def embed(self, inputs: Any, *, truncate: bool = False) -> Tensor:
        """Features `[M, D]` of texts or images, float32 on the CPU; features come back as they are.

        Args:
            inputs: as for `prepare`.
        """
        prepared = self.prepare(inputs, truncate=truncate)
        if self.body.remote and not isinstance(prepared, Tensor):
            return self.body.embed(prepared, truncate)
        return self._embed(prepared).cpu()

    def _embed(self, prepared: Items, embedded: Mapping[str, Tensor] | None = None) -> Tensor:
        if not isinstance(prepared, Tensor):
            return self.body.embed(prepared) if not embedded else _rows_of(prepared, embedded).to(self.device)
        if prepared.dtype == torch.float32:
            return prepared.to(self.device)
        parts = [self._embed_pixels(self._pixels(part)) for part in prepared.split(512)]
        return torch.cat(parts) if parts else torch.zeros(0, self.feature_size, device=self.device)

    def _pixels(self, prepared: Tensor) -> Tensor:
        return (prepared.unsqueeze(1) if prepared.ndim == 3 else prepared).float() / 255

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        parts = [self.body(part.to(self.device)).float() for part in pixels.split(512)]
        return torch.cat(parts) if parts else torch.zeros(0, self.feature_size, device=self.device)

    def _completed(self, request: HeadRequest) -> HeadRequest:
        """The request with the features of all its texts, where a remote body makes them."""
        if not self.body.remote or isinstance(request.task, TaskEmbedding):
            return request
        known = request.embedded or {}
        new = [text for text in request.task.texts if text not in known]
        made = dict(zip(new, self.body.embed(new, request.truncate), strict=True))
        return replace(request, embedded={**known, **made})

    @torch.inference_mode()
    def _feature_task(self, support: SupportSet, embedded: Mapping[str, Tensor] | None = None) -> FeatureTask:
        ordered = take(support.inputs, support.canonical.example_order)
        if self.takes_descriptions:
            return self._whole_task(support, ordered, embedded)
        pool = None
        if support.unlabelled is not None:
            pool = self._embed(take(support.unlabelled, support.canonical.pool_order))
        if ordered.dtype == torch.float32 or not self.generator.wants_views(len(ordered), support.ways):
            return FeatureTask(support, self._embed(ordered), pool=pool)
        pixels = self._pixels(ordered)
        features = self._embed_pixels(pixels)
        views = self._embed_pixels(all_views(pixels, self.generator.view_maps.cpu()))
        seen = summarise(features, views.unflatten(0, (len(features), -1)))
        return FeatureTask(support, features, seen[:, 1:], pool=pool)

    def _whole_task(
        self, support: SupportSet, ordered: Items, embedded: Mapping[str, Tensor] | None = None
    ) -> FeatureTask:
        """Features of examples, descriptions and pool, each part embedded by itself."""
        canonical = support.canonical
        if embedded:
            parts = {f"descriptions/{label}": value for label, value in (support.descriptions or {}).items()}
            _check_embedded(embedded, self.feature_size, {"support": support.inputs, "unlabelled": support.unlabelled} | parts)
        features = self._embed(ordered, embedded)
        names = named = pool = None
        if support.descriptions:
            given = [support.descriptions.get(support.classes[row]) for row in canonical.class_order.tolist()]
            named = torch.tensor([value is not None for value in given])
            texts = [value for value in given if isinstance(value, str)]
            of_texts = iter(self._embed(tuple(texts), embedded)) if texts else iter(())
            empty = torch.zeros(features.shape[-1])
            names = torch.stack([
                (empty if value is None else next(of_texts) if isinstance(value, str) else value).to(self.device)
                for value in given
            ])  # fmt: skip
        if support.unlabelled is not None:
            pool = self._embed(take(support.unlabelled, canonical.pool_order), embedded)
        centre = self.config.geometry.centre
        return FeatureTask(support, features, names=names, named=named, pool=pool, centre=centre)

    def generate(
        self, inputs: Any = (), labels: Sequence[str] = (), *, seed: int = 0, classes: Sequence[str] | None = None,
        descriptions: Mapping[str, Any] | None = None, unlabelled: Any = None, draws: int = 1, check: bool = True,
        fallback: str = "baseline", refine_steps: int = 0, truncate: bool = False, on_stage: OnStage | None = None,
    ) -> Head:
        """The head of a task, from whatever there is of it.

        Args:
            inputs: texts, images or features, one for each label; any number for a class, also none.
            labels: any strings.
            descriptions: label to a name or sentence, or to its features `[D]`, where the bundle uses them.
            unlabelled: items of the same kind as `inputs`, of any class or of none, where the bundle uses them.
            seed: of the noise; the same seed gives the same bytes.
            classes: the order of the head's rows; sorted labels where absent.
            draws: chains to average.
            check: measure `head.support_accuracy` on at most five folds.
            fallback: `baseline` returns the baseline where the folds say that it is clearly better; `none` never.
            refine_steps: gradient steps from the generated weights, for who has a second more.
            truncate: shorten texts that are too long instead of refusing them.
            on_stage: told the seconds of `embed`, `sample` and `check`.

        Raises:
            InvalidInput: what is wrong with the task.
            GenerationFailed: a fault of the bundle.
        """
        options = Options(seed=seed, draws=draws, check=check, fallback=fallback, refine_steps=refine_steps)
        support = self.support(
            inputs, labels, classes=classes, descriptions=descriptions, unlabelled=unlabelled, truncate=truncate
        )
        return self.generate_many([HeadRequest(support, options, truncate=truncate)], on_stage=on_stage)[0]

    def generate_many(self, requests: Sequence[HeadRequest], *, on_stage: OnStage | None = None) -> list[Head]:
        """Heads of many tasks, those of equal ways sampled as one batch.

        Raises:
            UnsupportedInput: a task embedding of another bundle.
            GenerationFailed: a fault of the bundle.
        """
        timer = Timer(on_stage)
        facts = {"model": self.name, "bundle_digest": self.digest, "body": self.config.body.name}
        heads: dict[int, Head] = {}
        for i, request in enumerate(requests):
            if isinstance(request.task, TaskEmbedding):
                self._check_embedding(request.task)
                heads[i] = generate_from_embedding(self.generator, request.task, request.options, facts, timer)
        rest = [i for i in range(len(requests)) if i not in heads]
        with timer.stage("embed"):
            requests = [self._completed(request) for request in requests]
            tasks = [self._feature_task(requests[i].task, requests[i].embedded) for i in rest]  # type: ignore[arg-type]
        made = generate_heads(
            self.generator, tasks, [requests[i].options for i in rest], facts,
            fallback_margin=self.config.fallback_margin, timer=timer,
        )
        heads.update(zip(rest, made, strict=True))
        for i in rest:
            heads[i].request = requests[i]
            if requests[i].embedded:
                heads[i].metadata["body"] = self.body.identity
        return [heads[i] for i in range(len(requests))]

    def update(
        self, head: Head, inputs: Any = (), labels: Sequence[str] = (), *, unlabelled: Any = None, truncate: bool = False
    ) -> Head:
        """A new head of the same classes, from what `head` was generated from and more examples or pool items.

        Args:
            head: one that this bundle generated in this process.
            inputs, labels, unlabelled: as for `generate`; they are added to those that were there.

        Raises:
            InvalidInput: `head` keeps no support set (it comes from a file), or what is wrong with what is added.
        """
        request = self._request_of(head)
        old = request.task
        more = self._examples(inputs, {}, _only_tensor(old.inputs), truncate)
        pool = old.unlabelled
        if unlabelled is not None and len(unlabelled):
            if not self.takes_pool:
                raise UnsupportedInput(f"bundle {self.name!r} does not use unlabelled; leave them out", field="unlabelled")
            added = self.prepare(unlabelled, field="unlabelled", truncate=truncate)
            pool = added if pool is None else _joined(pool, added, "unlabelled")
        return self._again(
            request, truncate, inputs=_joined(old.inputs, more, "support"), labels=(*old.labels, *labels), unlabelled=pool
        )

    def add_class(
        self, head: Head, label: str, inputs: Any = (), *, description: Any = None, truncate: bool = False
    ) -> Head:
        """A new head with one class more, from its examples, its description, or both; its row is the last.

        Raises:
            InvalidInput: as for `update`; the class is there already, or has nothing.
        """
        request = self._request_of(head)
        old = request.task
        if label in old.classes:
            raise InvalidSupport(f"class {label!r} is there already; use `update` to give it more", field="classes")
        if description is not None and not self.takes_descriptions:
            raise UnsupportedInput(f"bundle {self.name!r} does not use descriptions; give examples", field="descriptions")
        described = {} if description is None else self._descriptions({label: description}, truncate)
        more = self._examples(inputs, described, _only_tensor(old.inputs), truncate)
        return self._again(
            request, truncate, inputs=_joined(old.inputs, more, "support"), labels=(*old.labels, *[label] * len(more)),
            classes=(*old.classes, label), descriptions={**(old.descriptions or {}), **described} or None,
        )

    def remove_class(self, head: Head, label: str) -> Head:
        """A new head without a class; the others keep their order.

        Raises:
            InvalidInput: as for `update`; there is no such class, or fewer than two would be left.
        """
        request = self._request_of(head)
        old = request.task
        if label not in old.classes:
            raise InvalidSupport(f"there is no class {label!r} in this head", field="classes")
        kept = torch.tensor([i for i, one in enumerate(old.labels) if one != label], dtype=torch.long)
        return self._again(
            request, False, inputs=take(old.inputs, kept), labels=[old.labels[i] for i in kept.tolist()],
            classes=[one for one in old.classes if one != label],
            descriptions={k: v for k, v in (old.descriptions or {}).items() if k != label} or None,
        )

    def _request_of(self, head: Head) -> HeadRequest:
        request = head.request
        if request is None or not isinstance(request.task, SupportSet):
            raise InvalidInput(
                "this head keeps no support set: it comes from a file or from a task embedding; generate it again"
            )
        if head.metadata.get("bundle_digest") != self.digest:
            raise InvalidInput("this head was generated by another bundle; use that one")
        return request

    def _again(self, request: HeadRequest, truncate: bool, **changes: Any) -> Head:
        old = request.task
        kept = {
            name: getattr(old, name) for name in ("inputs", "labels", "classes", "descriptions", "unlabelled")
        } | changes
        task = SupportSet.of(kept.pop("inputs"), kept.pop("labels"), limits=self.limits, **kept)
        return self.generate_many([HeadRequest(task, request.options, request.embedded, truncate)])[0]

    def _check_embedding(self, task: TaskEmbedding) -> None:
        if task.bundle_digest != self.digest:
            raise UnsupportedInput(
                f"the task embedding was made by bundle {task.bundle_digest[:12]}, this one is {self.digest[:12]}; "
                "make it again with /embed",
                field="task_embedding",
            )
        if len(task.labels) > self.limits.max_ways:
            raise LimitExceeded(
                f"the task has {len(task.labels)} classes; this bundle takes at most {self.limits.max_ways}",
                field="task_embedding",
            )
        if self.fixed_ways not in (None, len(task.labels)):
            raise UnsupportedInput(f"bundle {self.name!r} makes heads of {self.fixed_ways} classes only", field="classes")

    def embed_task(self, support: SupportSet) -> TaskEmbedding:
        """The task as the chain sees it, to generate from later.

        Raises:
            UnsupportedInput: the generator looks at single items at every step, so that a token per class is not enough.
        """
        if self.takes_descriptions:
            raise UnsupportedInput(
                "this bundle's chain looks at every item, so it has no task embedding; send the task itself", field="as"
            )
        if support.unlabelled is not None:
            raise UnsupportedInput("a task embedding holds no pool; leave it out, or send the task itself", field="unlabelled")
        return embed_tasks(self.generator, self._feature_task(support), self.digest)

    def save(self, folder: str | Path) -> str:
        """Write `config.json`, `weights.safetensors`, `digest` and, where there is one, `card.json`.

        Returns:
            The digest.
        """
        folder = Path(folder)
        tensors = {f"body.{k}": v for k, v in self.body.state_dict().items()}
        tensors |= {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        write_json(folder / CONFIG, to_json(self.config))
        write_safetensors(folder / WEIGHTS, tensors, {"format": "ltdi.bundle"})
        self.digest = _digest(folder)
        write_bytes(folder / DIGEST, (self.digest + "\n").encode())
        if self.card:
            write_json(folder / CARD, self.card)
        return self.digest


def shipped_bundles() -> list[str]:
    """Names that `load_bundle` knows without a path."""
    try:
        root = files("ltdi_bundles")
    except ModuleNotFoundError:
        return []
    return sorted(
        entry.name for entry in root.iterdir()
        if entry.is_dir() and any((entry / config).is_file() for config in (CONFIG, ADAPTERS))
    )  # fmt: skip


def load_bundle(name: str | Path, *, device: str = "auto", body: TextBody | None = None) -> Bundle | AdapterBundle:
    """A bundle, verified; one that makes adapters where the folder holds one of those.

    Args:
        name: a shipped name (`omniglot`) or the path of a folder.
        device: `auto` (CUDA where there is one), `cpu` or `cuda`.
        body: an encoder of texts, for a bundle that has none of its own (`any-embedding`), which then takes texts too.

    Raises:
        BundleNotFound: neither a shipped name nor a folder.
        DamagedFile: wrong digest, missing or wrongly shaped tensors, NaN, an unknown version.
        InvalidConfig: `body` is given to a bundle that has one.
    """
    folder = _folder(name)
    if (folder / ADAPTERS).is_file():
        from ltdi.adapters.stored import load_adapter_bundle

        if body is not None:
            raise InvalidConfig(f"bundle {folder.name!r} has a body of its own", field="body")
        return load_adapter_bundle(folder, resolve_device(device))
    recorded = _read_text(folder / DIGEST).strip()
    if recorded != _digest(folder):
        raise DamagedFile(f"bundle {folder.name!r} does not match its digest; fetch or export it again")
    try:
        values = parse_json(_read_text(folder / CONFIG))
        if values.get("format_version") != FORMAT_VERSION:
            raise DamagedFile(
                f"bundle {folder.name!r} has format_version {values.get('format_version')!r}; this library reads {FORMAT_VERSION}"
            )
        config = from_json(BundleConfig, values)
        own, generator = build_body(config.body), build_generator(config)
        if config.head_sizes[0] != own.feature_size:
            raise InvalidConfig(f"head_sizes begin with {config.head_sizes[0]}; the body gives {own.feature_size}")
    except (ValueError, AttributeError, LookupError, ArithmeticError, TypeError, RuntimeError, InvalidInput) as error:
        raise DamagedFile(f"bundle {folder.name!r} has a config that cannot be used: {error}") from error
    tensors, _ = read_safetensors(folder / WEIGHTS, "bundle's weights")
    _fill(own, "body.", tensors)
    _fill(generator, "generator.", tensors)
    if tensors:
        raise DamagedFile(f"bundle {folder.name!r} holds tensors it should not: {sorted(tensors)[:5]}")
    bundle = Bundle(config, own, generator, digest=recorded, card=_card(folder, recorded), device=resolve_device(device))
    return bundle if body is None else bundle.with_body(body)


def resolve_device(device: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to a device.

    Raises:
        InvalidInput: an unknown name, or CUDA where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InvalidInput(f"device is {device!r}; known: auto, cpu, cuda", field="device")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device is 'cuda', but torch sees no CUDA device; use 'auto' or 'cpu'", field="device")
    return torch.device(device)


def library_version() -> str:
    """The installed version, `0` in a bare checkout."""
    try:
        return version("ltdi")
    except PackageNotFoundError:
        return "0"


def _folder(name: str | Path) -> Path:
    shipped = shipped_bundles()
    if str(name) in shipped:
        return Path(str(files("ltdi_bundles") / str(name)))
    if Path(name).is_dir():
        return Path(name)
    raise BundleNotFound(f"no bundle {str(name)!r}: shipped are {', '.join(shipped) or 'none'}, and no such folder exists")


def _tensor(array: Tensor | np.ndarray) -> Tensor:
    """The same numbers as a tensor; strides and byte orders that torch lacks are copied away, what is no number is empty."""
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind not in "fiu":
        return torch.zeros(0, dtype=torch.bool)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _rows_of(texts: Sequence[str], embedded: Mapping[str, Tensor]) -> Tensor:
    """`[M, D]` of texts that are all embedded; of none too."""
    size = len(next(iter(embedded.values())))
    return torch.stack([embedded[text] for text in texts]) if texts else torch.zeros(0, size)


def _check_embedded(embedded: Mapping[str, Tensor], wanted: int, parts: Mapping[str, Any]) -> None:
    """The texts' features are of the size `wanted`, where it is not 0, and so are those that a caller sends beside them."""
    size = len(next(iter(embedded.values())))
    if wanted not in (0, size):
        raise EmbedderFailed(f"the embedding endpoint gave features of size {size}; this bundle takes {wanted}")
    for where, part in parts.items():
        if isinstance(part, Tensor) and part.shape[-1] != size:
            raise InvalidFeatures(
                f"features of {where} have size {part.shape[-1]}; those of the texts have {size}", field=where
            )


def _only_tensor(items: Items) -> Tensor | None:
    return items if isinstance(items, Tensor) else None


def _joined(items: Items, more: Items, field: str) -> Items:
    """Both, one after the other; an empty part may be of another kind.

    Raises:
        InvalidInput: texts and features, or features of another size.
    """
    if not len(items) or not len(more):
        return more if len(more) else items
    if isinstance(items, Tensor) and isinstance(more, Tensor) and items.shape[1:] == more.shape[1:] and items.dtype == more.dtype:
        return torch.cat([items, more])
    if isinstance(items, tuple) and isinstance(more, tuple):
        return items + more
    raise InvalidInput("what is added is of another kind or size than what is there", field=field)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedFile(f"the bundle's {path.name} cannot be read") from error


def _digest(folder: Path) -> str:
    try:
        return digest(*((folder / name).read_bytes() for name in (CONFIG, WEIGHTS)))
    except OSError as error:
        raise DamagedFile(f"the bundle lacks {CONFIG} or {WEIGHTS}") from error


def _card(folder: Path, recorded: str) -> dict[str, Any]:
    if not (folder / CARD).exists():
        return {}
    try:
        card = parse_json(_read_text(folder / CARD))
    except ValueError as error:
        raise DamagedFile(f"the bundle's {CARD} is not JSON") from error
    if not isinstance(card, dict) or card.get("bundle_digest") != recorded:
        raise DamagedFile(f"the bundle's {CARD} speaks of another digest; run `ltdi evaluate` on this bundle")
    return card


def _fill(module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Strictly load what begins with `prefix`, and take it out of `tensors`."""
    for name, own in module.state_dict().items():
        found = tensors.pop(prefix + name, None)
        if found is None:
            raise DamagedFile(f"the bundle's weights lack tensor {prefix + name!r}")
        if found.shape != own.shape or found.dtype != own.dtype:
            raise DamagedFile(
                f"tensor {prefix + name!r} is {list(found.shape)} {found.dtype}; expected {list(own.shape)} {own.dtype}"
            )
        own.copy_(found)
