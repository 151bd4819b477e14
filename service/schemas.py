"""What callers may write in JSON, and what they get: unknown keys are errors that name the nearest known one."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltdi.config import nearest
from ltdi.pipeline import MAX_DRAWS
from ltdi.refine import MAX_STEPS
from service.problems import Problem

M = TypeVar("M", bound=BaseModel)


def _between(least: int, most: int) -> dict[str, int]:
    """Bounds for the document; the library checks them, with its own words."""
    return {"minimum": least, "maximum": most}


class Strict(BaseModel):
    """No unknown keys, and no conversion of one type into another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Item(Strict):
    """One thing to look at: exactly one of its forms."""

    image: str | None = Field(None, description="base64 of a PNG, JPEG or WebP file")
    features: list[float] | None = Field(None, description="D numbers, as `/embed` gives them")
    text: str | None = Field(None, description="for bundles whose body reads text")
    pair: list[str] | None = Field(None, description="two texts, for bundles that make adapters")


class Example(Item):
    """An item with its class."""

    label: str = Field(description="any string")


class ClassSpec(Strict):
    """A class: a row of the head, in the order of the list."""

    label: str
    description: str | None = Field(None, description="for bundles whose body reads text")


class OptionsSpec(Strict):
    """What may be chosen for one head."""

    fallback: Literal["baseline", "none"] = Field(
        "baseline", description="what comes back where the baseline is better"
    )
    draws: int = Field(1, description="chains whose results are averaged", json_schema_extra=_between(1, MAX_DRAWS))
    refine_steps: int = Field(
        0, description="gradient steps from the generated weights", json_schema_extra=_between(0, MAX_STEPS)
    )
    check: bool = Field(True, description="measure accuracy on at most five folds of the support")
    truncate: bool = Field(False, description="shorten texts that are too long; images and features ignore it")


class EmbedFields(Strict):
    """Which model embeds."""

    model: str | None = Field(None, description="a name of `/models`; the default model where absent")


class EmbedRequest(EmbedFields):
    """Items in, features out."""

    inputs: list[Item]


class TaskFields(Strict):
    """A task without its examples: the `request` part of the multipart form, the metadata of the safetensors form."""

    model: str | None = Field(None, description="a name of `/models`; the default model where absent")
    kind: Literal["head", "lora"] = Field("head", description="what is to be made: what the model's `kind` says")
    seed: int = Field(
        0, description="0 <= seed < 2^63; the same seed gives the same bytes", json_schema_extra=_between(0, 2**63 - 1)
    )
    classes: list[ClassSpec] | None = Field(None, description="the rows of the head; the sorted labels where absent")
    options: OptionsSpec = OptionsSpec()
    base_model_name_or_path: str | None = Field(
        None, description="for adapters only: what they call their base model; vLLM compares the exact string"
    )


class TaskRequest(TaskFields):
    """A task: examples with labels, or a task embedding got earlier."""

    support: list[Example] = []
    unlabelled: list[Item] | None = Field(None, description="a pool, for bundles that use one")
    task_embedding: str | None = Field(None, description="base64 of the file that `/embed?as=task` gave")


class PredictFields(Strict):
    """Which head answers."""

    artefact: str | None = Field(None, description="the ETag of a cached artefact")
    model: str | None = Field(None, description="what embeds the queries; the head's own model where absent")


class PredictRequest(PredictFields):
    """A head and queries."""

    head: str | None = Field(None, description="base64 of a head's safetensors file, instead of `artefact`")
    queries: list[Item]


class ReloadRequest(Strict):
    """What to load again."""

    model: str | None = Field(None, description="a name of `/models`; every model where absent")


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="`urn:ltdi:` and a stable code")
    title: str
    status: int
    detail: str = Field(description="the value, the rule, the remedy")
    field: str | None = Field(description="a JSON pointer or a part's name")
    request_id: str


class HeadDocument(BaseModel):
    """A head as JSON."""

    format: str
    format_version: str
    labels: list[str]
    model: str
    bundle_digest: str
    body: str
    normalise: Literal["none", "l2", "center_l2"]
    activation: Literal["none", "relu"]
    temperature: float
    reject_threshold: float | None
    seed: int
    support_digest: str
    method: Literal["generated", "baseline"]
    support_accuracy: float | None
    baseline_support_accuracy: float | None
    tensors: dict[str, list[Any]] = Field(description="`weight [N, D]` and `bias [N]`, or `layers.0.weight` ...")
    timings_ms: dict[str, float]


class EffectDocument(BaseModel):
    """What an adapter does."""

    delta_norm: float = Field(description="norm of all that LoRA adds, over that of the weights it is added to")
    logit_change: float = Field(description="the largest that LoRA makes in a logit of the first examples")
    support_agreement: float = Field(description="share of the examples that the adapter gives their own label")


class AdapterDocument(BaseModel):
    """A LoRA adapter as JSON."""

    format: str
    format_version: str
    labels: list[str] = Field(description="of the rows of the classification head")
    adapter_config: dict[str, Any] = Field(description="PEFT's `adapter_config.json`")
    model: str
    bundle_digest: str
    body: str
    seed: int
    support_digest: str
    method: Literal["generated", "baseline"]
    support_accuracy: float | None
    baseline_support_accuracy: float | None
    checks: list[str] = Field(description="what was proven before the answer: files, keys, logits, and PEFT's version where it is installed")
    effect: EffectDocument
    tensors: dict[str, list[Any]] = Field(description="by PEFT's names: `base_model.model.MODULE.lora_A.weight` ...")
    timings_ms: dict[str, float]


class FeaturesDocument(BaseModel):
    """Features as JSON."""

    model: str
    bundle_digest: str
    feature_size: int
    features: list[list[float]]
    timings_ms: dict[str, float]


class TaskEmbeddingDocument(BaseModel):
    """A task embedding as JSON: its file as base64, to send back as `task_embedding`."""

    model: str
    bundle_digest: str
    labels: list[str]
    baseline_support_accuracy: float | None
    task_embedding: str
    timings_ms: dict[str, float]


class PredictionDocument(BaseModel):
    """Probabilities of each query."""

    model: str
    labels: list[str]
    predictions: list[str]
    probabilities: list[list[float]] = Field(description="`[Q, N]`, columns as `labels`")
    timings_ms: dict[str, float]


class BodyDocument(BaseModel):
    """The frozen feature extractor of a bundle."""

    name: str
    kind: Literal["images", "text", "features", "remote"] = Field(description="what it reads; `remote` reads texts elsewhere")
    protocol: Literal["openai", "tei"] | None = Field(None, description="of a remote body")
    image_size: int = Field(description="pixels; 0 for bodies that read no images")
    colours: int = Field(description="1 for grey images, 3 for colour ones; 0 for bodies that read none")
    feature_size: int = Field(description="0 where any is taken")
    model: str = Field(description="the sentence encoder, where there is one; of a remote body as its endpoint calls it")
    installed: bool = Field(description="whether it can be used here; features can be sent without it")


class LimitsDocument(BaseModel):
    """What a model takes in one task, and the service in one request."""

    ways: tuple[int, int] = Field(description="fewest and most classes")
    shots: tuple[int, int] = Field(description="fewest and most examples of a class")
    examples: int
    unlabelled: int = Field(description="items of a pool; 0 where none is used")
    body_bytes: int
    header_bytes: int
    items: int
    pixels: int = Field(description="of one image")
    total_pixels: int = Field(description="of all images")
    queue_length: int
    key_tries_per_minute: int
    answer_seconds: float
    head_seconds: float
    body_seconds: float


class ModelDocument(BaseModel):
    """A bundle and its state."""

    name: str
    default: bool
    state: Literal["loading", "ready", "failed"]
    reason: str | None = Field(None, description="why it is not ready, or why its last reload failed")
    kind: Literal["head", "lora"] | None = Field(None, description="what it makes, once it is loaded")
    recipe: str | None = None
    body: BodyDocument | None = None
    feature_size: int | None = None
    input_kinds: list[str] = []
    limits: LimitsDocument | None = None
    digest: str | None = None
    device: str | None = None
    card: dict[str, Any] = Field({}, description="measured accuracy beside the closed form")
    request_forms: list[str] = []
    response_forms: list[str] = []


class ModelsDocument(BaseModel):
    """Every bundle, the default one first."""

    models: list[ModelDocument]


class ReloadDocument(BaseModel):
    """What was loaded again, besides the keys."""

    models: list[ModelDocument]


class HealthDocument(BaseModel):
    """A state and its reasons; the list is empty when all is well."""

    status: Literal["ok", "unavailable"]
    reasons: list[str]


def validate(kind: type[M], values: Any, where: str = "") -> M:
    """`values` as a `kind`.

    Args:
        where: a JSON pointer to `values`, or the name of the part that holds them.

    Raises:
        Problem: 422, with a pointer to the first thing that is wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise _problem(kind, first, where) from None


def _problem(kind: type[BaseModel], error: dict[str, Any], where: str) -> Problem:
    path = [str(part) for part in error["loc"]]
    field = where + "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
    if error["type"] == "extra_forbidden":
        known = _known_keys(kind, error["loc"][:-1])
        return Problem("request-invalid", f"the key {path[-1][:80]!r} is unknown; {nearest(path[-1], known)}", field)
    if error["type"] == "missing":
        return Problem("request-invalid", f"{path[-1]!r} is missing; every such object needs it", field)
    if error["type"] in ("model_type", "model_attributes_type"):
        return Problem("request-invalid", f"{path[-1] if path else 'the request'} must be a JSON object", field)
    given = error["input"]
    small = isinstance(given, float | int | None) or (isinstance(given, str) and len(given) <= 58)
    shown = repr(given) if small and len(repr(given)) <= 60 else f"a {type(given).__name__}"
    return Problem(
        "request-invalid", f"{path[-1] if path else 'the request'} is {shown}: {error['msg'].lower()}", field
    )


def _known_keys(kind: Any, path: tuple[int | str, ...]) -> list[str]:
    """The keys of the model that stands at `path` below `kind`."""
    for part in path:
        if isinstance(part, str):
            kind = _model_in(kind.model_fields[part].annotation)
    return list(kind.model_fields)


def _model_in(annotation: Any) -> Any:
    """The model class inside `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _model_in(arg))), None)
