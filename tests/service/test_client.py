"""Both clients: against the real service, and against a small server that first refuses."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from ltdi import Bundle
from service.client import AsyncLtDiClient, LtDiClient, ServiceError
from service.settings import Settings
from tests.service.conftest import Running
from tests.test_readme import block

Ask = Callable[..., Any]
PROBLEM = {"type": "urn:ltdi:queue-full", "title": "The queue is full", "status": 429, "detail": "send it again"}


def blocking(url: str, method: str, *arguments: Any, settings: dict | None = None, **options: Any) -> Any:
    with LtDiClient(url, **(settings or {})) as client:
        return getattr(client, method)(*arguments, **options)


def asynchronous(url: str, method: str, *arguments: Any, settings: dict | None = None, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncLtDiClient(url, **(settings or {})) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(ask())


@pytest.fixture(params=[blocking, asynchronous])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


class Scripted:
    """A server that gives prepared answers in turn, then the list of no models.

    Args:
        answers: status and `Retry-After` of each; status 0 hangs up once the request has been read.
        port: 0 for a free one.
    """

    def __init__(self, *answers: tuple[int, str | None], port: int = 0) -> None:
        self.left, self.seen = list(answers), []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script.seen.append((time.monotonic(), dict(self.headers)))
                status, after = script.left.pop(0) if script.left else (200, None)
                if not status:
                    self.close_connection = True
                    return
                content = json.dumps({"models": []} if status == 200 else PROBLEM | {"status": status}).encode()
                self.send_response(status)
                if after is not None:
                    self.send_header("Retry-After", after)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def pauses(self) -> list[float]:
        """Seconds between requests."""
        times = [at for at, _ in self.seen]
        return [later - earlier for earlier, later in pairwise(times)]


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    started: list[Scripted] = []

    def start(*answers: tuple[int, str | None], **options: int) -> Scripted:
        started.append(Scripted(*answers, **options))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


def test_both_clients_do_what_the_library_does(ask: Ask, running: Running, toy: Bundle, images, labels) -> None:
    url, features = str(running.client.base_url), toy.embed(images)
    head = toy.generate(images, labels, seed=3)
    assert ask(url, "generate_head", images, labels, seed=3).to_bytes() == head.to_bytes()
    assert ask(url, "generate_head", features.numpy(), labels, seed=3, model="toy").labels == ["ka", "ra", "ta"]
    assert torch.equal(ask(url, "embed", images), features)
    assert ask(url, "predict", head, features)["predictions"] == head.predict(features)
    assert [m["name"] for m in ask(url, "models")] == ["toy", "toy-paper"]
    assert ask(url, "model", "toy")["digest"] == toy.digest and ask(url, "ready") is True


def test_options_reach_the_service_and_unknown_ones_are_refused(ask: Ask, running: Running, toy, images, labels) -> None:
    url = str(running.client.base_url)
    head = ask(url, "generate_head", images, labels, classes=["ta", "ka", "ra"], draws=2, fallback="none", check=False)
    assert head.to_bytes() == toy.generate(
        images, labels, classes=["ta", "ka", "ra"], draws=2, fallback="none", check=False
    ).to_bytes()
    with pytest.raises(ServiceError, match="did you mean 'draws'"):
        ask(url, "generate_head", images, labels, draw=2)


def test_an_error_keeps_its_problem(ask: Ask, running: Running, images, labels) -> None:
    with pytest.raises(ServiceError, match="at least two") as caught:
        ask(str(running.client.base_url), "generate_head", images[:4], labels[:4])
    assert caught.value.problem["type"] == "urn:ltdi:classes-too-few" and caught.value.problem["request_id"]
    with pytest.raises(ValueError, match="not among `classes`"):
        ask(str(running.client.base_url), "generate_head", images, labels, classes=["ka"])


def test_many_heads_at_once_by_the_asynchronous_client(running: Running, toy: Bundle, images, labels) -> None:
    async def ask() -> list[bytes]:
        async with AsyncLtDiClient(str(running.client.base_url)) as client:
            heads = await asyncio.gather(*(client.generate_head(images, labels, seed=500 + i) for i in range(12)))
        return [head.to_bytes() for head in heads]

    assert asyncio.run(ask()) == [toy.generate(images, labels, seed=500 + i).to_bytes() for i in range(12)]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_after_the_time_it_names(ask: Ask, scripted, status: int) -> None:
    server = scripted((status, "1"))
    assert ask(server.url, "models") == []
    assert len(server.seen) == 2 and server.pauses()[0] >= 0.95


def test_no_wait_is_longer_than_max_wait(ask: Ask, scripted) -> None:
    server = scripted((429, "3600"), (503, "Fri, 31 Dec 2999 23:59:59 GMT"))
    assert ask(server.url, "models", settings={"max_wait": 0.1}) == []
    assert len(server.seen) == 3 and all(0.09 <= pause < 10 for pause in server.pauses())


@pytest.mark.parametrize("status", [400, 401, 404, 408, 422, 500, 502, 504])
def test_no_other_answer_is_asked_for_again(ask: Ask, scripted, status: int) -> None:
    server = scripted((status, "0"))
    with pytest.raises(ServiceError) as caught:
        ask(server.url, "models")
    assert len(server.seen) == 1 and caught.value.problem["status"] == status


@pytest.mark.parametrize(("retries", "requests"), [(0, 1), (1, 2), (2, 3)])
def test_it_gives_up_after_as_many_retries_as_were_chosen(ask: Ask, scripted, retries: int, requests: int) -> None:
    server = scripted(*[(429, None)] * 5)
    with pytest.raises(ServiceError, match="429 The queue is full: send it again"):
        ask(server.url, "models", settings={"retries": retries, "max_wait": 0.05})
    assert len(server.seen) == requests


def test_a_service_that_is_not_up_yet_is_tried_again(ask: Ask, scripted) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}", "ready") is False
    with pytest.raises(httpx.ConnectError):
        ask(f"http://127.0.0.1:{port}", "models", settings={"retries": 1, "max_wait": 0.01})
    late = threading.Timer(0.3, lambda: scripted(port=port))
    late.start()
    assert ask(f"http://127.0.0.1:{port}", "models", settings={"retries": 200, "max_wait": 0.2}) == []
    late.join()


def test_a_request_that_was_sent_is_not_sent_again_when_the_connection_breaks(ask: Ask, scripted) -> None:
    server = scripted((0, None))
    with pytest.raises(httpx.RemoteProtocolError):
        ask(server.url, "models")
    assert len(server.seen) == 1


def test_a_key_is_sent_as_a_bearer_token(ask: Ask, scripted) -> None:
    server = scripted()
    ask(server.url, "models", settings={"api_key": "secret"})
    assert server.seen[0][1]["Authorization"] == "Bearer secret"


def test_images_for_a_model_that_reads_none_are_refused_in_words(ask: Ask, toy_features: Bundle, images, labels) -> None:
    server = Running(Settings(), [toy_features])
    try:
        with pytest.raises(ValueError, match="'toy-features' reads no images"):
            ask(str(server.client.base_url), "generate_head", images, labels)
    finally:
        server.stop()


def test_the_readme_s_clients_run_as_shown(toy: Bundle, toy_text: Bundle, images, labels) -> None:
    server = Running(Settings(), [toy, toy_text])
    try:
        code = block("AsyncLtDiClient").replace("http://localhost:8080", str(server.client.base_url))
        names = {
            "images": images, "labels": labels, "texts": ["x"] * 12, "names": {"ka": "a", "ra": "b", "ta": "c"},
            "log_lines": ["a line", "another"],
        }  # fmt: skip
        exec(code.replace("minilm", "toy-text"), names)
        tasks = [SimpleNamespace(images=images, labels=labels)] * 3
        assert names["head"].labels == ["ka", "ra", "ta"]
        assert [head.to_bytes() for head in asyncio.run(names["heads_of"](tasks))] == [toy.generate(images, labels).to_bytes()] * 3
    finally:
        server.stop()
