"""Request bodies to tasks, in each of the three forms. Runs in a thread; on the event loop only where `cheap` says so."""

from __future__ import annotations

import binascii
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ltdi import Bundle, HeadRequest, LtDiError, Options, SupportSet, TaskEmbedding, safetensors_bytes
from ltdi.config import nearest
from ltdi.errors import InvalidFeatures, InvalidImage
from ltdi.files import parse_json as json_value
from ltdi.files import safetensors_header
from service import schemas
from service.multipart import Part, parse_form
from service.problems import Problem
from service.settings import Settings

JSON, MULTIPART, SAFETENSORS = "application/json", "multipart/form-data", "application/vnd.safetensors"
ONNX, ZIP = "application/onnx", "application/zip"
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
OTHER_FORMATS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "XML"}
MAX_EXIF = 16  # the reader copies what it has with each further block
TASK_FORMAT = "ltdi.task"
TASK_METADATA = (
    "format", "format_version", "labels", "rows", "support_digest", "bundle_digest", "baseline_support_accuracy",
)  # fmt: skip
INPUT_TENSORS = ("features", "images")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
CHEAP_BYTES, CHEAP_HEADER, CHEAP_ROWS = 256 * 2**10, 1024, 128  # of a body that need not go to another thread
SLICE = 256 * 2**10  # bytes that are looked at together
MAX_QUOTES, MAX_VALUES = 1_000_000, 2_000_000  # of one JSON body: a number takes ten times its two characters once it is read
Header = tuple[dict[str, Any], dict[str, str]]  # of a safetensors file: its tensors by name, and its metadata
FindBundle = Callable[[str | None], Bundle]


@dataclass(frozen=True)
class HeadCall:
    """One request for a head.

    Args:
        bundle: that makes it.
        request: task and options.
        identity: of the task's content and its labels, for the ETag.
        examples: how many.
        truncated: texts that were shortened.
    """

    bundle: Bundle
    request: HeadRequest
    identity: str
    examples: int
    truncated: int = 0

    @property
    def ways(self) -> int:
        """Classes of the task."""
        task = self.request.task
        return len(task.labels) if isinstance(task, TaskEmbedding) else task.ways


@dataclass(frozen=True)
class PredictCall:
    """One request for probabilities.

    Args:
        artefact: ETag of the head, where it is not in the body.
        head: its file, where it is.
        model: what embeds the queries, where the caller names it.
        queries: prepares the queries for a bundle.
    """

    artefact: str | None
    head: bytes | None
    model: str | None
    queries: Callable[[Bundle], Tensor]


@dataclass(frozen=True)
class Decoder:
    """Decodes bodies within the bounds of the settings."""

    settings: Settings
    find: FindBundle

    def head_call(self, media_type: str, content_type: str, body: bytes) -> HeadCall:
        """A task and its options.

        Raises:
            Problem, InvalidInput: what is wrong, and where.
        """
        if media_type == JSON:
            fields = schemas.validate(schemas.TaskRequest, parse_json(body, None, self.settings.max_items))
            return self._from_json(fields)
        if media_type == MULTIPART:
            return self._from_multipart(content_type, body)
        return self._from_safetensors(body)

    def task(self, media_type: str, content_type: str, body: bytes) -> tuple[Bundle, SupportSet]:
        """A task without options, for `/embed?as=task`."""
        call = self.head_call(media_type, content_type, body)
        if isinstance(call.request.task, TaskEmbedding):
            raise Problem("request-invalid", "this is a task embedding already; send examples", "support")
        return call.bundle, call.request.task

    def inputs(self, media_type: str, content_type: str, body: bytes) -> tuple[Bundle, Any]:
        """Items to embed: a bundle and what `Bundle.embed` takes."""
        if media_type == JSON:
            fields = schemas.validate(schemas.EmbedRequest, parse_json(body, None, self.settings.max_items))
            return (bundle := self.find(fields.model)), self.items(bundle, fields.inputs, "inputs")
        if media_type == MULTIPART:
            form = read_multipart(content_type, body, self.settings.max_items + 1, ("inputs",))
            fields = schemas.validate(schemas.EmbedFields, form.request, "request")
            return (bundle := self.find(fields.model)), self.images(form.contents("inputs"), bundle, "inputs")
        tensors, metadata = read_tensors(body, INPUT_TENSORS)
        fields = schemas.validate(schemas.EmbedFields, without_format(metadata), "metadata")
        return (bundle := self.find(fields.model)), self._tensor_inputs(bundle, tensors)

    def prediction(self, media_type: str, content_type: str, body: bytes) -> PredictCall:
        """A head, or its ETag, and queries that are prepared once the bundle is known."""
        if media_type == JSON:
            fields = schemas.validate(schemas.PredictRequest, parse_json(body, None, self.settings.max_items))
            head = None if fields.head is None else from_base64(fields.head, "head")
            return PredictCall(fields.artefact, head, fields.model, lambda b: self.items(b, fields.queries, "queries"))
        if media_type == MULTIPART:
            return self._prediction_from_multipart(content_type, body)
        tensors, metadata = read_tensors(body, (*INPUT_TENSORS, "head"))
        chosen = schemas.validate(schemas.PredictFields, without_format(metadata), "metadata")
        head = None
        if (file := tensors.pop("head", None)) is not None:
            if file.dtype != torch.uint8 or file.ndim != 1:
                raise Problem("request-invalid", "the tensor `head` holds the bytes of a head's file, u8 [B]", "head")
            head = file.numpy().tobytes()
        return PredictCall(chosen.artefact, head, chosen.model, lambda b: self._tensor_inputs(b, tensors))

    def _prediction_from_multipart(self, content_type: str, body: bytes) -> PredictCall:
        form = read_multipart(content_type, body, self.settings.max_items + 2, ("queries", "head"))
        fields = schemas.validate(schemas.PredictFields, form.request, "request")
        heads = form.contents("head")
        if len(heads) > 1:
            raise Problem("request-invalid", f"{len(heads)} heads; send one", "head")
        head = heads[0] if heads else None
        queries = form.contents("queries")
        return PredictCall(fields.artefact, head, fields.model, lambda b: self.images(queries, b, "queries"))

    def items(
        self, bundle: Bundle, items: Sequence[schemas.Item], where: str, truncate: bool = False,
        others: Sequence[schemas.Item] = (),
    ) -> Any:
        """Items of one form as what `Bundle.prepare` takes; `others` are those of the request that were prepared before."""
        self._check_count(len(items), where)
        form = form_of(items, where)
        readable = {"text": "texts", "pair": "pairs", "image": "images", "features": "features"}[form]
        if readable not in bundle.input_kinds:
            kinds = " or ".join(bundle.input_kinds)
            raise Problem("input-unsupported", f"model {bundle.name!r} reads no {form}; send {kinds}", where)
        if form == "text":
            return bundle.prepare([item.text for item in items], field=where, truncate=truncate)
        if form == "pair":
            return bundle.prepare([item.pair for item in items], field=where, truncate=truncate)
        if form == "features":
            rows = feature_rows([item.features for item in items], bundle.feature_size, where)
            return bundle.prepare(rows, field=where)
        before = [from_base64(item.image, where) for item in others if item.image is not None]
        spent = sum(check_image(content, self.settings.max_pixels, where) for content in before)
        return self.images(
            [from_base64(item.image, f"{where}/{i}/image") for i, item in enumerate(items)], bundle, where, spent
        )

    def images(self, encoded: Sequence[bytes], bundle: Bundle, where: str, spent: int = 0) -> Tensor:
        """Encoded images as prepared ones, pixels counted before decoding; `spent` are those of other images of the request."""
        self._check_count(len(encoded), where)
        total, most = spent, self.settings.max_total_pixels
        for i, content in enumerate(encoded):
            total += check_image(content, self.settings.max_pixels, f"{where}/{i}")
            if total > most:
                detail = f"the images up to this one have {total} pixels; at most {most} are decoded in one request"
                raise Problem("pixels-too-many", detail, f"{where}/{i}")
        return bundle.prepare(list(encoded), field=where)

    def _check_count(self, count: int, where: str) -> None:
        if count > self.settings.max_items:
            raise Problem("items-too-many", f"{count} items; at most {self.settings.max_items} in one request", where)

    def _from_json(self, fields: schemas.TaskRequest) -> HeadCall:
        if fields.task_embedding is not None:
            if fields.support:
                raise Problem("request-invalid", "send `support` or `task_embedding`, not both", "task_embedding")
            return self._from_embedding(from_base64(fields.task_embedding, "task_embedding"), fields)
        bundle = self._bundle_for(fields)
        cut = fields.options.truncate
        inputs = self.items(bundle, fields.support, "support", cut) if fields.support else []
        pool = None
        if fields.unlabelled:
            self._check_pool(bundle)
            pool = self.items(bundle, fields.unlabelled, "unlabelled", cut, fields.support)
            if fields.support and type(inputs) is not type(pool):
                raise Problem("request-invalid", "examples and pool are of one form in one task", "unlabelled")
        return self._call(bundle, inputs, [example.label for example in fields.support], fields, unlabelled=pool)

    def _from_multipart(self, content_type: str, body: bytes) -> HeadCall:
        form = read_multipart(content_type, body, self.settings.max_items + 1, ("support", "unlabelled"))
        fields = schemas.validate(schemas.TaskFields, form.request, "request")
        bundle = self._bundle_for(fields)
        labels = []
        for i, name in enumerate(form.filenames("support")):
            label, _, _ = name.replace("\\", "/").rpartition("/")
            if not label or label[0] == "/" or "\0" in name or not {".", ".."}.isdisjoint(label.split("/")):
                raise Problem(
                    "support-invalid",
                    f"file name {name[:80]!r} names no class; call it LABEL/anything.png",
                    f"support/{i}",
                )
            labels.append(label)
        shown, more = form.contents("support"), form.contents("unlabelled")
        inputs, pool = self.images(shown, bundle, "support"), None
        if more:
            self._check_pool(bundle)
            spent = sum(check_image(content, self.settings.max_pixels, "support") for content in shown)
            pool = self.images(more, bundle, "unlabelled", spent)
        return self._call(bundle, inputs, labels, fields, unlabelled=pool)

    def _from_safetensors(self, body: bytes) -> HeadCall:
        header = read_header(body)
        metadata = header[1]
        if metadata.get("format") == TASK_FORMAT:
            chosen = {key: text for key, text in metadata.items() if key not in TASK_METADATA}
            return self._from_embedding(body, task_fields(chosen)[0])
        tensors, _ = read_tensors(body, (*INPUT_TENSORS, "labels", "descriptions", "unlabelled"), header)
        fields, names = task_fields(without_format(metadata))
        bundle = self._bundle_for(fields)
        for name, taken in (("descriptions", bundle.takes_descriptions), ("unlabelled", bundle.takes_pool)):
            if name in tensors and not taken:
                raise Problem("input-unsupported", f"model {bundle.name!r} does not use {name}; leave them out", name)
            if name in tensors:
                self._check_count(rows_of(tensors[name]), name)
        labels = tensors.get("labels")
        described = tensors.get("descriptions")
        if labels is None and described is not None and not any(name in tensors for name in INPUT_TENSORS):
            labels, inputs = torch.zeros(0, dtype=torch.int64), []
        elif labels is None or labels.ndim != 1 or labels.dtype != torch.int64:
            raise Problem("support-invalid", "`labels` must be there: one int64 for each example", "labels")
        else:
            inputs = self._tensor_inputs(bundle, tensors)
        rows = labels.tolist()
        if names is not None and not all(0 <= row < len(names) for row in rows):
            raise Problem(
                "support-invalid", f"`labels` must lie in 0..{len(names) - 1}, the rows of `classes`", "labels"
            )
        pool = None
        if "unlabelled" in tensors:
            pool = self._rows(bundle, tensors["unlabelled"], "unlabelled", "images" if tensors["unlabelled"].ndim == 4 else "features")
        return self._call(
            bundle, inputs, [names[r] if names is not None else str(r) for r in rows], fields, unlabelled=pool,
            descriptions=None if described is None else rows_by_name(described, names),
        )

    def _tensor_inputs(self, bundle: Bundle, tensors: Mapping[str, Tensor]) -> Tensor:
        given = [name for name in INPUT_TENSORS if name in tensors]
        if len(given) != 1:
            raise Problem("request-invalid", "send exactly one of the tensors `features` and `images`", "features")
        self._check_count(rows_of(tensors[given[0]]), given[0])
        return self._rows(bundle, tensors[given[0]], given[0], given[0])

    def _rows(self, bundle: Bundle, value: Tensor, where: str, form: str) -> Tensor:
        """A tensor of images or features as what `Bundle.prepare` makes of it."""
        part = "unlabelled" if where == "unlabelled" else "support"
        if form == "features":
            return bundle.prepare(float_rows(value, where), field=part)
        if "images" not in bundle.input_kinds:
            raise Problem("input-unsupported", f"model {bundle.name!r} reads no images; send features", where)
        if value.dtype != torch.uint8 or value.ndim != 4 or value.shape[1] not in (1, 3) or 0 in value.shape[2:]:
            raise InvalidImage(
                f"images are {value.dtype} {list(value.shape)}; send u8 [M, 1, H, W] or [M, 3, H, W]", field=where
            )
        if value.shape[2] * value.shape[3] > self.settings.max_pixels:
            raise Problem("pixels-too-many", f"at most {self.settings.max_pixels} pixels an image", where)
        return bundle.prepare(value, field=part)

    def _from_embedding(self, content: bytes, fields: schemas.TaskFields) -> HeadCall:
        try:
            task = TaskEmbedding.from_bytes(content)
        except LtDiError as error:
            error.field = "task_embedding"
            raise
        if fields.classes is not None:
            raise Problem("request-invalid", "a task embedding has its classes; leave `classes` out", "classes")
        bundle = self._bundle_for(fields)
        # Its digests are the caller's word, so what tells it from others is all of it.
        identity = sha256(safetensors_bytes(task.tensors(), task.metadata())).hexdigest()
        return HeadCall(bundle, HeadRequest(task, options_of(fields)), identity, int(task.counts.sum()))

    def _check_pool(self, bundle: Bundle) -> None:
        if not bundle.takes_pool:
            raise Problem("input-unsupported", f"model {bundle.name!r} does not use a pool; leave it out", "unlabelled")

    def _bundle_for(self, fields: schemas.TaskFields) -> Bundle:
        bundle = self.find(fields.model)
        if fields.kind != bundle.kind:
            made = {"head": "heads", "lora": "adapters: say kind 'lora'"}[bundle.kind]
            detail = f"the request asks for kind {fields.kind!r}; model {bundle.name!r} makes {made}; /models says what others make"
            raise Problem("input-unsupported", detail, "kind")
        if fields.base_model_name_or_path is not None and bundle.kind != "lora":
            raise Problem("input-unsupported", "only adapters name a base model; leave it out", "base_model_name_or_path")
        return bundle

    def _call(
        self, bundle: Bundle, inputs: Any, labels: list[str], fields: schemas.TaskFields, *, unlabelled: Any = None,
        descriptions: dict[str, Any] | None = None,
    ) -> HeadCall:
        classes = None if fields.classes is None else [c.label for c in fields.classes]
        if classes is not None and len(set(classes)) < len(classes):
            twice = next(label for label, count in Counter(classes).items() if count > 1)
            raise Problem("support-invalid", f"class {twice[:80]!r} stands twice; name each class once", "classes")
        if descriptions is None:
            descriptions = {c.label: c.description for c in fields.classes or () if c.description is not None}
        support = bundle.support(
            inputs, labels, classes=classes, descriptions=descriptions or None, unlabelled=unlabelled,
            truncate=fields.options.truncate,
        )
        order = support.canonical.class_order.tolist()
        parts: list[Any] = [support.canonical.digest, [support.classes[row] for row in order], support.classes]
        if bundle.body.remote and support.texts:
            parts += [bundle.body.identity, fields.options.truncate]
        if bundle.kind == "lora":
            parts += [fields.base_model_name_or_path]
        identity = json.dumps(parts)
        cut = bundle.too_long(support) if fields.options.truncate else 0
        request = HeadRequest(
            support, options_of(fields), truncate=fields.options.truncate, base_model_name_or_path=fields.base_model_name_or_path
        )
        return HeadCall(bundle, request, identity, len(labels), cut)


def options_of(fields: schemas.TaskFields) -> Options:
    """The library's options.

    Raises:
        InvalidInput: out of range.
    """
    options = fields.options
    return Options(
        seed=fields.seed, draws=options.draws, check=options.check, fallback=options.fallback,
        refine_steps=options.refine_steps,
    )


def form_of(items: Sequence[schemas.Item], where: str) -> str:
    """The one form that all items have.

    Raises:
        Problem: an item with none or several, or different forms in one list.
    """
    forms = set()
    for i, item in enumerate(items):
        given = [name for name in ("image", "features", "text", "pair") if getattr(item, name) is not None]
        if len(given) != 1:
            raise Problem(
                "request-invalid", f"an item holds one of image, features, text, pair; this one {given}", f"{where}/{i}"
            )
        forms.add(given[0])
    if len(forms) > 1:
        raise Problem("request-invalid", f"one form in one task; here are {sorted(forms)}", where)
    return forms.pop() if forms else "features"


def feature_rows(rows: Sequence[list[float] | None], size: int, where: str) -> Tensor:
    """`[M, D]` of lists of numbers."""
    size = size or len(rows[0] or ())
    for i, row in enumerate(rows):
        if len(row or ()) != size or not size:
            raise InvalidFeatures(
                f"features have size {len(row or ())}; this model takes {size}", field=f"{where}/{i}/features"
            )
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, size)


def rows_of(value: Tensor) -> int:
    """How many rows a tensor has, even where each of them is empty."""
    return len(value) if value.ndim else 0


def float_rows(value: Tensor, where: str) -> Tensor:
    """A tensor of features as float32 `[M, D]`; what is of another rank is left without a column."""
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InvalidFeatures(f"{where} are {value.dtype}; send f32, f16 or bf16", field=where)
    return value.float() if value.ndim == 2 else torch.zeros(rows_of(value), 0)


def rows_by_name(described: Tensor, names: list[str] | None) -> dict[str, Tensor]:
    """`descriptions [N, D]` by class name: those of `classes`, in their order, else the numbers of the rows."""
    rows = float_rows(described, "descriptions")
    if names is not None and len(names) != len(rows):
        raise Problem(
            "support-invalid", f"{len(rows)} descriptions and {len(names)} classes; give one for each", "descriptions"
        )
    return dict(zip(names or [str(i) for i in range(len(rows))], rows, strict=True))


def check_image(content: bytes, max_pixels: int, where: str) -> int:
    """How many pixels an image has, by its header alone.

    Raises:
        Problem: an image type that is not read, or too many pixels.
        InvalidImage: no image at all.
    """
    other = next((kind for magic, kind in OTHER_FORMATS.items() if content.startswith(magic)), None)
    if other is not None:
        raise Problem("image-type-unsupported", f"the image is {other}; send PNG, JPEG or WebP", where)
    if content.count(b"Exif\0\0") > MAX_EXIF:
        raise InvalidImage(f"the image has more than {MAX_EXIF} blocks of EXIF; send it without them", field=where)
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            pixels = image.width * image.height
            moves = image.format != "MPO" and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise Problem("pixels-too-many", f"the image has more than {max_pixels} pixels", where) from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise InvalidImage("not a readable PNG, JPEG or WebP image", field=where) from error
    if moves:
        raise InvalidImage("the image is animated; send one picture of it", field=where)
    if pixels > max_pixels:
        raise Problem("pixels-too-many", f"the image has {pixels} pixels; at most {max_pixels} are decoded", where)
    return pixels


def from_base64(text: str | None, where: str) -> bytes:
    """Bytes of base64 text."""
    try:
        return binascii.a2b_base64(text or "", strict_mode=True)
    except ValueError as error:  # `binascii.Error` is one
        raise Problem("request-invalid", "not base64; send the file's bytes in base64", where) from error


def parse_json(body: bytes, where: str | None = None, max_items: int = 0) -> Any:
    """JSON in UTF-8.

    Args:
        max_items: how many items it may hold; lists, objects and values are counted before they are made.

    Raises:
        Problem: 400 where it is not JSON, has a key twice or half a surrogate pair; 413 where it holds too much.
    """
    try:
        _check_amount(body, 1024 + 4 * max_items, where)
        text = str(body, "utf-8")
        value = json_value(text)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Problem("body-malformed", "a text holds half a surrogate pair; texts are Unicode", where) from error
    except (ValueError, RecursionError) as error:
        raise Problem("body-malformed", f"not JSON: {str(error)[:120]}; send JSON in UTF-8", where) from error
    return value


def _check_amount(body: bytes, max_containers: int, where: str | None) -> None:
    """Refuse a document that would take many times its size in memory; brackets and commas of texts do not count."""
    bounds = (b'"', MAX_QUOTES, "quotation marks"), (b"[{", max_containers, "lists and objects"), (b",", MAX_VALUES, "values")
    parts, quoted = _slices(body), b'"' in body
    outside = None
    for marks, most, what in bounds:
        if not _more_than(most, parts, marks):
            continue
        if quoted and marks != b'"':
            outside = outside or _outside_texts(body)
        if outside is None or _more_than(most, outside, marks):
            detail = f"the JSON holds more than {most} {what}; send less, or the safetensors form"
            raise Problem("items-too-many", detail, where)


def _outside_texts(body: bytes) -> list[bytes]:
    """What stands between the texts of a JSON document; the last text may have no end."""
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    return plain.split(b'"')[::2]


def _slices(body: bytes) -> list[memoryview]:
    view = memoryview(body)
    return [view[at : at + SLICE] for at in range(0, len(body), SLICE)]


def _more_than(most: int, parts: Sequence[bytes | memoryview], marks: bytes) -> bool:
    """Whether the parts hold more of these marks, looked at no further than needed."""
    found = 0
    for part in parts:
        content = bytes(part)
        found += sum(content.count(mark) for mark in marks)
        if found > most:
            return True
    return False


@dataclass(frozen=True)
class Form:
    """A multipart request.

    Args:
        request: what its part `request` says; an empty object where there is none.
        files: its other parts, in order.
    """

    request: Any
    files: list[Part]

    def contents(self, name: str) -> list[bytes]:
        """The files of a field."""
        return [part.content for part in self.files if part.name == name]

    def filenames(self, name: str) -> list[str]:
        """Their names."""
        return [part.filename or "" for part in self.files if part.name == name]


def read_multipart(content_type: str, body: bytes, max_parts: int, fields: tuple[str, ...]) -> Form:
    """The part `request`, and the files of `fields`; any other part is an error."""
    request: Any = None
    files = []
    for part in parse_form(body, content_type, max_parts):
        if part.name == "request":
            if request is not None:
                raise Problem("request-invalid", "the part `request` stands twice; send it once", "request")
            request = parse_json(part.content, "request", max_parts)
        elif part.name in fields and part.filename is not None:
            files.append(part)
        else:
            known = " and ".join(map(repr, fields))
            raise Problem(
                "request-invalid",
                f"the part {part.name[:80]!r} is unknown; known are 'request', and {known} with a file name",
                part.name[:80],
            )
    return Form({} if request is None else request, files)


def only_known(tensors: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse a tensor that no request holds, so that a misspelt one is not left out in silence."""
    for name in tensors:
        if name not in known:
            raise Problem("request-invalid", f"the tensor {name[:80]!r} is unknown; {nearest(name, list(known))}", name)


def without_format(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without what says which kind of file it is."""
    return {key: text for key, text in metadata.items() if key != "format"}


def read_header(body: bytes) -> Header:
    """What a safetensors body says of its tensors, and its metadata, or a 400 problem."""
    try:
        return safetensors_header(body)
    except ValueError as error:
        raise _not_safetensors(error) from error


def cheap(body: bytes) -> bool:
    """Whether a safetensors body is decoded in well under a millisecond: a few features with their labels, and few words."""
    end = 8 + int.from_bytes(body[:8], "little")
    if len(body) > CHEAP_BYTES or end > min(CHEAP_HEADER, len(body)):
        return False
    try:
        described, metadata = safetensors_header(body)
        rows = described["labels"]["shape"][0]
    except (ValueError, LookupError, TypeError):
        return False
    said = metadata.get("classes", "")
    words = "description" in said or "\\" in said
    return set(described) == {"features", "labels"} and 0 < rows <= CHEAP_ROWS and not words


def read_tensors(body: bytes, known: tuple[str, ...], header: Header | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors body, or a 400 problem; 422 for a tensor that is not among `known`."""
    described, metadata = header or read_header(body)
    only_known(described, known)
    try:
        return load_safetensors(body), metadata
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _not_safetensors(error) from error


def _not_safetensors(error: Exception) -> Problem:
    return Problem("body-malformed", f"not a whole safetensors file: {str(error)[:120]}")


def task_fields(metadata: Mapping[str, str]) -> tuple[schemas.TaskFields, list[str] | None]:
    """The fields of the JSON form from metadata, and the class names that `labels` counts in."""
    values: dict[str, Any] = {}
    for key, text in metadata.items():
        values[key] = text if key in ("model", "kind", "base_model_name_or_path") else parse_json(text.encode(), key)
    classes = values.get("classes")
    if isinstance(classes, list):
        values["classes"] = [{"label": c} if isinstance(c, str) else c for c in classes]
    fields = schemas.validate(schemas.TaskFields, values, "metadata")
    return fields, None if fields.classes is None else [c.label for c in fields.classes]
