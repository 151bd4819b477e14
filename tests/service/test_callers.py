"""What callers do at odd times: leaving early, asking while the service stops, and what the log keeps of them."""

from __future__ import annotations

import asyncio
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
from pathlib import Path

import httpx
import pytest
import torch

from service.app import JsonLines, create_app
from service.commands import Server
from service.jobs import Job
from service.load import Serving
from service.settings import Settings
from tests.service.conftest import Running, json_task
from tests.service.test_worker import Gate, soon


def wait_for(condition: object, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return met


def test_work_of_a_caller_who_left_is_dropped_and_counted(running: Running, images, labels) -> None:
    gate, worker = Gate(), running.app.state.service.worker
    gate.hold(worker)
    body = json.dumps(json_task(images, labels, seed=4242)).encode()
    address = running.client.base_url.host, running.client.base_url.port
    with socket.create_connection(address, timeout=5) as wire:
        head = (
            f"POST /generate-head HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        wire.sendall(head.encode() + b"\r\n\r\n" + body)
        assert wait_for(lambda: worker.depth == 1)
    assert wait_for(lambda: worker.depth == 0)
    gate.release()
    assert wait_for(lambda: 'reason="client_gone"' in running.client.get("/metrics").text)


def test_a_full_queue_refuses_large_bodies_unread_and_answers_what_is_cached(toy, images, labels) -> None:
    server = Running(Settings(queue_length=1), [toy])
    gate, worker = Gate(), server.app.state.service.worker
    task = json_task(images, labels)
    assert server.client.post("/generate-head", json=task).headers["ltdi-cache"] == "miss"
    gate.hold(worker)
    worker.put(Job(lambda note: None, None, soon()))
    try:
        started = time.monotonic()
        no_json = {"content": b" " * 100_000, "headers": {"Content-Type": "application/json"}}
        refused = server.client.post("/generate-head", **no_json)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert time.monotonic() - started > 0.2
        assert server.client.post("/generate-head", json=task).headers["ltdi-cache"] == "hit"
        assert server.client.post("/generate-head", json=json_task(images, labels, seed=1)).status_code == 429
        threading.Timer(0.1, gate.release).start()
        assert server.client.post("/generate-head", json=json_task(images, labels, seed=2)).status_code == 200
    finally:
        gate.release()
        server.stop()


def test_a_large_body_that_comes_while_the_service_stops_is_read_and_refused(running: Running) -> None:
    state, body = running.app.state.service, b"x" * 8_000_000
    address = running.client.base_url.host, running.client.base_url.port
    state.draining = True
    try:
        with socket.create_connection(address, timeout=10) as wire:
            wire.sendall(f"POST /generate-head HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b"".join(iter(lambda: wire.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503") and b"urn:ltdi:draining" in answer
    finally:
        state.draining = False


@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.5, 2.0])
def test_a_stop_while_bundles_are_loaded_ends_with_exit_code_0(seconds: float) -> None:
    with Serving(bundle="omniglot,minilm,any-embedding", leave_seconds=0) as server:
        time.sleep(seconds)  # the first is ready; the others follow
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert server.last_words()["message"] == "stopped"


def test_stopping_gives_work_in_hand_what_is_left_of_its_time_and_no_more(toy) -> None:
    state, gate = create_app(Settings(leave_seconds=0, drain_seconds=0.8), [toy]).state.service, Gate()
    state.worker.start()
    gate.hold(state.worker)
    try:
        state.leave()
        time.sleep(0.6)
        started = time.monotonic()
        asyncio.run(state.drain())
        assert 0.05 < time.monotonic() - started < 0.6
    finally:
        gate.release()


def test_an_answer_while_the_service_stops_closes_its_connection(running: Running) -> None:
    state = running.app.state.service
    assert "close" not in running.client.get("/livez").headers.get("connection", "")
    state.draining = True
    try:
        assert running.client.get("/livez").headers["connection"] == "close"
    finally:
        state.draining = False


def test_requests_that_come_while_the_service_stops_are_503(running: Running, images, labels) -> None:
    state = running.app.state.service
    state.draining = True
    try:
        answer = running.client.post("/generate-head", json=json_task(images, labels))
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:ltdi:draining")
        assert answer.headers["retry-after"]
        assert running.client.get("/readyz").status_code == 503
        assert running.client.get("/livez").status_code == 200
    finally:
        state.draining = False


def test_the_log_holds_no_label_and_no_message_of_a_fault(running: Running) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("ltdi.service")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        support = [{"label": name, "features": [0.1] * 256} for name in ("secret-a", "secret-b")]
        running.client.post("/generate-head", json={"support": support, "seed": 31}, headers={"X-Request-Id": "log-1"})
        running.client.post("/generate-head", json={"support": support[:1]}, headers={"X-Request-Id": "log-2"})
        assert wait_for(lambda: "log-2" in written.getvalue())
        try:
            raise KeyError("secret-c")
        except KeyError:
            logger.exception("fault")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    by_request = {line.get("request_id"): line for line in lines}
    assert (by_request["log-1"]["code"], by_request["log-2"]["code"]) == (200, 422)
    assert {"request_id", "route", "decode_seconds", "sample_seconds"} <= set(by_request["log-1"])
    assert lines[-1]["error"] == "KeyError" and "test_callers.py" in lines[-1]["at"][0]
    assert "secret" not in written.getvalue()


def test_health_answers_while_the_inference_thread_is_busy(running: Running) -> None:
    gate = Gate()
    gate.hold(running.app.state.service.worker)
    try:
        assert running.client.get("/livez").status_code == running.client.get("/readyz").status_code == 200
    finally:
        gate.release()


def test_the_inference_thread_computes_on_one_core(running: Running) -> None:
    job = Job(lambda note: torch.get_num_threads(), None, soon())
    running.app.state.service.worker.put(job)
    assert job.future.result(10) == 1


def test_sigterm_lets_the_work_in_hand_finish(toy_folder: Path) -> None:
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", str(toy_folder)]
    task = json_task(torch.randint(0, 99, (120, 28, 28), dtype=torch.uint8), [f"c{i % 60}" for i in range(120)])
    answers: list[httpx.Response] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        assert wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200, 20)
        body = task | {"options": {"draws": 64}}
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/generate-head", json=body, timeout=60))
        )
        asking.start()
        assert wait_for(lambda: "ltdi_requests_in_flight 2.0" in httpx.get(f"{url}/metrics").text, 20)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(timeout=60) == 0
        asking.join(10)
    assert answers[0].status_code == 200


def test_connections_that_stand_in_line_when_the_service_stops_listening_are_taken_and_no_further_one() -> None:
    async def stop() -> None:
        server = object.__new__(Server)
        server.servers = [await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)]
        address = server.servers[0].sockets[0].getsockname()
        callers = [socket.create_connection(address, timeout=2) for _ in range(5)]  # this loop has not taken them yet
        taken = server._last_connections()
        assert {one.getpeername() for one in taken} == {one.getsockname() for one in callers}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=2)
        for one in (*taken, *callers):
            one.close()

    asyncio.run(stop())
