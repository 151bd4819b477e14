"""Every error as `application/problem+json` (RFC 9457): a stable type, and a detail with value, rule and remedy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from ltdi.errors import LtDiError

MEDIA_TYPE = "application/problem+json"
CLIENT_GONE = 499


@dataclass(frozen=True)
class Kind:
    """One kind of problem.

    Args:
        status: of the response.
        title: the same for every occurrence.
        reason: label in `ltdi_requests_rejected_total`; none where it is not counted there.
    """

    status: int
    title: str
    reason: str | None = None


KINDS: dict[str, Kind] = {
    "body-malformed": Kind(400, "The body is not what its Content-Type says", "invalid"),
    "unauthorized": Kind(401, "The key is missing or wrong", "unauthorized"),
    "route-unknown": Kind(404, "No such route"),
    "model-unknown": Kind(404, "No such model", "invalid"),
    "artefact-not-cached": Kind(404, "The artefact is not in the cache", "invalid"),
    "method-not-allowed": Kind(405, "The route does not take this method"),
    "not-acceptable": Kind(406, "No acceptable response form", "invalid"),
    "body-timeout": Kind(408, "The body did not arrive in time", "deadline"),
    "reload-failed": Kind(409, "Not everything was loaded again"),
    "body-too-large": Kind(413, "The body is too large", "too_large"),
    "items-too-many": Kind(413, "Too many items", "too_large"),
    "pixels-too-many": Kind(413, "The image is too large", "too_large"),
    "media-type-unsupported": Kind(415, "The request form is not known", "invalid"),
    "image-type-unsupported": Kind(415, "The image type is not known", "invalid"),
    "headers-too-large": Kind(431, "The headers are too large", "too_large"),
    "request-invalid": Kind(422, "The request does not say what it must", "invalid"),
    "invalid-input": Kind(422, "The input cannot be used", "invalid"),
    "support-invalid": Kind(422, "The examples do not make a task", "invalid"),
    "support-empty": Kind(422, "The support set is empty", "invalid"),
    "classes-too-few": Kind(422, "A head separates at least two classes", "invalid"),
    "limit-exceeded": Kind(422, "More than the bundle takes", "invalid"),
    "features-invalid": Kind(422, "The features cannot be used", "invalid"),
    "text-invalid": Kind(422, "The text cannot be used", "invalid"),
    "image-invalid": Kind(422, "The image cannot be read", "invalid"),
    "input-unsupported": Kind(422, "The bundle does not read this input", "invalid"),
    "file-damaged": Kind(422, "The file must not be used", "invalid"),
    "queue-full": Kind(429, "The queue is full", "queue_full"),
    "key-rate": Kind(429, "Too many wrong keys", "key_rate"),
    "client-gone": Kind(CLIENT_GONE, "The caller left", "client_gone"),
    "generation-failed": Kind(500, "The artefact failed its check"),
    "fault": Kind(500, "A fault of the service"),
    "not-ready": Kind(503, "The service is not ready"),
    "draining": Kind(503, "The service is shutting down", "draining"),
    "body-missing": Kind(503, "The bundle's body is not installed"),
    "base-foreign": Kind(503, "The base model is another than the bundle was made for"),
    "base-damaged": Kind(503, "The base model cannot be used"),
    "model-not-ready": Kind(503, "The model is not ready"),
    "embedder-failed": Kind(502, "The embedding endpoint failed"),
    "embedder-timeout": Kind(504, "The embedding endpoint did not answer in time", "deadline"),
    "deadline-passed": Kind(504, "The deadline passed before the work began, or an adapter took too long", "deadline"),
}

OF_LIBRARY = frozenset(
    {"invalid-input", "support-invalid", "support-empty", "classes-too-few", "limit-exceeded", "features-invalid",
     "image-invalid", "text-invalid", "input-unsupported", "file-damaged", "generation-failed", "body-missing",
     "embedder-failed", "embedder-timeout", "base-foreign", "base-damaged", "deadline-passed"}
)  # fmt: skip
OF_STATUS = {404: "route-unknown", 405: "method-not-allowed", 400: "body-malformed", 422: "request-invalid"}
MAX_DETAIL, MAX_FIELD = 600, 160  # characters of what a caller sent may stand in both
RETRY_SECONDS = {429: 1, 503: 5}


@dataclass
class Problem(Exception):
    """An answer that is an error.

    Args:
        code: a key of `KINDS`; the type is `urn:ltdi:` and the code.
        detail: the value, the rule, the remedy.
        field: a JSON pointer or a part's name.
        headers: further headers of the response.
    """

    code: str
    detail: str
    field: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is sent to another process."""
        return type(self), (self.code, self.detail, self.field, dict(self.headers))

    @property
    def kind(self) -> Kind:
        """Status, title and reason."""
        return KINDS[self.code]


def problem_of(error: LtDiError) -> Problem:
    """The problem that an error of the library is; what a caller did not cause is a fault."""
    if error.code in OF_LIBRARY:
        return Problem(error.code, str(error), error.field)
    return Problem("fault", "something went wrong here; report it with the request id")


NOT_IN_BODY = frozenset({"Accept", "Authorization", "Content-Type", "Content-Encoding", "as"})
IN_JSON = {"labels": "/support", "descriptions": "/classes", "features": "/queries"}


def located(problem: Problem, content_type: str) -> Problem:
    """The problem of a request: in a JSON body its field is a JSON pointer, elsewhere the name of a part."""
    field = problem.field
    if not field or field in NOT_IN_BODY or field[0] == "/" or not content_type.startswith("application/json"):
        return problem
    return dataclasses.replace(problem, field=IN_JSON.get(field, f"/{field}"))


def problem_body(problem: Problem, request_id: str) -> dict[str, str | int | None]:
    """The members of the document."""
    return {
        "type": f"urn:ltdi:{problem.code}",
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": shortened(problem.detail, MAX_DETAIL),
        "field": None if problem.field is None else shortened(problem.field, MAX_FIELD),
        "request_id": request_id,
    }


def shortened(text: str, most: int) -> str:
    """The text; one that is too long without its middle, so that value, rule and remedy are left."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]} ... {text[2 - most // 2 :]}"


def problem_response(problem: Problem, request_id: str) -> Response:
    """The response; 429 and 503 carry `Retry-After`."""
    status = problem.kind.status
    headers = dict(problem.headers)
    if status in RETRY_SECONDS:
        headers.setdefault("Retry-After", str(RETRY_SECONDS[status]))
    content = json.dumps(problem_body(problem, request_id), ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(content, status, headers, MEDIA_TYPE)


def framework_problem(status: int, path: str, method: str, headers: Mapping[str, str] | None) -> Problem:
    """A problem for an error that the framework raised by itself."""
    if status == 404:
        return Problem("route-unknown", f"there is no route {path[:200]!r}; GET /docs lists them")
    if status == 405:
        allowed = (headers or {}).get("Allow", "")
        return Problem(
            "method-not-allowed",
            f"{path!r} does not take {method}; it takes {allowed or 'another'}",
            None,
            headers or {},
        )
    code = OF_STATUS.get(status, "fault")
    return Problem(code, HTTPStatus(KINDS[code].status).phrase.lower(), None, headers or {})
