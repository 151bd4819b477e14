"""Slow and rude callers, on raw sockets to `ltdi serve` with short limits."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

HEAD_SECONDS, BODY_SECONDS, SLACK = 0.8, 0.6, 5.0
SUPPORT = [{"label": label, "features": [number] * 256} for label, number in (("a", 0.5), ("b", 0.1))]
TASK = json.dumps({"support": SUPPORT}).encode()
POST = b"POST /generate-head HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
Address = tuple[str, int]


@pytest.fixture(scope="module")
def log() -> list[str]:
    return []


@pytest.fixture(scope="module")
def address(toy_folder: Path, log: list[str]) -> Iterator[Address]:
    command = [
        sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", str(toy_folder),
        "--head-seconds", str(HEAD_SECONDS), "--body-seconds", str(BODY_SECONDS), "--max-body-bytes", "100000",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        reading = threading.Thread(target=lambda: log.extend(process.stdout), daemon=True)
        reading.start()
        until = time.monotonic() + 30
        while httpx.get(f"{url}/readyz").status_code != 200 and time.monotonic() < until:
            time.sleep(0.05)
        yield "127.0.0.1", int(url.rpartition(":")[2])
        process.terminate()
        reading.join(20)


@pytest.fixture(autouse=True)
def served_on(address: Address, log: list[str]) -> Iterator[None]:
    """Whatever a test did, others are answered, and the log tells of no fault."""
    before = len(log)
    yield
    assert httpx.get(f"http://{address[0]}:{address[1]}/livez", timeout=5).status_code == 200
    assert not [line for line in log[before:] if '"error"' in line or "Traceback" in line]


def said(wire: socket.socket) -> bytes:
    """All that the server says until it closes, ten seconds long at most."""
    answer, until = b"", time.monotonic() + 10
    try:
        while time.monotonic() < until and (part := wire.recv(65536)):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def tell(address: Address, content: bytes, *, close: bool = False) -> bytes:
    """What the server answers to these bytes until it closes the connection."""
    with socket.create_connection(address, timeout=10) as wire:
        wire.sendall(content)
        if close:
            wire.shutdown(socket.SHUT_WR)
        return said(wire)


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def problem(answer: bytes) -> str:
    """The code of the last problem in the answer."""
    return json.loads(answer[answer.rindex(b'{"type"') :])["type"].removeprefix("urn:ltdi:")


def sized(content: bytes, length: int | None = None) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % (len(content) if length is None else length) + content


def test_a_head_that_comes_byte_by_byte_is_408_in_time(address: Address) -> None:
    started = time.monotonic()
    with socket.create_connection(address, timeout=10) as wire:
        for byte in GET:
            if time.monotonic() - started > HEAD_SECONDS + SLACK:
                break
            try:
                wire.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.1)
        assert time.monotonic() - started < HEAD_SECONDS + SLACK / 2
    answer = tell(address, GET)
    assert statuses(answer) == [408] and problem(answer) == "body-timeout"


def test_a_second_head_on_a_connection_has_no_more_time_than_the_first(address: Address) -> None:
    started = time.monotonic()
    answer = tell(address, GET + b"\r\n" + GET)
    assert statuses(answer) == [200, 408]
    assert time.monotonic() - started < HEAD_SECONDS + SLACK


def test_a_connection_that_says_nothing_is_closed_without_an_answer(address: Address) -> None:
    started = time.monotonic()
    assert tell(address, b"") == b""
    assert time.monotonic() - started < HEAD_SECONDS + SLACK


def test_a_body_that_stalls_is_408(address: Address) -> None:
    started = time.monotonic()
    answer = tell(address, sized(TASK[:50], len(TASK)))
    assert statuses(answer) == [408] and problem(answer) == "body-timeout"
    assert time.monotonic() - started < BODY_SECONDS + SLACK


def test_a_body_that_drips_is_408_all_the_same(address: Address) -> None:
    started = time.monotonic()
    with socket.create_connection(address, timeout=10) as wire:
        wire.sendall(sized(b"", len(TASK)))
        try:
            while time.monotonic() - started < BODY_SECONDS + SLACK:
                wire.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            pass
    assert time.monotonic() - started < BODY_SECONDS + SLACK


def test_a_body_longer_than_its_length_is_answered_and_its_rest_is_400(address: Address) -> None:
    answer = tell(address, sized(TASK + b"more\r\n\r\n", len(TASK)))
    assert statuses(answer) == [200, 400] and problem(answer) == "body-malformed"


def test_a_caller_who_leaves_amid_a_body_is_counted_as_gone(address: Address) -> None:
    tell(address, sized(TASK[:50], len(TASK)), close=True)
    metrics = httpx.get(f"http://{address[0]}:{address[1]}/metrics").text
    assert 'ltdi_requests_rejected_total{reason="client_gone"}' in metrics
    assert 'code="500"' not in metrics


def test_a_body_in_chunks_needs_no_length_and_has_the_same_bound(address: Address) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert statuses(tell(address, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(TASK), TASK))) == [200]
    answer = tell(address, head + b"%x\r\n%s\r\n" % (100_001, b" " * 100_001))
    assert statuses(answer) == [413] and problem(answer) == "body-too-large"


def test_chunks_that_are_none_are_400(address: Address) -> None:
    answer = tell(address, POST + b"Transfer-Encoding: chunked\r\n\r\nnone\r\n")
    assert statuses(answer) == [400] and problem(answer) == "body-malformed"


def test_a_post_with_neither_length_nor_chunks_has_no_body(address: Address) -> None:
    answer = tell(address, POST + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [400] and problem(answer) == "body-malformed"


@pytest.mark.parametrize("lines", [b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: -1\r\n", b"Content-Length: 1e9\r\n"])
def test_a_length_that_is_none_is_400(address: Address, lines: bytes) -> None:
    answer = tell(address, POST + lines + b"\r\n12345")
    assert statuses(answer) == [400] and problem(answer) == "body-malformed"


def test_who_expects_100_continue_gets_it_or_the_refusal_before_the_body(address: Address) -> None:
    head = POST + b"Expect: 100-continue\r\nConnection: close\r\n"
    with socket.create_connection(address, timeout=10) as wire:
        wire.sendall(head + b"Content-Length: %d\r\n\r\n" % len(TASK))
        assert statuses(wire.recv(65536)) == [100]
        wire.sendall(TASK)
        assert statuses(said(wire)) == [200]
    assert statuses(tell(address, head + b"Content-Length: 100001\r\n\r\n")) == [413]


def test_who_is_refused_and_goes_on_sending_is_cut_off(address: Address) -> None:
    started = time.monotonic()
    with socket.create_connection(address, timeout=10) as wire:
        wire.sendall(sized(b"", 10**9))
        try:
            while time.monotonic() - started < HEAD_SECONDS + SLACK:
                wire.sendall(b" " * 1000)
                time.sleep(0.02)
        except OSError:
            pass
    assert time.monotonic() - started < HEAD_SECONDS + SLACK


def test_garbage_after_a_request_is_400(address: Address) -> None:
    answer = tell(address, GET + b"\r\n" + b"\x16\x03\x01 garbage\r\n\r\n")
    assert statuses(answer) == [200, 400] and problem(answer) == "body-malformed"


@pytest.mark.parametrize("content", [b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", b"GET\r\n\r\n", b"GET /livez HTTP/1.1\r\n\r\n", GET + b"no colon\r\n\r\n", GET + b"X: \0\r\n\r\n"])
def test_what_is_not_http_is_400(address: Address, content: bytes) -> None:
    answer = tell(address, content)
    assert statuses(answer) == [400] and problem(answer) == "body-malformed"


def test_http_1_0_is_answered_and_closed(address: Address) -> None:
    assert statuses(tell(address, b"GET /livez HTTP/1.0\r\n\r\n")) == [200]


@pytest.mark.parametrize(
    "content",
    [
        b"GET /" + b"x" * 66_000,
        GET + b"X-Long: " + b"x" * 66_000,
        GET + b"X: y\r\n" * 11_000,
        GET + b"Connection: close\r\n" + b"X: y\r\n" * 4_000 + b"\r\n",
    ],
    ids=["a line without end", "a header without end", "headers without end", "more headers than may be"],
)
def test_a_head_that_is_too_large_is_431(address: Address, content: bytes) -> None:
    answer = tell(address, content)  # little more than may be: a caller who goes on sending can lose the answer to a reset
    assert statuses(answer) == [431] and problem(answer) == "headers-too-large"


def test_a_hundred_idle_connections_keep_nobody_waiting(address: Address) -> None:
    idle = [socket.create_connection(address, timeout=10) for _ in range(100)]
    try:
        started = time.monotonic()
        assert statuses(tell(address, sized(TASK).replace(b"Host", b"Connection: close\r\nHost"))) == [200]
        assert time.monotonic() - started < SLACK
        assert all(said(wire) == b"" for wire in idle)
        assert time.monotonic() - started < HEAD_SECONDS + SLACK
    finally:
        for wire in idle:
            wire.close()


def test_a_caller_who_takes_no_answer_is_cut_off(address: Address) -> None:
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        wire.settimeout(10)
        wire.connect(address)
        wire.sendall((b"GET /models/toy/body HTTP/1.1\r\nHost: x\r\n\r\n") * 200)
        time.sleep(BODY_SECONDS + 1.5)
        got = len(said(wire))
    whole = len(httpx.get(f"http://{address[0]}:{address[1]}/models/toy/body").content)
    assert got < 200 * whole
