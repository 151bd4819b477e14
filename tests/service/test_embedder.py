"""The service beside a real embedding server: texts where the bundle takes features, and each way to fail."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from starlette.responses import JSONResponse, Response

from ltdi import Bundle, load_head
from ltdi.errors import InvalidConfig
from service.app import create_app
from service.client import LtDiClient
from service.settings import Settings
from tests.embedder import SIZE, Embedder, embedder, ngrams
from tests.service.conftest import Running
from tests.service.test_text import CLASSES, LOG, NAMES_AND_LOG

TASK = NAMES_AND_LOG | {"model": "toy-features"}
KEY = "hush-hush"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Embedder]:
    with embedder() as server:
        yield server


@pytest.fixture(scope="module")
def server(toy: Bundle, toy_features: Bundle, endpoint: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    key = tmp_path_factory.mktemp("keys") / "embedder"
    key.write_text(KEY + "\n")
    settings = Settings(
        embedder_url=endpoint.url, embedder_model="n-grams", embedder_key_file=str(key), embedder_retries=1, embedder_batch=4,
        cache_items=16,
    )  # fmt: skip
    made = Running(settings, [toy, toy_features])
    while not all(model["state"] == "ready" for model in made.client.get("/models").json()["models"]):
        time.sleep(0.05)
    yield made
    made.stop()


@pytest.fixture
def served(server: Running, endpoint: Embedder) -> httpx.Client:
    endpoint.reset()
    return server.client


@pytest.fixture
def beside(toy_features: Bundle, endpoint: Embedder) -> Iterator[Callable[..., httpx.Client]]:
    servers = []

    def start(**settings: object) -> httpx.Client:
        servers.append(Running(Settings(**settings), [toy_features]))
        return servers[-1].client

    yield start
    endpoint.held = False
    for one in servers:
        one.stop()


def embeds(lines: str, model: str = "toy-features") -> int:
    """How often stage `embed` was counted."""
    found = re.search(rf'^ltdi_stage_duration_seconds_count{{model="{model}",stage="embed"}} (\S+)', lines, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_names_and_a_log_make_a_head_through_the_endpoint(served: httpx.Client, endpoint: Embedder, toy_features: Bundle) -> None:
    answer = served.post("/generate-head", json=TASK)
    assert answer.status_code == 200, answer.text
    head = load_head(answer.content)
    assert head.labels == [one["label"] for one in CLASSES] and head.feature_size == SIZE
    assert head.metadata["body"] == "remote:n-grams"
    assert sorted(endpoint.texts) == sorted([*LOG, *(one["description"] for one in CLASSES)])
    assert set(endpoint.keys) == {f"Bearer {KEY}"} and {call["model"] for call in endpoint.calls} == {"n-grams"}
    assert all(len(call["input"]) <= 4 for call in endpoint.calls)
    assert "embed;dur=" in answer.headers["Server-Timing"]
    again = served.post("/generate-head", json=TASK)
    assert again.content == answer.content and again.headers["LtDi-Cache"] == "hit"
    assert len(endpoint.calls) == 3


def test_the_client_and_predictions_of_texts(served: httpx.Client) -> None:
    client = LtDiClient(str(served.base_url))
    head = client.generate_head(
        ["where is my money"], ["refund"], model="toy-features", unlabelled=LOG,
        descriptions={one["label"]: one["description"] for one in CLASSES},
    )  # fmt: skip
    features = client.embed(["a stolen card"], model="toy-features")
    assert torch.allclose(features, torch.from_numpy(ngrams(["a stolen card"])).float())
    etag = served.post("/generate-head", json=TASK).headers["ETag"]
    found = served.post("/predict", json={"artefact": etag, "queries": [{"text": line} for line in LOG]}).json()
    assert len(found["predictions"]) == len(LOG) and set(found["labels"]) == set(head.labels)


def test_features_are_taken_as_before_and_nothing_is_sent(served: httpx.Client, endpoint: Embedder, toy_features: Bundle) -> None:
    rows, labels = torch.eye(6)[:4], ["a", "a", "b", "b"]
    support = [{"label": label, "features": row} for label, row in zip(labels, rows.tolist(), strict=True)]
    answer = served.post("/generate-head", json={"model": "toy-features", "support": support})
    assert answer.content == toy_features.generate(rows, labels).to_bytes()
    assert endpoint.calls == []


def test_embed_as_json_names_the_size(served: httpx.Client) -> None:
    asked = {"model": "toy-features", "inputs": [{"text": "x"}, {"text": "y"}]}
    answer = served.post("/embed", json=asked, headers={"Accept": "application/json"}).json()
    assert answer["feature_size"] == SIZE and [len(row) for row in answer["features"]] == [SIZE, SIZE]


def test_the_models_say_what_reads_the_texts_and_no_key(served: httpx.Client, endpoint: Embedder) -> None:
    served.post("/embed", json={"model": "toy-features", "inputs": [{"text": "x"}]})
    answer = served.get("/models/toy-features")
    body = answer.json()["body"]
    assert (body["kind"], body["protocol"], body["model"], body["feature_size"]) == ("remote", "openai", "n-grams", SIZE)
    assert answer.json()["input_kinds"] == ["texts", "features"]
    assert KEY not in answer.text and endpoint.url not in answer.text
    assert served.get("/models/toy").json()["body"]["kind"] == "images"
    assert 'body="remote"' in served.get("/metrics").text


FAILURES = [
    ("500", lambda: JSONResponse({"error": {"message": f"boom {KEY}"}}, 500), 502, "embedder-failed", "answered 500: boom ..."),
    ("429", lambda: Response("", 429, {"Retry-After": "60"}), 502, "embedder-failed", "answered 429"),
    ("401", lambda: JSONResponse({"error": "no"}, 401), 502, "embedder-failed", "refused the key"),
    ("not JSON", lambda: Response("<html>"), 502, "embedder-failed", "holds no embeddings"),
    ("wrong size", lambda: JSONResponse({"data": [{"index": 0, "embedding": [1.0]}]}), 502, "embedder-failed", "size 1"),
    ("too long", lambda: JSONResponse({"error": {"message": "maximum context length is 8 tokens"}}, 400), 422, "text-invalid",
     "8 tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("fail", "status", "code", "words"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_a_failure_of_the_endpoint_is_a_problem_that_says_what_it_said(
    served: httpx.Client, endpoint: Embedder, fail: Callable[[], Response], status: int, code: str, words: str
) -> None:
    served.post("/embed", json={"model": "toy-features", "inputs": [{"text": "x"}]})
    before, endpoint.fails = embeds(served.get("/metrics").text), [fail(), fail()]
    answer = served.post("/embed", json={"model": "toy-features", "inputs": [{"text": "x"}]})
    endpoint.fails = []
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:ltdi:{code}"), answer.text
    assert words in answer.json()["detail"] and KEY not in answer.text
    assert embeds(served.get("/metrics").text) == before + 1
    assert served.get("/readyz").status_code == 200


@pytest.mark.parametrize("settings", [{"embedder_seconds": 0.3, "embedder_retries": 1}, {"answer_seconds": 0.3}])
def test_an_endpoint_that_does_not_answer_is_504(
    beside: Callable[..., httpx.Client], endpoint: Embedder, settings: dict
) -> None:
    endpoint.reset()
    endpoint.held = True
    http = beside(**{"embedder_url": endpoint.url, "embedder_seconds": 60.0} | settings)
    answer = http.post("/generate-head", json=TASK)
    endpoint.held = False
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:ltdi:embedder-timeout")
    assert 'ltdi_requests_rejected_total{reason="deadline"} 1.0' in http.get("/metrics").text


def test_the_inference_thread_works_while_the_endpoint_is_slow(beside: Callable[..., httpx.Client], endpoint: Embedder) -> None:
    endpoint.reset()
    endpoint.held = True
    http, codes = beside(embedder_url=endpoint.url, embedder_seconds=60.0), []
    asking = threading.Thread(target=lambda: codes.append(ask(http, TASK)))
    asking.start()
    endpoint.wait_until_busy()
    support = [{"label": label, "features": [float(label == "a"), 1.0]} for label in ("a", "b")]
    assert [ask(http, {"support": support, "seed": seed}) for seed in range(3)] == [200, 200, 200]
    assert endpoint.busy and not codes
    endpoint.held = False
    asking.join(30)
    assert codes == [200]


def ask(http: httpx.Client, task: dict) -> int:
    """The status of a task sent over a connection of its own."""
    return httpx.post(f"{http.base_url}/generate-head", json=task, timeout=60).status_code


def test_a_caller_who_leaves_takes_the_calls_that_have_not_begun_along(beside: Callable[..., httpx.Client], endpoint: Embedder) -> None:
    endpoint.reset()
    endpoint.held = True
    http = beside(embedder_url=endpoint.url, embedder_seconds=60.0, embedder_batch=1, embedder_concurrency=1)
    with pytest.raises(httpx.ReadTimeout):
        http.post("/generate-head", json=TASK, timeout=1.0)
    until = time.monotonic() + 20
    while 'reason="client_gone"} 1.0' not in http.get("/metrics").text and time.monotonic() < until:
        time.sleep(0.05)
    endpoint.held = False
    assert http.post("/embed", json={"inputs": [{"text": "who comes next"}]}).status_code == 200
    assert len(endpoint.calls) == 2 and endpoint.texts[-1] == "who comes next"


def test_where_one_call_fails_those_that_have_not_begun_are_given_up(beside: Callable[..., httpx.Client], endpoint: Embedder) -> None:
    endpoint.reset()
    http = beside(embedder_url=endpoint.url, embedder_batch=1, embedder_concurrency=1)
    endpoint.fails = [JSONResponse({"error": {"message": "no such model"}}, 404)]
    assert ask(http, TASK) == 502
    assert http.post("/embed", json={"inputs": [{"text": "who comes next"}]}).status_code == 200
    assert len(endpoint.calls) <= 5 and endpoint.texts[-1] == "who comes next"


def test_more_requests_than_may_wait_for_the_endpoint_are_refused(beside: Callable[..., httpx.Client], endpoint: Embedder) -> None:
    endpoint.reset()
    endpoint.held = True
    http, codes = beside(embedder_url=endpoint.url, embedder_seconds=60.0, queue_length=1), []
    first = threading.Thread(target=lambda: codes.append(ask(http, TASK)))
    first.start()
    endpoint.wait_until_busy()
    answer = http.post("/embed", json={"inputs": [{"text": "x"}]})
    assert (answer.status_code, answer.json()["type"]) == (429, "urn:ltdi:queue-full") and answer.headers["Retry-After"]
    assert answer.elapsed.total_seconds() > 0.2  # who asks again at once does not spin
    endpoint.held = False
    first.join(30)
    assert codes == [200]


def test_without_the_endpoint_the_service_is_ready_and_takes_features(beside: Callable[..., httpx.Client]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        http = beside(embedder_url=f"http://127.0.0.1:{free.getsockname()[1]}", embedder_protocol="tei", embedder_retries=0)
    answer = http.post("/generate-head", json=TASK)
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:ltdi:embedder-failed")
    assert "cannot be reached" in answer.json()["detail"]
    support = [{"label": label, "features": [float(label == "a"), 1.0]} for label in ("a", "b")]
    assert http.post("/generate-head", json={"support": support}).status_code == 200


def test_truncate_is_passed_on_to_an_endpoint_that_knows_it(beside: Callable[..., httpx.Client], endpoint: Embedder) -> None:
    endpoint.reset()
    http = beside(embedder_url=endpoint.url, embedder_protocol="tei")
    task = TASK | {"unlabelled": [{"text": "money " * 300}, {"text": "short"}]}
    refused = http.post("/generate-head", json=task)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:ltdi:text-invalid")
    assert http.post("/generate-head", json=task | {"options": {"truncate": True}}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"embedder_url": "nowhere"}, "http://HOST:PORT"), ({"embedder_url": "http://h", "embedder_key_file": "/none"}, "'none'")],
)
def test_impossible_settings_stop_the_start(settings: dict, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        create_app(Settings(**settings))


def test_the_command_stops_with_the_reason_and_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--embedder-url", "ftp://h"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "embedder's url" in done.stderr and "Traceback" not in done.stderr


def test_a_reload_reads_the_key_of_the_endpoint_again(toy_features: Bundle, endpoint: Embedder, tmp_path: Path) -> None:
    key = tmp_path / "embedder"
    key.write_text("first-key")
    settings = Settings(embedder_url=endpoint.url, embedder_key_file=str(key))
    server = Running(settings, [toy_features])
    try:
        endpoint.reset()
        asked = {"inputs": [{"text": "where is my money"}]}
        assert server.client.post("/embed", json=asked).status_code == 200
        key.write_text("second-key")
        assert server.app.state.service.reload() == []
        assert server.client.post("/embed", json=asked).status_code == 200
        assert endpoint.keys == ["Bearer first-key", "Bearer second-key"]
        key.write_text("")
        (failed,) = server.app.state.service.reload()
        assert "embedder_key_file" in failed and "stay as they were" in failed
        assert server.client.post("/embed", json=asked).status_code == 200
        assert endpoint.keys[-1] == "Bearer second-key"
    finally:
        server.stop()
