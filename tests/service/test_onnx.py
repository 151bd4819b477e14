"""Heads and bodies as ONNX over the wire."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import httpx
import pytest
import torch

from ltdi import Bundle, load_head
from ltdi.onnx_files import onnx_installed
from tests.ltdi.test_onnx_files import CLOSE, facts, run
from tests.service.conftest import json_task

ONNX = {"Accept": "application/onnx"}


def test_body_and_head_of_the_service_chain_to_the_probabilities_of_torch(http, toy: Bundle, images, labels) -> None:
    body, head = http.get("/models/toy/body", headers=ONNX), http.post("/generate-head", json=json_task(images, labels), headers=ONNX)
    assert body.headers["content-type"] == head.headers["content-type"] == "application/onnx"
    features = run(body.content, images=images.unsqueeze(1).float() / 255)
    torch.testing.assert_close(features, toy.embed(images), **CLOSE)
    own = toy.generate(images, labels)
    torch.testing.assert_close(run(head.content, features=features), own.predict_proba(toy.embed(images)), **CLOSE)
    assert json.loads(facts(head.content)["labels"]) == own.labels
    assert facts(body.content)["bundle_digest"] == toy.digest and "ink 1" in facts(body.content)["input"]


def test_a_head_in_onnx_has_its_own_etag_and_is_kept(http, images, labels) -> None:
    task = json_task(images, labels, seed=61)
    file, made, again = (http.post("/generate-head", json=task, headers=h) for h in ({}, ONNX, ONNX))
    assert file.headers["etag"] != made.headers["etag"] == again.headers["etag"]
    assert (made.headers["ltdi-cache"], again.headers["ltdi-cache"]) == ("miss", "hit")
    assert made.content == again.content and "ltdi-method" in made.headers
    etag = made.headers["etag"].strip('"')
    assert http.get(f"/artefacts/{etag}", headers=ONNX).content == made.content
    assert http.get(f"/artefacts/{etag}", headers={"Accept": "application/json"}).status_code == 406
    assert http.get(f"/artefacts/{etag}", headers={"If-None-Match": made.headers["etag"]}).status_code == 304
    queries = [{"image": item["image"]} for item in task["support"]]
    said = http.post("/predict", json={"artefact": etag, "queries": queries}).json()
    assert len(said["predictions"]) == 12 and set(said["predictions"]) <= set(load_head(file.content).labels)


def test_bodies_have_an_etag_for_each_form(http, toy: Bundle) -> None:
    file, graph = http.get("/models/toy/body"), http.get("/models/toy/body", headers=ONNX)
    assert file.headers["etag"] == f'"{toy.digest}-body"' and graph.headers["etag"] == f'"{toy.digest}-body-onnx"'
    assert http.get("/models/toy").json()["response_forms"][-1] == "application/onnx"


def test_a_body_that_the_caller_has_is_not_sent_again(http: httpx.Client) -> None:
    for headers in ({}, ONNX):
        tag = http.get("/models/toy/body", headers=headers).headers["etag"]
        again = http.get("/models/toy/body", headers=headers | {"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert http.get("/models/toy/body", headers=headers | {"If-None-Match": '"other"'}).status_code == 200


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package `onnx` cannot be imported."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    onnx_installed.cache_clear()
    yield
    onnx_installed.cache_clear()


@pytest.mark.usefixtures("no_onnx")
def test_without_the_extra_onnx_is_406_with_the_remedy_and_the_rest_works(http: httpx.Client, images, labels) -> None:
    task = json_task(images, labels)
    for refused in (http.post("/generate-head", json=task, headers=ONNX), http.get("/models/toy/body", headers=ONNX)):
        assert (refused.status_code, refused.json()["type"]) == (406, "urn:ltdi:not-acceptable")
        assert "pip install 'ltdi[onnx]'" in refused.json()["detail"]
    either = http.post("/generate-head", json=task, headers={"Accept": "application/onnx, application/json;q=0.5"})
    assert either.headers["content-type"] == "application/json"
    assert "application/onnx" not in http.get("/models/toy").json()["response_forms"]
