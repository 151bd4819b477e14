"""Traces, as a collector gets them over HTTP."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from ltdi import Bundle
from ltdi.errors import InvalidConfig
from service.app import JsonLines, create_app
from service.settings import Settings
from tests.service.conftest import json_task
from tests.service.test_callers import wait_for

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(ThreadingHTTPServer):
    """Keeps the spans that are sent to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.paths: set[str] = set()
        self.spans: list = []
        self.resources: dict[str, str] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]


class Receiver(BaseHTTPRequestHandler):
    """Answers the exporter."""

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.add(self.path)
        for group in sent.resource_spans:
            self.server.resources |= {a.key: a.value.string_value for a in group.resource.attributes}
            self.server.spans += [span for scope in group.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `traces` is not installed")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `traces` is not installed")
    made = Collector()
    yield made
    made.shutdown()


def ask(collector: Collector, toy: Bundle, *requests: tuple[str, str, dict]) -> list[httpx.Response]:
    """Answers of a service that has sent its spans when this returns."""
    with TestClient(create_app(Settings(otlp_endpoint=collector.endpoint), [toy])) as http:
        assert wait_for(lambda: http.get("/readyz").status_code == 200)
        return [http.request(method, path, **options) for method, path, options in requests]


def attributes(span) -> dict[str, object]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_is_a_span_with_one_below_it_for_each_stage(collector, toy, images, labels) -> None:
    (answer,) = ask(collector, toy, ("POST", "/generate-head", {"json": json_task(images, labels)}))
    assert collector.paths == {"/v1/traces"} and collector.resources["service.name"] == "ltdi"
    (span,) = collector.named("POST /generate-head")
    assert attributes(span) == {
        "http.request.method": "POST", "http.route": "/generate-head", "http.response.status_code": 200,
        "url.scheme": "http", "ltdi.request_id": answer.headers["x-request-id"],
    }  # fmt: skip
    stages = [child for child in collector.spans if child.parent_span_id == span.span_id]
    assert [child.name for child in stages] == ["decode", "queue", "embed", "sample", "check", "encode"]
    assert {child.trace_id for child in stages} == {span.trace_id}
    timed = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
    for child in stages:
        assert (child.end_time_unix_nano - child.start_time_unix_nano) / 1e6 == pytest.approx(float(timed[child.name]), abs=0.002)
        assert span.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano <= span.end_time_unix_nano


def test_a_trace_that_the_caller_began_goes_on_and_one_that_is_not_sampled_is_left_out(collector, toy) -> None:
    unsampled = PARENT[:-2] + "00"
    ask(
        collector, toy,
        ("GET", "/models", {"headers": {"traceparent": PARENT}}),
        ("GET", "/models/toy", {"headers": {"traceparent": unsampled}}),
        ("GET", "/artefacts/0", {"headers": {"traceparent": "no such thing"}}),
    )  # fmt: skip
    (span,) = collector.named("GET /models")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert not collector.named("GET /models/{name}")
    (fresh,) = collector.named("GET /artefacts/{etag}")
    assert not fresh.parent_span_id


def test_only_faults_are_errors_and_no_span_holds_what_a_caller_sent(collector, toy_folder) -> None:
    from ltdi import load_bundle

    broken = load_bundle(toy_folder, device="cpu")
    pair = [{"label": name, "features": [0.1] * 256} for name in ("secret-a", "secret-b")]
    with TestClient(create_app(Settings(otlp_endpoint=collector.endpoint), [broken])) as http:
        assert wait_for(lambda: http.get("/readyz").status_code == 200)
        http.post("/generate-head", json={"support": pair[:1]}, headers={"X-API-Key": "secret-key"})
        broken.generator.centre = None
        http.post("/generate-head", json={"support": pair})
        http.get("/secret-path")
        http.request("SECRET", "/models")
    by_code = {attributes(span)["http.response.status_code"]: span for span in collector.spans if span.kind == 2}
    assert by_code[500].status.code == 2 and attributes(by_code[500])["error.type"] == "500"
    assert by_code[422].status.code == by_code[404].status.code == 0
    assert (by_code[404].name, by_code[405].name.split()[0]) == ("GET", "_OTHER")
    assert "secret" not in str(collector.spans).lower()


def test_the_log_names_the_trace(collector, toy) -> None:
    written = io.StringIO()
    handler, logger = logging.StreamHandler(written), logging.getLogger("ltdi.service")
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        ask(collector, toy, ("GET", "/models", {"headers": {"traceparent": PARENT}}))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (line,) = [line for line in lines if line.get("route") == "/models"]
    assert line["trace_id"] == PARENT[3:35]


def test_a_collector_that_is_away_neither_slows_answers_nor_keeps_the_process(toy_folder: Path, collector) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", str(toy_folder)]
        command += ["--otlp-endpoint", f"http://127.0.0.1:{taken.getsockname()[1]}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            url = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            assert wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200, 30)
            assert httpx.get(f"{url}/models", timeout=5).status_code == 200
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            lines = [json.loads(line) for line in process.stdout]
            assert process.wait(timeout=60) == 0
            assert time.monotonic() - begun < 20
    assert "opentelemetry" in {line["logger"].split(".")[0] for line in lines}


def test_the_setting_without_the_extra_stops_the_start_with_the_remedy(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'ltdi\[traces\]'"):
        create_app(Settings(otlp_endpoint="http://127.0.0.1:4318"), [toy])
    create_app(Settings(), [toy])


def test_an_endpoint_that_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="otlp_endpoint"):
        Settings(otlp_endpoint="collector:4318")
