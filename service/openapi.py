"""The OpenAPI document: `python -m service.openapi` writes `openapi/openapi.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.documents import NAMED

KEYS = {
    "key": {"type": "http", "scheme": "bearer", "description": "where the service has keys"},
    "keyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
REQUEST_ID = {"X-Request-Id": {"schema": {"type": "string"}, "required": True, "description": "the caller's, or made"}}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of the app, with the schemas that routes refer to by name and without the framework's own errors."""
    made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    _, named = models_json_schema(
        [(model, "validation") for model in NAMED], ref_template="#/components/schemas/{model}"
    )
    made["components"] = {"schemas": dict(sorted(named["$defs"].items())), "securitySchemes": KEYS}
    for path in made["paths"].values():
        for operation in path.values():
            answers = operation["responses"]
            if "401" in answers:
                operation.setdefault("security", [{}, {"key": []}, {"keyHeader": []}])
            if "application/problem+json" not in answers.get("422", {}).get("content", {}):
                answers.pop("422", None)  # the framework's own, for parameters that no text can make invalid
            for answer in answers.values():
                answer["headers"] = REQUEST_ID | answer.get("headers", {})
    return made


def text(app: FastAPI) -> str:
    """The document as it stands in the repository."""
    return json.dumps(document(app), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    from service.app import create_app

    target = Path(sys.argv[1] if len(sys.argv) > 1 else "openapi/openapi.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text(create_app()), encoding="utf-8")
