"""`/generate-head`, `/embed`, `/predict` over the wire: forms, bytes, headers, symmetries."""

from __future__ import annotations

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from safetensors.torch import load

from ltdi import Bundle, TaskEmbedding, load_head, safetensors_bytes
from service.client import LtDiClient, ServiceError, png
from tests.service.conftest import Running, json_task

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}


def multipart(images: torch.Tensor, labels: list[str]) -> list:
    return [
        ("support", (f"{label}/{i}.png", png(image)))
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def tensors(images: torch.Tensor, labels: list[str]) -> bytes:
    names = sorted(set(labels))
    rows = torch.tensor([names.index(label) for label in labels])
    return safetensors_bytes({"images": images.unsqueeze(1), "labels": rows}, {"classes": json.dumps(names)})


def test_the_three_request_forms_and_the_library_give_the_same_bytes(http, toy: Bundle, images, labels) -> None:
    answers = [
        http.post("/generate-head", json=json_task(images, labels)),
        http.post("/generate-head", files=multipart(images, labels)),
        http.post("/generate-head", content=tensors(images, labels), headers=SAFETENSORS),
    ]
    assert [a.status_code for a in answers] == [200] * 3, answers[0].text
    assert {a.content for a in answers} == {toy.generate(images, labels).to_bytes()}
    assert len({a.headers["etag"] for a in answers}) == 1


def test_features_give_the_head_that_their_images_give(http, toy: Bundle, images, labels) -> None:
    features = toy.embed(images)
    support = [{"label": label, "features": row} for label, row in zip(labels, features.tolist(), strict=True)]
    by_json = load_head(http.post("/generate-head", json={"support": support}).content)
    by_library = toy.generate(features, labels)
    assert torch.equal(by_json(features), by_library(features))


def test_json_answers_hold_the_head_of_the_file_and_timings(http, images, labels) -> None:
    task = json_task(images, labels, seed=5)
    file = load_head(http.post("/generate-head", json=task).content)
    answer = http.post("/generate-head", json=task, headers={"Accept": "application/json"})
    document = answer.json()
    assert torch.equal(torch.tensor(document["tensors"]["weight"]), file.layers[0].weight)
    assert document["labels"] == ["ka", "ra", "ta"] and document["seed"] == 5
    assert {"decode", "total"} <= set(document["timings_ms"])


def test_every_artefact_carries_the_headers_of_the_contract(http, images, labels) -> None:
    answer = http.post("/generate-head", json=json_task(images, labels, seed=6), headers={"X-Request-Id": "mine-1"})
    timing = answer.headers["server-timing"]
    for stage in ("decode", "embed", "queue", "sample", "check", "encode", "total"):
        assert f"{stage};dur=" in timing
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["ltdi-method"] in ("generated", "baseline")
    assert 0 <= float(answer.headers["ltdi-support-accuracy"]) <= 1
    assert 0 <= float(answer.headers["ltdi-baseline-support-accuracy"]) <= 1
    assert answer.headers["ltdi-bundle"].startswith("toy@")
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    assert http.get("/livez").headers["x-request-id"]


def test_one_example_a_class_has_no_support_accuracy(http, images, labels) -> None:
    answer = http.post("/generate-head", json=json_task(images[::4], labels[::4]))
    assert answer.status_code == 200
    assert "ltdi-support-accuracy" not in answer.headers


def test_a_repeated_request_is_answered_from_the_cache_and_says_so(http, images, labels) -> None:
    task = json_task(images, labels, seed=77)
    first, second = (http.post("/generate-head", json=task) for _ in range(2))
    assert (first.headers["ltdi-cache"], second.headers["ltdi-cache"]) == ("miss", "hit")
    assert first.content == second.content
    etag = first.headers["etag"].strip('"')
    assert http.get(f"/artefacts/{etag}").content == first.content
    unchanged = http.get(f"/artefacts/{etag}", headers={"If-None-Match": f'"{etag}"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_order_of_examples_changes_nothing_and_classes_order_rows(http, images, labels) -> None:
    task = json_task(images, labels)
    turned = dict(task, support=task["support"][::-1])
    ordered = dict(task, classes=[{"label": label} for label in ("ta", "ka", "ra")])
    head, same, moved = (load_head(http.post("/generate-head", json=t).content) for t in (task, turned, ordered))
    assert head.to_bytes() == same.to_bytes()
    assert moved.labels == ["ta", "ka", "ra"]
    assert torch.equal(moved.layers[0].weight, head.layers[0].weight[[2, 0, 1]])


def test_seeds_differ_and_concurrent_callers_get_the_bytes_they_would_get_alone(
    http, toy: Bundle, images, labels
) -> None:
    def ask(seed: int) -> bytes:
        ways = 2 + seed % 2
        kept = [i for i, label in enumerate(labels) if label in ("ka", "ra", "ta")[:ways]]
        task = json_task(images[kept], [labels[i] for i in kept], seed=1000 + seed)
        return http.post("/generate-head", json=task).content

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(24)))
    for seed, content in enumerate(together):
        kept = [i for i, label in enumerate(labels) if label in ("ka", "ra", "ta")[: 2 + seed % 2]]
        assert content == toy.generate(images[kept], [labels[i] for i in kept], seed=1000 + seed).to_bytes()
    assert len(set(together)) == 24


def test_a_task_embedding_gives_the_same_weights_later(http, images, labels) -> None:
    answer = http.post("/embed?as=task", json=json_task(images, labels))
    task = TaskEmbedding.from_bytes(answer.content)
    assert task.tokens.shape[0] == 3
    generated = json_task(images, labels, options={"fallback": "none"})
    direct = load_head(http.post("/generate-head", json=generated).content)
    for response in (
        http.post("/generate-head", content=answer.content, headers=SAFETENSORS),
        http.post("/generate-head", json={"task_embedding": base64.b64encode(answer.content).decode()}),
    ):
        later = load_head(response.content)
        assert torch.equal(later.layers[0].weight, direct.layers[0].weight)
        assert later.support_accuracy is None
        assert later.baseline_support_accuracy == direct.baseline_support_accuracy


def test_a_task_embedding_sent_as_a_file_takes_its_seed_from_the_metadata(http, toy: Bundle, images, labels) -> None:
    task = toy.embed_task(toy.support(images, labels))
    content = safetensors_bytes(task.tensors(), task.metadata() | {"seed": "8"})
    head = load_head(http.post("/generate-head", content=content, headers=SAFETENSORS).content)
    direct = toy.generate(images, labels, seed=8, fallback="none")
    assert head.metadata["seed"] == 8 and torch.equal(head.layers[0].weight, direct.layers[0].weight)


def test_an_edited_task_embedding_is_never_answered_with_the_head_of_the_true_one(http, toy: Bundle, images) -> None:
    task = toy.embed_task(toy.support(images[:8], ["x"] * 4 + ["y"] * 4))
    edited = task.tensors() | {"base": task.base + 1}
    first, second = (
        http.post("/generate-head", content=safetensors_bytes(tensors, task.metadata()), headers=SAFETENSORS)
        for tensors in (edited, task.tensors())
    )
    assert first.headers["etag"] != second.headers["etag"]
    assert second.headers["ltdi-cache"] == "miss" and first.content != second.content


def test_embed_and_predict_answer_the_same_in_every_request_form(http, toy: Bundle, images, labels) -> None:
    files = [(f"{i}.png", png(image)) for i, image in enumerate(images)]
    items = [{"image": base64.b64encode(content).decode()} for _, content in files]
    stack = {"images": images.unsqueeze(1)}
    head = http.post("/generate-head", json=json_task(images, labels)).content
    embedded = [
        http.post("/embed", json={"inputs": items}),
        http.post("/embed", files=[("inputs", file) for file in files]),
        http.post("/embed", content=safetensors_bytes(stack, {}), headers=SAFETENSORS),
    ]
    assert {a.content for a in embedded} == {embedded[0].content}
    parts = [("head", ("head.safetensors", head)), *(("queries", file) for file in files)]
    raw_head = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    predicted = [
        http.post("/predict", json={"head": base64.b64encode(head).decode(), "queries": items}),
        http.post("/predict", files=parts),
        http.post("/predict", content=safetensors_bytes(stack | {"head": raw_head}, {}), headers=SAFETENSORS),
    ]
    answers = [a.json()["probabilities"] for a in predicted]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] == load_head(head).predict_proba(toy.embed(images)).tolist()


def test_embed_gives_the_features_of_the_library(http, toy: Bundle, images) -> None:
    inputs = [item["image"] for item in json_task(images, ["x"] * 12)["support"]]
    by_json = http.post(
        "/embed", json={"inputs": [{"image": i} for i in inputs]}, headers={"Accept": "application/json"}
    )
    by_tensors = http.post(
        "/embed", content=safetensors_bytes({"images": images.unsqueeze(1)}, {}), headers=SAFETENSORS
    )
    assert torch.equal(torch.tensor(by_json.json()["features"]), toy.embed(images))
    assert torch.equal(load(by_tensors.content)["features"], toy.embed(images))


def test_predict_takes_an_etag_or_a_head(http, toy: Bundle, images, labels) -> None:
    made = http.post("/generate-head", json=json_task(images, labels))
    queries = [{"image": item["image"]} for item in json_task(images, labels)["support"]]
    by_etag = http.post("/predict", json={"artefact": made.headers["etag"], "queries": queries}).json()
    by_head = http.post("/predict", json={"head": base64.b64encode(made.content).decode(), "queries": queries}).json()
    assert by_etag["predictions"] == by_head["predictions"] == load_head(made.content).predict(toy.embed(images))
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in by_etag["probabilities"])


def test_the_client_returns_a_ready_module(running: Running, toy: Bundle, images, labels) -> None:
    with LtDiClient(str(running.client.base_url)) as client:
        head = client.generate_head(images, labels, seed=3)
        assert head.to_bytes() == toy.generate(images, labels, seed=3).to_bytes()
        assert torch.equal(client.embed(images), toy.embed(images))
        assert client.predict(head, client.embed(images))["predictions"] == head.predict(toy.embed(images))
        assert client.ready() and [m["name"] for m in client.models()] == ["toy", "toy-paper"]
        with pytest.raises(ServiceError, match="at least two"):
            client.generate_head(images[:4], labels[:4])


def test_a_bundle_of_the_paper_recipe_is_served_beside_the_default(http, toy_paper: Bundle, images, labels) -> None:
    task = json_task(images, labels, model="toy-paper", options={"fallback": "none"})
    answer = http.post("/generate-head", json=task)
    assert len(load_head(answer.content).layers) == 2
    assert answer.content == toy_paper.generate(images, labels, fallback="none").to_bytes()


def test_a_caller_without_the_library_can_read_the_page_and_the_documents(http: httpx.Client) -> None:
    assert "Weights on demand" in http.get("/").text
    assert http.get("/docs").status_code == 200
    assert "/generate-head" in http.get("/openapi.json").json()["paths"]


def test_no_page_loads_anything_from_elsewhere(http: httpx.Client) -> None:
    for path in ("/", "/docs"):
        loaded = re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["']([^"']+)""", http.get(path).text)
        assert len(loaded) >= 3
        for address in loaded:
            assert address == "data:," or http.get(f"/{address.lstrip('/')}").status_code == 200, address
    assert http.get("/page/page.js").headers["cache-control"] == "no-cache"
    assert http.get("/redoc").status_code == http.get("/page/missing.js").status_code == 404


def test_models_say_what_they_take(http, toy: Bundle) -> None:
    model = http.get("/models/toy").json()
    assert model["digest"] == toy.digest and model["state"] == "ready" and model["default"]
    assert model["limits"]["ways"] == [2, 64] and model["feature_size"] == 256
    assert http.get("/models/toy-paper").json()["limits"]["ways"] == [3, 3]
    body = load(http.get("/models/toy/body").content)
    assert all(torch.equal(body[name], value) for name, value in toy.body.state_dict().items())
