"""A task of names, sentences and a pool, over HTTP, in each form that can say it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import torch

from ltdi import Bundle, load_head, safetensors_bytes
from service.client import LtDiClient
from service.settings import Settings
from tests.ltdi.test_experts import blobs
from tests.service.conftest import Running

LOG = ["is my parcel lost?", "my card was stolen", "how much do I have left", "I want a refund", "thanks", "balance please"]
CLASSES = [
    {"label": "refund", "description": "the customer wants money back"},
    {"label": "lost_card", "description": "a lost or stolen card"},
    {"label": "balance", "description": "how much money is in the account"},
]
NAMES_AND_LOG = {"model": "toy-text", "classes": CLASSES, "unlabelled": [{"text": line} for line in LOG]}
X, Y = blobs(3, 2, 24)


@pytest.fixture(scope="module")
def served(toy: Bundle, toy_text: Bundle, toy_features: Bundle) -> Iterator[httpx.Client]:
    server = Running(Settings(), [toy, toy_text, toy_features])
    while not all(model["state"] == "ready" for model in server.client.get("/models").json()["models"]):
        time.sleep(0.05)
    yield server.client
    server.stop()


def post(client: httpx.Client, path: str = "/generate-head", **task: object) -> httpx.Response:
    return client.post(path, json=task)


def test_three_names_and_a_log_make_a_head_that_works(served: httpx.Client, toy_text: Bundle) -> None:
    answer = post(served, **NAMES_AND_LOG)
    assert answer.status_code == 200, answer.text
    head = load_head(answer.content)
    assert head.labels == ["refund", "lost_card", "balance"]
    assert head.predict(toy_text.embed(["give me my money back", "my visa card is gone"])) == ["refund", "lost_card"]
    again = post(served, **NAMES_AND_LOG)
    assert again.content == answer.content and again.headers["LtDi-Cache"] == "hit"


def test_everything_at_once_is_the_library_s_head(served: httpx.Client, toy_text: Bundle) -> None:
    support = [{"label": "refund", "text": "where is my money"}, {"label": "lost_card", "text": "my card is gone"}]
    answer = post(served, **NAMES_AND_LOG, support=support, seed=4)
    own = toy_text.generate(
        ["where is my money", "my card is gone"], ["refund", "lost_card"], classes=[c["label"] for c in CLASSES],
        descriptions={c["label"]: c["description"] for c in CLASSES}, unlabelled=LOG, seed=4,
    )  # fmt: skip
    assert answer.content == own.to_bytes()


def test_the_artefact_predicts_texts(served: httpx.Client) -> None:
    etag = post(served, **NAMES_AND_LOG).headers["ETag"].strip('"')
    answer = post(served, "/predict", artefact=etag, queries=[{"text": "pay me back"}])
    assert answer.json()["predictions"] == ["refund"]


def test_the_client_speaks_texts_and_features(served: httpx.Client, toy_text: Bundle) -> None:
    with LtDiClient(str(served.base_url)) as client:
        named = {c["label"]: c["description"] for c in CLASSES}
        head = client.generate_head(["my card is gone"], ["lost_card"], model="toy-text", descriptions=named, unlabelled=LOG)
        own = toy_text.generate(["my card is gone"], ["lost_card"], descriptions=named, unlabelled=LOG)
        assert head.to_bytes() == own.to_bytes()
        assert client.generate_head(model="toy-text", descriptions=named).labels == sorted(named)
        assert client.embed(["hello"], model="toy-text").shape == (1, 384)
        pool = blobs(3, 9, 24, seed=6)[0]
        refined = client.generate_head(X, ["abc"[i] for i in Y.tolist()], model="toy-features", unlabelled=pool, refine_steps=3)
        assert refined.labels == ["a", "b", "c"]
        assert client.model("toy-text")["body"]["installed"]


def test_texts_are_embedded(served: httpx.Client, toy_text: Bundle) -> None:
    answer = served.post("/embed", json={"model": "toy-text", "inputs": [{"text": "hello"}]}, headers={"Accept": "application/json"})
    assert torch.allclose(torch.tensor(answer.json()["features"]), toy_text.embed(["hello"]), atol=1e-6)


def test_features_with_descriptions_and_a_pool_in_safetensors(served: httpx.Client, toy_features: Bundle) -> None:
    names, pool = blobs(3, 1, 24, seed=5)[0], blobs(3, 9, 24, seed=6)[0]
    tensors = {"features": X, "labels": Y, "descriptions": names, "unlabelled": pool}
    body = safetensors_bytes(tensors, {"model": "toy-features", "classes": json.dumps(["a", "b", "c"]), "seed": "2"})
    answer = served.post("/generate-head", content=body, headers={"Content-Type": "application/vnd.safetensors"})
    assert answer.status_code == 200, answer.text
    own = toy_features.generate(
        X, ["abc"[i] for i in Y.tolist()], descriptions=dict(zip("abc", names, strict=True)), unlabelled=pool, seed=2
    )
    assert answer.content == own.to_bytes()
    only = safetensors_bytes({"descriptions": names}, {"model": "toy-features"})
    answer = served.post("/generate-head", content=only, headers={"Content-Type": "application/vnd.safetensors"})
    assert load_head(answer.content).labels == ["0", "1", "2"]


def test_features_in_json_may_be_of_any_size(served: httpx.Client) -> None:
    support = [{"label": "abc"[i], "features": row} for i, row in zip(Y.tolist(), X.tolist(), strict=True)]
    answer = post(served, model="toy-features", support=support, unlabelled=[{"features": X[0].tolist()}])
    assert load_head(answer.content).feature_size == 24
    support[1]["features"] = [1.0, 2.0]
    assert post(served, model="toy-features", support=support).json()["field"] == "/support/1/features"


def test_refinement_is_another_artefact(served: httpx.Client) -> None:
    support = [{"label": "abc"[i], "features": row} for i, row in zip(Y.tolist(), X.tolist(), strict=True)]
    answers = [post(served, model="toy-features", support=support, options={"refine_steps": k}) for k in (0, 5)]
    assert len({answer.headers["ETag"] for answer in answers}) == 2
    assert answers[0].content != answers[1].content


def test_long_texts_are_refused_or_cut_and_counted(served: httpx.Client) -> None:
    task = NAMES_AND_LOG | {"unlabelled": [{"text": "money " * 300}, {"text": "short"}, {"text": "card " * 300}]}
    refused = post(served, **task)
    assert (refused.status_code, refused.json()["field"]) == (422, "/unlabelled/0")
    cut = post(served, **task, options={"truncate": True})
    assert (cut.status_code, cut.headers["LtDi-Truncated"]) == (200, "2")
    assert "LtDi-Truncated" not in post(served, **NAMES_AND_LOG).headers


BAD = [
    ("description twice", lambda t: t | {"classes": [*CLASSES, CLASSES[0]]}, "support-invalid", "/classes"),
    ("empty description", lambda t: t | {"classes": [{"label": "a", "description": ""}, *CLASSES]}, "text-invalid", None),
    ("empty log line", lambda t: t | {"unlabelled": [{"text": "x"}, {"text": "  "}]}, "text-invalid", "/unlabelled/1"),
    ("features in a log of texts", lambda t: t | {"support": [{"label": "refund", "text": "x"}],
                                                 "unlabelled": [{"features": [0.0] * 384}]}, "request-invalid", "/unlabelled"),
    ("log of features of another size", lambda t: t | {"unlabelled": [{"features": [0.0] * 5}]}, "features-invalid", None),
    ("image", lambda t: t | {"support": [{"label": "refund", "image": base64.b64encode(b"x").decode()}]},
     "input-unsupported", "/support"),
    ("pair", lambda t: t | {"support": [{"label": "refund", "pair": ["x", "y"]}]}, "input-unsupported", "/support"),
    ("label of no class", lambda t: t | {"support": [{"label": "other", "text": "x"}]}, "support-invalid", "/classes"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "field"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_cannot_be_names_its_place(served: httpx.Client, change: Callable, code: str, field: str | None) -> None:
    answer = post(served, **change(NAMES_AND_LOG))
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == f"urn:ltdi:{code}"
    assert field is None or answer.json()["field"] == field


def test_no_task_embedding_and_no_body_and_it_says_so(served: httpx.Client) -> None:
    graph = served.get("/models/toy-text/body", headers={"Accept": "application/onnx"})
    for answer in (served.post("/embed?as=task", json=NAMES_AND_LOG), served.get("/models/toy-text/body"), graph):
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:ltdi:input-unsupported")


def test_the_models_say_what_they_read(served: httpx.Client) -> None:
    models = {model["name"]: model for model in served.get("/models").json()["models"]}
    assert models["toy-text"]["input_kinds"] == ["texts", "features"]
    assert models["toy-text"]["body"]["model"] == "all-MiniLM-L6-v2" and models["toy-text"]["body"]["installed"]
    assert models["toy-text"]["limits"]["shots"][0] == 0 and models["toy-text"]["limits"]["unlabelled"] == 10_000
    assert models["toy"]["limits"]["unlabelled"] == 0 and models["toy-features"]["feature_size"] == 0


def test_a_missing_encoder_is_503_with_its_remedy_and_features_still_work(tmp_path, toy: Bundle) -> None:
    from ltdi.bodies.loader import BodyConfig
    from tests.conftest import make_geometry

    body = BodyConfig("sentence", 0, 0, "an encoder that nobody has", 24)
    server = Running(Settings(), [make_geometry(tmp_path / "without", body)])
    try:
        refused = post(server.client, classes=CLASSES)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:ltdi:body-missing")
        assert "ltdi[text]" in refused.json()["detail"] and "Retry-After" in refused.headers
        support = [{"label": "abc"[i], "features": row} for i, row in zip(Y.tolist(), X.tolist(), strict=True)]
        assert post(server.client, support=support).status_code == 200
        assert server.client.get("/models").json()["models"][0]["body"]["installed"] is False
    finally:
        server.stop()
