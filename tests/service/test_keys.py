"""Keys: which requests need one, how a wrong one is answered, and what is kept of those who guess."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from ltdi import Bundle
from ltdi.errors import InvalidConfig
from service.app import JsonLines, create_app
from service.client import LtDiClient, ServiceError
from service.keys import Keys, Tries, network_of
from service.settings import Settings
from tests.service.conftest import Running, json_task

FIRST, SECOND, WRONG = "first-key-5f2c", "second-key-90ab", "wrong-key-1d7e"
KEYED = [
    ("POST", "/generate-head"), ("POST", "/embed"), ("POST", "/predict"), ("GET", "/models"), ("GET", "/models/toy"),
    ("GET", "/models/toy/body"), ("GET", "/artefacts/0"),
]  # fmt: skip
OPEN = ["/livez", "/readyz", "/health", "/metrics", "/", "/docs", "/openapi.json"]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\n{FIRST}\n  {SECOND}  \n")
    return file


@pytest.fixture
def keyed(bounded: Callable[..., httpx.Client], key_file: Path) -> Callable[..., httpx.Client]:
    return lambda **settings: bounded(keys_file=key_file, **settings)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_routes_that_work_or_tell_of_models_need_a_key_and_the_others_do_not(keyed) -> None:
    http = keyed()
    for method, path in KEYED:
        answer = http.request(method, path)
        assert (answer.status_code, answer.json()["type"]) == (401, "urn:ltdi:unauthorized"), path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert http.request(method, path, headers=bearer(FIRST)).status_code != 401, path
    assert [http.get(path).status_code for path in OPEN] == [200] * len(OPEN)


@pytest.mark.parametrize(
    "headers",
    [bearer(FIRST), bearer(SECOND), {"Authorization": f"bearer {FIRST}"}, {"X-API-Key": SECOND}],
    ids=["first", "second", "scheme in small letters", "own header"],
)
def test_each_key_opens_in_each_header(keyed, headers: dict[str, str], images, labels) -> None:
    http = keyed()
    assert http.post("/generate-head", json=json_task(images, labels), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "missing"), ({"Authorization": "Bearer"}, "missing"), ({"Authorization": f"Basic {FIRST}"}, "missing"),
        (bearer(WRONG), "wrong"), (bearer(FIRST[:-1]), "wrong"), (bearer(FIRST + "x"), "wrong"),
        (bearer("# who may ask"), "wrong"), ({"X-API-Key": WRONG}, "wrong"), ({"X-API-Key": "caf\u00e9".encode()}, "wrong"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_told_so_and_never_repeated(keyed, headers: dict, said: str) -> None:
    answer = keyed().get("/models", headers=headers)
    assert answer.status_code == 401
    assert f"the key is {said}" in answer.json()["detail"] and answer.json()["field"] == "Authorization"
    assert WRONG not in answer.text and FIRST[:-1] not in answer.text


def test_the_key_is_looked_at_before_the_body_is_read(keyed) -> None:
    http = keyed()
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=5) as wire:
        wire.sendall(
            b"POST /generate-head HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert wire.recv(4096).startswith(b"HTTP/1.1 401")


def test_too_many_wrong_keys_are_429_for_right_ones_too_and_both_are_counted(keyed) -> None:
    http = keyed(key_tries_per_minute=3)
    assert [http.get("/models").status_code for _ in range(5)] == [401] * 5, "a missing key is no try"
    assert [http.get("/models", headers=bearer(WRONG)).status_code for _ in range(4)] == [401, 401, 401, 429]
    answer = http.get("/models", headers=bearer(FIRST))
    assert (answer.status_code, answer.json()["type"]) == (429, "urn:ltdi:key-rate")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert http.get("/readyz").status_code == 200
    metrics = http.get("/metrics").text
    assert 'ltdi_requests_rejected_total{reason="unauthorized"} 8.0' in metrics
    assert 'ltdi_requests_rejected_total{reason="key_rate"} 2.0' in metrics


def test_an_address_may_try_again_after_a_minute_and_others_at_any_time() -> None:
    now = [100.0]
    tries = Tries(2, clock=lambda: now[0])
    for _ in range(2):
        assert tries.seconds_left("10.0.0.1") == 0
        tries.note("10.0.0.1")
        now[0] += 10
    assert (tries.seconds_left("10.0.0.1"), tries.seconds_left("10.0.0.2")) == (40, 0)
    now[0] += 40
    assert tries.seconds_left("10.0.0.1") == 0
    tries.note("10.0.0.1")
    assert tries.seconds_left("10.0.0.1") == 0


def test_what_is_kept_of_wrong_keys_is_bounded_and_lets_the_oldest_go() -> None:
    now = [0.0]
    tries = Tries(1, addresses=100, clock=lambda: now[0])
    for number in range(1000):
        now[0] += 0.01
        tries.note(f"10.0.{number // 256}.{number % 256}")
    assert len(tries) == 100
    assert tries.seconds_left("10.0.0.0") == 0 < tries.seconds_left("10.0.3.231")


def test_a_network_of_ipv6_is_one_caller() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("10.0.0.1") != network_of("10.0.0.2")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"# none yet\n", "holds no key"), (b"good-key\nbad key\n", "line 2"), (b"\xff\xfe\n", "UTF-8"), (None, "cannot be read")],
)
def test_a_key_file_that_cannot_be_used_stops_the_start_and_shows_no_key(
    tmp_path: Path, toy: Bundle, content: bytes | None, message: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidConfig, match=message) as error:
        create_app(Settings(keys_file=file), [toy])
    assert "bad key" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_keys_are_kept_as_digests_alone(key_file: Path) -> None:
    keys = Keys(key_file, "keys_file")
    assert keys.hold(FIRST) and keys.hold(SECOND) and not keys.hold(WRONG)
    assert FIRST not in repr(vars(keys))


@pytest.mark.parametrize("configured", [True, False])
def test_the_log_says_once_that_no_keys_are_configured_and_never_a_key(
    toy: Bundle, key_file: Path, configured: bool
) -> None:
    written = io.StringIO()
    handler, logger = logging.StreamHandler(written), logging.getLogger("ltdi.service")
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with TestClient(create_app(Settings(keys_file=key_file if configured else None), [toy])) as http:
            for headers in (bearer(WRONG), bearer(FIRST), {}):
                http.get("/models", headers=headers)
                http.post("/generate-head", headers=headers)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert written.getvalue().count("no keys are configured") == (0 if configured else 1)
    assert written.getvalue().count('"message": "request"') == 6
    assert WRONG not in written.getvalue() and FIRST not in written.getvalue()


def test_the_client_sends_its_key(toy: Bundle, key_file: Path, images, labels) -> None:
    server = Running(Settings(keys_file=key_file), [toy])
    try:
        with LtDiClient(str(server.client.base_url), api_key=SECOND) as client:
            assert client.generate_head(images, labels).labels == sorted(set(labels))
        with LtDiClient(str(server.client.base_url)) as client, pytest.raises(ServiceError, match="401"):
            client.models()
    finally:
        server.stop()


def test_the_document_says_which_routes_take_a_key(toy: Bundle) -> None:
    with TestClient(create_app(Settings(), [toy])) as http:
        document = http.get("/openapi.json").json()
    schemes = set(document["components"]["securitySchemes"])
    keyed = {
        path for path, operations in document["paths"].items() for operation in operations.values()
        if {name for choice in operation.get("security", []) for name in choice} == schemes
    }  # fmt: skip
    assert {path.split("/")[1] for path in keyed} == {"generate-head", "embed", "predict", "models", "artefacts", "admin"}
