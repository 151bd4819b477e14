"""The table of errors, each row met once over the wire as `application/problem+json`."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable

import httpx
import pytest
import torch

from ltdi import TaskEmbedding, load_bundle, safetensors_bytes
from service.client import png
from service.problems import KINDS
from service.settings import Settings
from tests.service.conftest import Running, encoded, json_task

A = [0.5] * 256
TENSORS = {"Content-Type": "application/vnd.safetensors"}


def support(**items: list) -> list[dict]:
    return [{"label": label, "features": row} for label, rows in items.items() for row in rows]


def post(**json_body: object) -> Callable[[httpx.Client], httpx.Response]:
    return lambda http: http.post("/generate-head", json=json_body)


def raw(content: bytes, content_type: str, path: str = "/generate-head", **headers: str):
    return lambda http: http.post(path, content=content, headers={"Content-Type": content_type, **headers})


def tensors(metadata: dict[str, str] | None = None, **values: torch.Tensor):
    return lambda http: http.post("/generate-head", content=safetensors_bytes(values, metadata or {}), headers=TENSORS)


PAIR = support(a=[A], b=[[0.1] * 256])
GIF = base64.b64encode(
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
).decode()
NOT_IMAGE = base64.b64encode(b"this is no image").decode()
PICTURE = encoded(torch.zeros(28, 28, dtype=torch.uint8))


def huge(side: int) -> bytes:
    """A PNG that says it is `side` pixels wide and high, and holds none of them."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    sealed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def elsewhere(http: httpx.Client) -> bytes:
    """A task embedding that says another bundle made it."""
    task = TaskEmbedding.from_bytes(http.post("/embed?as=task", json={"support": PAIR}).content)
    return safetensors_bytes(task.tensors(), task.metadata() | {"bundle_digest": "0" * 64})


ROWS = [
    ("body is not JSON", raw(b"{", "application/json"), 400, "body-malformed", None),
    ("body is not safetensors", raw(b"\x80\x04pickle", "application/vnd.safetensors"), 400, "body-malformed", None),
    ("body is not multipart", raw(b"--x\r\nbroken", "multipart/form-data; boundary=x"), 400, "body-malformed", None),
    ("truncated safetensors", raw(safetensors_bytes({"features": torch.ones(2, 256)}, {})[:-9], "application/vnd.safetensors"), 400, "body-malformed", None),
    ("unknown route", lambda http: http.get("/nothing"), 404, "route-unknown", None),
    ("unknown model", post(model="nope", support=PAIR), 404, "model-unknown", "/model"),
    ("unknown model to show", lambda http: http.get("/models/nope"), 404, "model-unknown", "model"),
    ("artefact not kept", lambda http: http.get("/artefacts/0"), 404, "artefact-not-cached", "etag"),
    ("method", lambda http: http.get("/generate-head"), 405, "method-not-allowed", None),
    ("no acceptable form", lambda http: http.post("/generate-head", json={"support": PAIR}, headers={"Accept": "application/zip"}), 406, "not-acceptable", "Accept"),
    ("body as JSON", lambda http: http.get("/models/toy/body", headers={"Accept": "application/json"}), 406, "not-acceptable", "Accept"),
    ("unknown request form", raw(b"<a/>", "application/xml"), 415, "media-type-unsupported", "Content-Type"),
    ("unknown image type", post(support=[{"label": "a", "image": GIF}, {"label": "b", "image": GIF}]), 415, "image-type-unsupported", "/support/0"),
    ("compressed body", raw(b"{}", "application/json", **{"Content-Encoding": "gzip"}), 415, "media-type-unsupported", "Content-Encoding"),
    ("more pixels than Pillow opens", post(support=[{"label": x, "image": base64.b64encode(huge(20_000)).decode()} for x in "ab"]), 413, "pixels-too-many", "/support/0"),
    ("JSON that is no object", raw(b"[]", "application/json"), 422, "request-invalid", ""),
    ("task embedding of another bundle", lambda http: http.post("/generate-head", content=elsewhere(http), headers=TENSORS), 422, "input-unsupported", "task_embedding"),
    ("unknown tensor", tensors(features=torch.ones(2, 256), label=torch.tensor([0, 1])), 422, "request-invalid", "label"),
    ("unknown key in the metadata", tensors({"sed": "1"}, features=torch.ones(2, 256), labels=torch.tensor([0, 1])), 422, "request-invalid", "metadata/sed"),
    ("unknown part of a form", lambda http: http.post("/embed", files=[("input", ("1.png", b"x"))]), 422, "request-invalid", "input"),
    ("artefact of a prediction not kept", lambda http: http.post("/predict", json={"artefact": "0", "queries": []}), 404, "artefact-not-cached", "/artefact"),
    ("headers too large", lambda http: http.get("/livez", headers={"X-Long": "x" * 20_000}), 431, "headers-too-large", None),
    ("empty support", post(support=[]), 422, "support-empty", "/support"),
    ("one class", post(support=support(a=[A, A])), 422, "classes-too-few", "/support"),
    ("too many classes", post(support=support(**{f"c{i}": [A] for i in range(65)})), 422, "limit-exceeded", "/classes"),
    ("too many examples of a class", post(support=support(a=[A] * 101, b=[A])), 422, "limit-exceeded", "/support"),
    ("wrong size of feature", post(support=support(a=[[1.0]], b=[A])), 422, "features-invalid", "/support/0/features"),
    ("NaN", raw(json.dumps({"support": support(a=[A], b=[[float("nan")] * 256])}).encode(), "application/json"), 422, "features-invalid", "/support"),
    ("label missing", post(support=[{"features": A}]), 422, "request-invalid", "/support/0/label"),
    ("label without a class", post(support=PAIR, classes=[{"label": "a"}, {"label": "z"}]), 422, "support-invalid", "/classes"),
    ("class without an example", post(support=PAIR, classes=[{"label": x} for x in "abz"]), 422, "support-invalid", "/support"),
    ("several forms in one item", post(support=[{"label": "a", "features": A, "image": PICTURE}]), 422, "request-invalid", "/support/0"),
    ("different forms in one task", post(support=[*PAIR, {"label": "a", "image": PICTURE}]), 422, "request-invalid", "/support"),
    ("text for a body that reads none", post(support=[{"label": "a", "text": "x"}, {"label": "b", "text": "y"}]), 422, "input-unsupported", "/support"),
    ("description for a body that reads none", post(support=PAIR, classes=[{"label": "a", "description": "x"}, {"label": "b"}]), 422, "input-unsupported", "/classes"),
    ("pool", post(support=PAIR, unlabelled=[{"features": A}]), 422, "input-unsupported", "/unlabelled"),
    ("adapter", post(support=PAIR, kind="lora"), 422, "input-unsupported", "/kind"),
    ("too much refinement", post(support=PAIR, options={"refine_steps": 5000}), 422, "limit-exceeded", "/options/refine_steps"),
    ("damaged image", post(support=[{"label": "a", "image": NOT_IMAGE}, {"label": "b", "image": NOT_IMAGE}]), 422, "image-invalid", "/support/0"),
    ("image cut short", post(support=[{"label": x, "image": base64.b64encode(png(torch.arange(784).reshape(28, 28).to(torch.uint8))[:-30]).decode()} for x in "ab"]), 422, "image-invalid", "/support/0"),
    ("not base64", post(support=[{"label": "a", "image": "%%"}, {"label": "b", "image": "%%"}]), 422, "request-invalid", "/support/0/image"),
    ("unknown key", post(suport=[]), 422, "request-invalid", "/suport"),
    ("unknown key in an option", post(support=PAIR, options={"draw": 2}), 422, "request-invalid", "/options/draw"),
    ("too many draws", post(support=PAIR, options={"draws": 1000}), 422, "limit-exceeded", "/options/draws"),
    ("seed below 0", post(support=PAIR, seed=-1), 422, "invalid-input", "/seed"),
    ("damaged task embedding", post(task_embedding=base64.b64encode(b"x" * 40).decode()), 422, "file-damaged", "/task_embedding"),
    ("damaged head", lambda http: http.post("/predict", json={"head": NOT_IMAGE, "queries": []}), 422, "file-damaged", "/head"),
    ("no head to predict with", lambda http: http.post("/predict", json={"queries": []}), 422, "request-invalid", "/artefact"),
    ("unknown way to embed", lambda http: http.post("/embed?as=poem", json={"inputs": []}), 422, "request-invalid", "as"),
    ("labels of another type", tensors(features=torch.ones(2, 256), labels=torch.ones(2)), 422, "support-invalid", "labels"),
    ("labels beyond the classes", tensors({"classes": '["a", "b"]'}, features=torch.ones(2, 256), labels=torch.tensor([0, 2])), 422, "support-invalid", "labels"),
    ("features and images at once", tensors(features=torch.ones(2, 256), images=torch.zeros(2, 1, 8, 8, dtype=torch.uint8), labels=torch.tensor([0, 1])), 422, "request-invalid", "features"),
    ("features of three axes", tensors(features=torch.ones(2, 256, 1), labels=torch.tensor([0, 1])), 422, "features-invalid", "support"),
    ("file name without a class", lambda http: http.post("/generate-head", files=[("support", ("1.png", png(torch.zeros(28, 28, dtype=torch.uint8))))]), 422, "support-invalid", "support/0"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "send", "status", "code", "field"), ROWS, ids=[row[0] for row in ROWS])
def test_an_error_is_a_problem_that_names_field_and_remedy(http, case, send, status, code, field) -> None:
    answer = send(http)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:ltdi:{code}"
    assert problem["status"] == status and problem["title"] == KINDS[code].title
    assert problem["field"] == field
    assert len(problem["detail"]) > 15
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_an_unknown_key_names_the_nearest_known_one(http) -> None:
    assert "did you mean 'support'" in http.post("/generate-head", json={"suport": []}).json()["detail"]


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(bounded, images, labels) -> None:
    http = bounded(max_body_bytes=2048)
    body = json.dumps(json_task(images, labels)).encode()
    chunks = (body[i : i + 500] for i in range(0, len(body), 500))
    for content in (body, chunks):
        answer = http.post("/generate-head", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:ltdi:body-too-large")


def test_too_many_items_and_pixels_are_refused(bounded, images, labels) -> None:
    http = bounded(max_items=8, max_pixels=700)
    assert http.post("/generate-head", json=json_task(images, labels)).json()["type"] == "urn:ltdi:items-too-many"
    few = http.post("/generate-head", json=json_task(images[::4], labels[::4]))
    assert (few.status_code, few.json()["type"]) == (413, "urn:ltdi:pixels-too-many")


def test_the_pixels_of_a_request_are_counted_together(bounded, images, labels) -> None:
    http = bounded(max_total_pixels=3000)
    answer = http.post("/generate-head", json=json_task(images, labels))
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:ltdi:pixels-too-many")
    assert (answer.json()["field"], "3136" in answer.json()["detail"]) == ("/support/3", True)


def test_a_body_that_does_not_arrive_is_a_timeout(bounded) -> None:
    http = bounded(body_seconds=0.2)
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=5) as wire:
        wire.sendall(
            b"POST /generate-head HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        answer = wire.makefile("rb").read()
        assert b"408" in answer.split(b"\r\n")[0] and b"urn:ltdi:body-timeout" in answer


def test_a_full_queue_is_429_with_retry_after(bounded) -> None:
    http = bounded(queue_length=1, max_batch=1)
    slow = json_task(torch.randint(0, 100, (40, 28, 28), dtype=torch.uint8), [f"c{i}" for i in range(40)])
    answers = _flood(http, slow, 12)
    codes = {a.status_code for a in answers}
    assert 429 in codes and codes <= {200, 429}
    refused = next(a for a in answers if a.status_code == 429)
    assert refused.json()["type"] == "urn:ltdi:queue-full" and int(refused.headers["retry-after"]) >= 1


def _flood(http: httpx.Client, task: dict, count: int) -> list[httpx.Response]:
    from concurrent.futures import ThreadPoolExecutor

    def ask(seed: int) -> httpx.Response:
        return http.post("/generate-head", json=task | {"seed": seed, "options": {"draws": 64}})

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def test_a_request_that_waits_past_its_deadline_is_dropped_before_sampling(bounded, images, labels) -> None:
    http = bounded(answer_seconds=1e-6)
    answer = http.post("/generate-head", json=json_task(images, labels))
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:ltdi:deadline-passed")
    assert 'ltdi_requests_rejected_total{reason="deadline"} 1.0' in http.get("/metrics").text


def test_a_bundle_that_generates_nan_is_our_fault_unless_the_baseline_may_stand_in(toy_folder) -> None:
    broken = load_bundle(toy_folder, device="cpu")
    server = Running(Settings(), [broken])
    try:
        broken.generator.codec.mean.fill_(float("nan"))
        failed = server.client.post("/generate-head", json={"support": PAIR, "options": {"fallback": "none"}})
        assert (failed.status_code, failed.json()["type"]) == (500, "urn:ltdi:generation-failed")
        stood_in = server.client.post("/generate-head", json={"support": PAIR})
        assert (stood_in.status_code, stood_in.headers["ltdi-method"]) == (200, "baseline")
        metrics = server.client.get("/metrics").text
        assert 'ltdi_artefact_check_failures_total{reason="generation-failed"} 1.0' in metrics
        assert "ltdi_fallbacks_total{" in metrics
    finally:
        server.stop()


def test_a_fault_of_ours_is_a_500_without_a_word_of_what_went_wrong(toy_folder) -> None:
    broken = load_bundle(toy_folder, device="cpu")
    server = Running(Settings(), [broken])
    try:
        broken.generator.centre = torch.zeros(3)
        failed = server.client.post("/generate-head", json={"support": PAIR})
        assert (failed.status_code, failed.json()["type"]) == (500, "urn:ltdi:fault")
        assert failed.json()["request_id"] == failed.headers["x-request-id"]
        assert "tensor" not in failed.text and "Traceback" not in failed.text
        assert server.client.get("/livez").status_code == 200
    finally:
        server.stop()


def test_the_service_still_answers_after_every_error(http, images, labels) -> None:
    started = time.monotonic()
    assert http.post("/generate-head", json=json_task(images, labels, seed=9)).status_code == 200
    assert time.monotonic() - started < 10
