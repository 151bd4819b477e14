"""The reverse-proxy example under a real nginx, in front of the real service."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.problems import KINDS
from service.settings import Settings
from tests.docker.conftest import DOCKER, features_task, free_port, until

CONFIG = (DOCKER / "nginx.conf").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
Proxy = Callable[..., httpx.Client]


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """Starts nginx with the example's configuration before an address."""
    if NGINX is None:
        pytest.skip("nginx is not installed: make system-deps")
    started = []

    def start(upstream: str, **changes: str) -> httpx.Client:
        port, folder = free_port(), tmp_path / str(len(started))
        folder.mkdir()
        text = CONFIG.replace("server ltdi:8080", f"server {upstream}").replace("listen 8081", f"listen 127.0.0.1:{port}")
        text = text.replace("/tmp/", f"{folder}/").replace("access_log /dev/stdout", f"access_log {folder}/log")
        for name, value in changes.items():
            text, count = re.subn(rf"\b{name} \S+;", f"{name} {value};", text)
            assert count == 1, name
        (folder / "nginx.conf").write_text(text)
        command = [NGINX, "-c", str(folder / "nginx.conf"), "-g", "daemon off; user root;"]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        until(lambda: client.get("/metrics").status_code == 404 or started[-1].poll() is not None)
        assert started[-1].poll() is None, started[-1].stderr.read()
        return client

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=20)


def test_a_head_is_the_same_through_the_proxy_and_its_request_id_is_in_both_logs(proxy: Proxy, address: str, tmp_path: Path) -> None:
    http = proxy(address.removeprefix("http://"))
    through = http.post("/generate-head", json=features_task(), headers={"X-Request-Id": "mine-7"})
    direct = httpx.post(f"{address}/generate-head", json=features_task())
    assert through.status_code == 200 and through.content == direct.content
    assert "server-timing" in through.headers and through.headers["x-request-id"] == "mine-7"
    until(lambda: "mine-7" in (tmp_path / "0" / "log").read_text())
    lines = [json.loads(line) for line in (tmp_path / "0" / "log").read_text().splitlines()]
    assert [line["code"] for line in lines if line["request_id"] == "mine-7"] == [200]


def test_problems_of_the_service_pass_as_they_are(proxy: Proxy, address: str) -> None:
    answer = proxy(address.removeprefix("http://")).post("/generate-head", json={"model": "no-such-bundle", "support": []})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:ltdi:model-not-ready")
    assert answer.headers["retry-after"]


def test_metrics_and_administration_stay_inside(proxy: Proxy, address: str) -> None:
    http = proxy(address.removeprefix("http://"))
    assert [http.get(path).status_code for path in ("/metrics", "/admin/reload", "/readyz")] == [404, 404, 200]


def test_the_proxy_refuses_a_body_at_the_service_s_limit_with_the_service_s_problem(proxy: Proxy, address: str) -> None:
    assert f"client_max_body_size {Settings().max_body_bytes // 2**20}m;" in CONFIG
    http = proxy(address.removeprefix("http://"), client_max_body_size="64k")
    answer = http.post("/generate-head", content=b"x" * 2**17, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:ltdi:body-too-large")
    assert answer.headers["content-type"] == "application/problem+json"


def test_without_a_service_the_answer_says_when_to_come_back(proxy: Proxy) -> None:
    answer = proxy(f"127.0.0.1:{free_port()}").post("/generate-head", json=features_task())
    assert (answer.status_code, answer.json()["type"], answer.headers["retry-after"]) == (503, "urn:ltdi:not-ready", "5")


def test_every_problem_of_the_proxy_is_one_of_the_service_s() -> None:
    for code, status in re.findall(r'"type":"urn:ltdi:([a-z-]+)".*?"status":(\d+)', CONFIG):
        assert KINDS[code].status == int(status)


@pytest.mark.parametrize("begun", [b"POST /generate-head HTTP/1.1\r\nHost: a\r\n",
                                   b"POST /generate-head HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab"])  # fmt: skip
def test_a_caller_that_stalls_is_cut_off(proxy: Proxy, address: str, begun: bytes) -> None:
    http = proxy(address.removeprefix("http://"), client_header_timeout="1s", client_body_timeout="1s")
    started = time.monotonic()
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=30) as connection:
        connection.sendall(begun)
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    assert 0.5 < time.monotonic() - started < 20
    assert http.get("/readyz").status_code == 200


def test_one_address_holds_a_bounded_number_of_connections(proxy: Proxy, address: str) -> None:
    http = proxy(address.removeprefix("http://"))
    most = int(re.search(r"limit_conn addresses (\d+);", CONFIG)[1])
    held = [socket.create_connection((http.base_url.host, http.base_url.port)) for _ in range(most)]
    for connection in held:
        connection.sendall(b"POST /generate-head HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab")
    until(lambda: httpx.get(f"{http.base_url}/livez").status_code == 429)
    answer = httpx.get(f"{http.base_url}/livez")
    assert (answer.json()["type"], answer.headers["retry-after"]) == ("urn:ltdi:queue-full", "1")
    for connection in held:
        connection.close()
    until(lambda: httpx.get(f"{http.base_url}/livez").status_code == 200)
