"""Reload: the old bundle serves until the new one has proven itself, keys are read again, and who may ask for it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from ltdi import Bundle, load_bundle
from service.app import create_app
from service.selftest import SelfTestFailed, self_test
from service.settings import Settings
from tests.conftest import make_bundle
from tests.service.conftest import Running, json_task
from tests.service.test_callers import wait_for

ADMIN, CALLER = {"Authorization": "Bearer admin-key-77"}, {"Authorization": "Bearer caller-key-12"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundles" / "toy")


@pytest.fixture
def key_files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "keys").write_text("caller-key-12\n")
    (tmp_path / "admin").write_text("admin-key-77\n")
    return {"keys_file": tmp_path / "keys", "admin_keys_file": tmp_path / "admin"}


@pytest.fixture
def server(folder: Path, key_files: dict[str, Path]) -> Iterator[Running]:
    running = Running(Settings(bundle=(str(folder),), **key_files), None)
    yield running
    running.stop()


def exchange(folder: Path, **changes: object) -> str:
    """Put another bundle in the folder; its digest."""
    make_bundle(folder, **({"fallback_margin": 0.25} | changes))
    return load_bundle(folder, device="cpu").digest


def damage(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def infos(http: httpx.Client) -> list[str]:
    return re.findall(r'ltdi_model_info{.*digest="(\w+)".*} 1', http.get("/metrics").text)


def shown(http: httpx.Client) -> dict:
    return http.get("/models/toy", headers=CALLER).json()


def test_a_reload_serves_the_new_bundle_and_its_digest_everywhere(server: Running, folder, images, labels) -> None:
    http = server.client
    old = shown(http)["digest"]
    new = exchange(folder)
    answer = http.post("/admin/reload", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    assert [(model["name"], model["digest"]) for model in answer.json()["models"]] == [("toy", new)]
    assert shown(http)["digest"] == new != old
    assert infos(http) == [new]
    head = http.post("/generate-head", json=json_task(images, labels), headers=CALLER)
    assert head.headers["ltdi-bundle"] == f"toy@{new[:12]}"


def test_a_bundle_that_fails_leaves_the_old_one_and_says_why(server: Running, folder, images, labels) -> None:
    http = server.client
    old = shown(http)["digest"]
    damage(folder)
    answer = http.post("/admin/reload", json={"model": "toy"}, headers=ADMIN)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:ltdi:reload-failed")
    state = shown(http)
    assert (state["state"], state["digest"]) == ("ready", old)
    assert state["reason"] in answer.json()["detail"] and "the new one failed" in state["reason"]
    assert str(folder.parent) not in answer.text + state["reason"]
    assert infos(http) == [old]
    assert http.get("/readyz").status_code == 200
    assert http.post("/generate-head", json=json_task(images, labels), headers=CALLER).status_code == 200
    new = exchange(folder)
    assert http.post("/admin/reload", headers=ADMIN).status_code == 200
    assert (shown(http)["digest"], shown(http)["reason"]) == (new, None)


def test_a_bundle_of_another_name_does_not_take_the_place_of_the_old_one(server: Running, folder) -> None:
    exchange(folder, name="other")
    answer = server.client.post("/admin/reload", headers=ADMIN)
    assert answer.status_code == 409 and "'other'" in answer.json()["detail"]
    assert shown(server.client)["state"] == "ready"


def test_every_request_during_reloads_is_answered_by_the_one_bundle_or_the_other(
    server: Running, folder, images, labels
) -> None:
    http, digests, answers, done = server.client, {shown(server.client)["digest"]}, [], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=http.base_url, headers=CALLER, timeout=30) as own:
            while not done.is_set():
                answers.append(own.post("/generate-head", json=json_task(images, labels, seed=len(answers))))

    asking = threading.Thread(target=ask)
    asking.start()
    for margin in (0.2, 0.3, 0.4):
        digests.add(exchange(folder, fallback_margin=margin))
        assert http.post("/admin/reload", headers=ADMIN).status_code == 200
    done.set()
    asking.join(30)
    assert {answer.status_code for answer in answers} == {200}
    served = {answer.headers["ltdi-bundle"].split("@")[1] for answer in answers}
    assert served <= {digest[:12] for digest in digests}


def test_keys_are_read_again_and_a_damaged_file_leaves_the_old_ones(server: Running, key_files) -> None:
    http = server.client
    key_files["keys_file"].write_text("")
    answer = http.post("/admin/reload", headers=ADMIN)
    assert answer.status_code == 409 and "holds no key" in answer.json()["detail"]
    assert http.get("/models", headers=CALLER).status_code == 200
    key_files["keys_file"].write_text("next-key-34\n")
    assert http.post("/admin/reload", headers=ADMIN).status_code == 200
    assert http.get("/models", headers=CALLER).status_code == 401
    assert http.get("/models", headers={"X-API-Key": "next-key-34"}).status_code == 200


def test_only_an_admin_key_may_reload_and_it_opens_nothing_else(server: Running) -> None:
    http = server.client
    assert http.post("/admin/reload").status_code == 401
    assert http.post("/admin/reload", headers=CALLER).status_code == 401
    assert http.get("/models", headers=ADMIN).status_code == 401


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"json": {"model": "nope"}}, 404, "model-unknown"),
        ({"json": {"modle": "toy"}}, 422, "request-invalid"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "body-malformed"),
        ({"content": b"model=toy", "headers": {"Content-Type": "text/plain"}}, 415, "media-type-unsupported"),
    ],
)
def test_a_reload_that_says_nothing_clear_is_refused(server: Running, sent: dict, status: int, code: str) -> None:
    answer = server.client.post("/admin/reload", **sent | {"headers": ADMIN | sent.get("headers", {})})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:ltdi:{code}")


def test_without_admin_keys_there_is_no_such_route(http: httpx.Client) -> None:
    answer = http.post("/admin/reload", headers=ADMIN)
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:ltdi:route-unknown")


def test_a_model_that_failed_at_the_start_serves_once_it_is_put_right(folder: Path, key_files, toy: Bundle) -> None:
    broken = make_bundle(folder.parent / "second", name="second")
    damage(broken)
    running = Running(Settings(bundle=(str(folder), str(broken)), **key_files), None)
    try:
        http = running.client
        assert wait_for(lambda: http.get("/models/second", headers=CALLER).json()["state"] == "failed")
        make_bundle(broken, name="second")
        assert http.post("/admin/reload", json={"model": "second"}, headers=ADMIN).status_code == 200
        assert http.get("/models/second", headers=CALLER).json()["state"] == "ready"
    finally:
        running.stop()


def test_sighup_reloads_bundles_and_keys_and_the_process_goes_on(folder: Path, key_files) -> None:
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", str(folder)]
    command += ["--keys-file", str(key_files["keys_file"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            url = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            assert wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200, 30)
            new = exchange(folder)
            key_files["keys_file"].write_text("next-key-34\n")
            process.send_signal(signal.SIGHUP)
            key = {"X-API-Key": "next-key-34"}
            assert wait_for(lambda: httpx.get(f"{url}/models/toy", headers=key).json().get("digest") == new, 30)
        finally:
            process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=30) == 0
    assert [line["digest"] for line in lines if line["message"] == "bundle ready"][-1] == new
    assert "next-key-34" not in str(lines)


class Neighbourly(Bundle):
    """Its heads depend on how many are made together, as on devices whose arithmetic does."""

    def generate_many(self, requests, **options):
        """Heads, changed in a batch by a last bit."""
        heads = super().generate_many(requests, **options)
        for head in heads if len(requests) > 1 else ():
            head.layers[-1].bias.data += 1e-3
        return heads


def test_a_bundle_whose_heads_depend_on_their_neighbours_does_not_serve_in_batches(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = Neighbourly(toy.config, toy.body, toy.generator, digest=toy.digest)
    with pytest.raises(SelfTestFailed, match="max_batch"):
        self_test(unsure, 64)
    self_test(unsure, 1)
    self_test(toy, 64)
    pooled = load_bundle("omniglot-background", device="cpu")
    self_test(pooled, 64)
    monkeypatch.setattr(type(pooled.generator), "decode", lambda own, x, base, counts: base + x * len(x))
    with pytest.raises(SelfTestFailed, match="max_batch"):
        self_test(pooled, 64)


def test_a_bundle_that_generates_nan_never_becomes_ready(folder: Path) -> None:
    broken = load_bundle(folder, device="cpu")
    broken.generator.codec.mean.fill_(float("nan"))
    with TestClient(create_app(Settings(), [broken])) as http:
        assert wait_for(lambda: "failed" in http.get("/readyz").text)
        assert http.get("/readyz").status_code == 503
        assert "toy" in http.get("/readyz").json()["reasons"][0]


@pytest.mark.parametrize("name", ["toy_paper", "toy_features", "toy_text"])
def test_every_recipe_passes_its_self_test(name: str, request: pytest.FixtureRequest) -> None:
    self_test(request.getfixturevalue(name), 64)


@pytest.mark.parametrize(("name", "limits"), [
    ("any-embedding", {"max_unlabelled": 0}), ("any-embedding", {"max_ways": 4}),
    ("omniglot", {"max_shots": 1}), ("omniglot", {"max_examples": 8}),
])  # fmt: skip
def test_a_bundle_of_small_limits_passes_its_self_test(name: str, limits: dict[str, int]) -> None:
    bundle = load_bundle(name, device="cpu")
    bundle.config = replace(bundle.config, limits=replace(bundle.config.limits, **limits))
    self_test(bundle, 64)
