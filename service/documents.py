"""What the OpenAPI document says of each route beyond its signature."""

from __future__ import annotations

from typing import Any

from service import schemas
from service.decode import JSON, MULTIPART, SAFETENSORS
from service.problems import MEDIA_TYPE

BINARY = {"schema": {"type": "string", "format": "binary"}}
EXAMPLE = {
    "model": "omniglot",
    "seed": 0,
    "support": [
        {"label": "cat", "image": "iVBORw0KGgo..."},
        {"label": "dog", "image": "iVBORw0KGgo..."},
    ],
}
MEANINGS = {
    400: "The body is not what its Content-Type says",
    404: "No such model or artefact",
    406: "No acceptable response form",
    408: "The body did not arrive in time",
    413: "Too many bytes, items or pixels",
    415: "Unknown request form or image type",
    422: "Understood but impossible",
    429: "The queue is full",
    431: "The headers are too large",
    500: "A fault of the service",
    503: "Not ready, or shutting down",
    504: "The deadline passed before the work began",
}


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    reference = {"$ref": "#/components/schemas/ProblemDocument"}
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        found[code] = {"description": MEANINGS[code], "content": {MEDIA_TYPE: {"schema": reference}}}
        if code in (429, 503):
            found[code]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


WORK = (400, 404, 406, 408, 413, 415, 422, 429, 431, 500, 503, 504)
MULTIPART_SCHEMA = {
    "schema": {
        "type": "object",
        "properties": {
            "request": {"type": "string", "description": "the JSON form without `support`"},
            "support": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": "images whose file name is LABEL/anything.png",
            },
        },
    }
}


def _body(schema: str, example: Any, forms: tuple[str, ...]) -> dict[str, Any]:
    content: dict[str, Any] = {
        JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example},
        MULTIPART: MULTIPART_SCHEMA,
        SAFETENSORS: BINARY,
    }
    return {"requestBody": {"required": True, "content": {form: content[form] for form in forms}}}


ALL_FORMS = (JSON, MULTIPART, SAFETENSORS)
ARTEFACT_HEADERS = {
    name: {"schema": {"type": "string"}}
    for name in (
        "ETag", "Server-Timing", "X-Request-Id", "LtDi-Method", "LtDi-Support-Accuracy",
        "LtDi-Baseline-Support-Accuracy", "LtDi-Bundle", "LtDi-Cache",
    )
}  # fmt: skip
HEAD_ANSWER = {
    "description": "The head",
    "headers": ARTEFACT_HEADERS,
    "content": {SAFETENSORS: BINARY, JSON: {"schema": {"$ref": "#/components/schemas/HeadDocument"}}},
}


def _answer(description: str, model: str, *, binary: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{model}"}}}
    return {"description": description, "content": ({SAFETENSORS: BINARY} if binary else {}) | content}


GENERATE = {
    "responses": {200: HEAD_ANSWER} | _problems(*WORK),
    "openapi_extra": _body("TaskRequest", EXAMPLE, ALL_FORMS),
}
EMBED = {
    "responses": {200: _answer("Features, or a task embedding", "FeaturesDocument", binary=True)} | _problems(*WORK),
    "openapi_extra": _body("EmbedRequest", {"inputs": [{"image": "iVBORw0KGgo..."}]}, ALL_FORMS),
}
PREDICT = {
    "responses": {200: _answer("Probabilities", "PredictionDocument")} | _problems(*WORK),
    "openapi_extra": _body(
        "PredictRequest", {"artefact": "the ETag", "queries": [{"image": "iVBORw0KGgo..."}]}, (JSON,)
    ),
}
ARTEFACT = {"responses": {200: HEAD_ANSWER, 304: {"description": "Unchanged"}} | _problems(404)}
MODELS = {"responses": {200: _answer("The bundles", "ModelsDocument")}}
MODEL = {"responses": {200: _answer("The bundle", "ModelDocument")} | _problems(404)}
BODY = {
    "responses": {200: {"description": "The body's parameters", "content": {SAFETENSORS: BINARY}}}
    | _problems(404, 406, 503)
}
HEALTH = {
    "responses": {
        200: _answer("All is well", "HealthDocument"),
        503: _answer("Not so, with the reasons", "HealthDocument"),
    }
}
NAMED = (
    schemas.TaskRequest, schemas.EmbedRequest, schemas.PredictRequest, schemas.ProblemDocument, schemas.HeadDocument,
    schemas.FeaturesDocument, schemas.TaskEmbeddingDocument, schemas.PredictionDocument, schemas.ModelDocument,
    schemas.ModelsDocument, schemas.HealthDocument,
)  # fmt: skip
