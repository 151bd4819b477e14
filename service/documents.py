"""What the OpenAPI document says of each route beyond its signature."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from service import schemas
from service.decode import JSON, MULTIPART, ONNX, SAFETENSORS, ZIP
from service.problems import MEDIA_TYPE

STROKE = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcAQAAAABaduI5AAAAHElEQVR42mP8z8DwkYmBgYEBmfiLyqUdwYzMBQCPLQMoQ1GHKQAAAABJRU5ErkJggg=="
)
RING = (
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcAQAAAABaduI5AAAASklEQVR42mP8z8DwkYmBgYEBO/GxgYHh/wH5D0wM5wsYGP7bP//A9N+B"
    "ByLL+If513es2pgafkFZjAe+MDAxBKyAmWKQwMCIy0oAEPIYZZK9qcIAAAAASUVORK5CYII="
)
BINARY = {"schema": {"type": "string", "format": "binary"}}
EXAMPLE = {
    "model": "omniglot",
    "seed": 0,
    "support": [
        {"label": "stroke", "image": STROKE},
        {"label": "ring", "image": RING},
    ],
}
TEXT_EXAMPLE = {
    "model": "minilm",
    "classes": [
        {"label": "refund", "description": "the customer wants money back"},
        {"label": "lost_card", "description": "a lost or stolen card"},
    ],
    "support": [{"label": "refund", "text": "where is my money"}],
    "unlabelled": [{"text": "is my parcel lost?"}, {"text": "somebody took my card"}],
}
MEANINGS = {
    400: "The body is not what its Content-Type says",
    401: "The key is missing or wrong, where keys are configured",
    404: "No such model or artefact",
    406: "No acceptable response form",
    408: "The body did not arrive in time",
    409: "Something could not be loaded; what was loaded before goes on",
    413: "Too many bytes, items or pixels",
    415: "Unknown request form or image type",
    422: "Understood but impossible",
    429: "The queue is full, or too many wrong keys",
    431: "The headers are too large",
    500: "A fault of the service",
    502: "The embedding endpoint failed",
    503: "Not ready, or shutting down",
    504: "The deadline passed before the work began, an adapter took too long to make, or the embedding endpoint did not answer in time",
}


RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "required": True, "description": "seconds"}}


def _headers(*names: str) -> dict[str, Any]:
    """Headers that every such answer has."""
    return {name: {"schema": {"type": "string"}, "required": True} for name in names}


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    reference = {"$ref": "#/components/schemas/ProblemDocument"}
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        found[code] = {"description": MEANINGS[code], "content": {MEDIA_TYPE: {"schema": reference}}}
        if code in (429, 503):
            found[code]["headers"] = RETRY_AFTER
    return found


WORK = (400, 401, 404, 406, 408, 413, 415, 422, 429, 431, 500, 502, 503, 504)
FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
SUPPORT = {
    "support": FILES | {"description": "images whose file name is LABEL/anything.png"},
    "unlabelled": FILES | {"description": "images of a pool, where the model uses one"},
}
INPUTS = {"inputs": FILES | {"description": "images"}}
QUERIES = {
    "queries": FILES | {"description": "images"},
    "head": {"type": "string", "format": "binary", "description": "a head's safetensors file, where no ETag is given"},
}


def _examples(example: Any) -> dict[str, Any]:
    """One example, and for tasks one of texts beside it."""
    found = {"images": {"value": example}}
    return found | {"texts": {"value": TEXT_EXAMPLE}} if example is EXAMPLE else found


def _body(schema: str, example: Any, files: dict[str, Any], tensors: str) -> dict[str, Any]:
    """The three request forms: a schema of JSON, the files of multipart, and what safetensors holds."""
    request = {"request": {"type": "string", "description": "the JSON form without what the files hold"}}
    content = {
        JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": _examples(example)},
        MULTIPART: {"schema": {"type": "object", "properties": request | files, "additionalProperties": False}},
        SAFETENSORS: {"schema": BINARY["schema"] | {"description": tensors}},
    }
    return {"requestBody": {"required": True, "content": content}}


TENSORS = (
    "`features [M, D]` (f32, f16, bf16) or `images [M, C, H, W]` (u8); for tasks `labels [M]` (i64), and where the model uses "
    "them `descriptions [N, D]` and `unlabelled [U, D]`, or `[U, C, H, W]` (u8); the other keys of JSON as metadata"
)
ARTEFACT_HEADERS = _headers("ETag", "Server-Timing", "LtDi-Method", "LtDi-Bundle", "LtDi-Cache", "Vary") | {
    name: {"schema": {"type": "string"}}
    for name in ("LtDi-Support-Accuracy", "LtDi-Baseline-Support-Accuracy", "LtDi-Truncated")
}
HEAD_ANSWER = {
    "description": "The head, or the adapter; as zip archive an adapter is the folder that PEFT loads",
    "headers": ARTEFACT_HEADERS,
    "content": {
        SAFETENSORS: BINARY,
        JSON: {"schema": {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("HeadDocument", "AdapterDocument")]}},
        ONNX: BINARY, ZIP: BINARY,
    },
}  # fmt: skip


def _answer(description: str, model: str, *, binary: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{model}"}}}
    return {"description": description, "content": ({SAFETENSORS: BINARY} if binary else {}) | content}


TIMED = {"headers": _headers("Server-Timing", "LtDi-Bundle")}
EMBEDDED = _answer("Features; with `as=task`, a task embedding", "FeaturesDocument", binary=True) | TIMED
EMBEDDED["content"][JSON]["schema"] = {
    "oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("FeaturesDocument", "TaskEmbeddingDocument")]
}
GENERATE = {
    "responses": {200: HEAD_ANSWER} | _problems(*WORK),
    "openapi_extra": _body(
        "TaskRequest",
        EXAMPLE,
        SUPPORT,
        f"{TENSORS}, with `labels [M]` (i64) that count in `classes`; or a task embedding",
    ),
}
EMBED = {
    "responses": {200: EMBEDDED} | _problems(*WORK),
    "openapi_extra": _body(
        "EmbedRequest",
        {"inputs": [{"image": STROKE}]},
        INPUTS | SUPPORT,
        f"{TENSORS}; with `as=task` what `/generate-head` takes",
    ),
}
PREDICT = {
    "responses": {200: _answer("Probabilities", "PredictionDocument") | TIMED} | _problems(*WORK),
    "openapi_extra": _body(
        "PredictRequest",
        {"artefact": "the ETag", "queries": [{"image": STROKE}]},
        QUERIES,
        f"{TENSORS}; `head [B]` (u8), the bytes of a head's file, where no `artefact` is given",
    ),
}
IF_NONE_MATCH = {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}}
UNCHANGED = {"description": "Unchanged", "headers": _headers("ETag")}
ARTEFACT = {
    "responses": {200: HEAD_ANSWER, 304: UNCHANGED} | _problems(401, 404, 406, 429, 431, 500),
    "openapi_extra": {"parameters": [IF_NONE_MATCH]},
}
MODELS = {"responses": {200: _answer("The bundles", "ModelsDocument")} | _problems(401, 429, 431, 500)}
MODEL = {"responses": {200: _answer("The bundle", "ModelDocument")} | _problems(401, 404, 429, 431, 500)}
BODY = {
    "response_class": Response,
    "responses": {
        200: {
            "description": "The body's parameters, or its ONNX graph", "headers": _headers("ETag"),
            "content": {SAFETENSORS: BINARY, ONNX: BINARY},
        },
        304: UNCHANGED,
    }
    | _problems(401, 404, 406, 422, 429, 431, 500, 503),
    "openapi_extra": {"parameters": [IF_NONE_MATCH]},
}
RELOAD = {
    "responses": {200: _answer("Loaded again", "ReloadDocument")}
    | _problems(400, 401, 404, 408, 409, 413, 415, 422, 429, 431, 500, 503),
    "openapi_extra": {
        "requestBody": {"content": {JSON: {"schema": {"$ref": "#/components/schemas/ReloadRequest"}}}},
        "security": [{"key": []}, {"keyHeader": []}],
    },
}
HEALTH = {
    "responses": {
        200: _answer("All is well", "HealthDocument"),
        503: _answer("Not so, with the reasons", "HealthDocument") | {"headers": RETRY_AFTER},
    }
    | _problems(431, 500)
}
NAMED = (
    schemas.TaskRequest, schemas.EmbedRequest, schemas.PredictRequest, schemas.ProblemDocument, schemas.HeadDocument,
    schemas.AdapterDocument,
    schemas.FeaturesDocument, schemas.TaskEmbeddingDocument, schemas.PredictionDocument, schemas.ModelDocument,
    schemas.ModelsDocument, schemas.HealthDocument, schemas.ReloadRequest, schemas.ReloadDocument,
)  # fmt: skip
