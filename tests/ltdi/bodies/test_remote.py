"""The remote body beside a real embedding server: both protocols, and each way in which one can fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from starlette.responses import JSONResponse, Response

import ltdi
from ltdi import Bundle
from ltdi.bodies.loader import BodyConfig
from ltdi.bodies.remote import RemoteBody, endpoint, safe_words
from ltdi.bodies.sentence import SentenceBody
from ltdi.errors import EmbedderFailed, EmbedderTimeout, InvalidConfig, InvalidFeatures, InvalidText
from tests.conftest import SENTENCES, make_geometry
from tests.embedder import SIZE, Embedder, embedder, ngrams

TEXTS = [f"text number {i}" for i in range(10)]
LINES = ["my card was stolen", "where is my refund", "how much do I have left", "card please", "money back"]
NAMES = {"refund": "the customer wants money back", "lost_card": "a lost or stolen card"}


@pytest.fixture(scope="module")
def running() -> Iterator[Embedder]:
    with embedder() as server:
        yield server


@pytest.fixture
def server(running: Embedder) -> Embedder:
    running.reset()
    return running


@pytest.fixture(params=["openai", "tei"])
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


def remote(server: Embedder, protocol: str = "openai", **settings: object) -> RemoteBody:
    return RemoteBody(server.url, protocol, **{"timeout": 5.0, "retries": 0} | settings)


def test_features_come_back_in_the_order_of_the_texts_whatever_the_batches(server: Embedder, protocol: str) -> None:
    body = remote(server, protocol, batch=3)
    features = body.embed(TEXTS)
    assert torch.allclose(features, torch.from_numpy(ngrams(TEXTS)).float())
    assert features.dtype == torch.float32 and body.feature_size == SIZE
    assert sorted(len(call.get("inputs", call.get("input"))) for call in server.calls) == [1, 3, 3, 3]
    assert body.embed([]).shape == (0, SIZE)


def test_the_model_and_the_key_are_sent(server: Embedder) -> None:
    remote(server, model="bge-small", key="hush").embed(["x"])
    assert server.calls == [{"input": ["x"], "encoding_format": "float", "model": "bge-small"}]
    assert server.keys == ["Bearer hush"]


def test_no_more_calls_at_a_time_than_allowed(server: Embedder) -> None:
    remote(server, batch=1, concurrency=2).embed(TEXTS)
    assert server.peak == 2


def test_texts_that_are_too_long_are_refused_or_cut(server: Embedder) -> None:
    long = "word " * 300
    with pytest.raises(InvalidText, match="less than 200 tokens"):
        remote(server, "tei").embed([long])
    assert remote(server, "tei").embed([long], truncate=True).shape == (1, SIZE)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_that_passes_is_tried_again(server: Embedder, protocol: str, status: int) -> None:
    server.fails = [Response("busy", status)]
    assert remote(server, protocol, retries=1).embed(["x"]).shape == (1, SIZE)
    assert len(server.calls) == 2


def test_retry_after_is_waited_for_unless_it_is_longer_than_a_try_may_take(server: Embedder) -> None:
    server.fails = [Response("", 429, {"Retry-After": "1"})]
    started = time.monotonic()
    remote(server, retries=1).embed(["x"])
    assert time.monotonic() - started >= 1
    server.fails = [Response("", 429, {"Retry-After": "3600"})]
    with pytest.raises(EmbedderFailed, match="429"):
        remote(server, retries=1).embed(["x"])


def test_tries_are_bounded(server: Embedder) -> None:
    server.fails = [JSONResponse({"error": {"message": "overloaded"}}, 500) for _ in range(9)]
    with pytest.raises(EmbedderFailed, match="answered 500: overloaded"):
        remote(server, retries=2).embed(["x"])
    assert len(server.calls) == 3


def test_what_will_not_pass_is_not_tried_again(server: Embedder) -> None:
    server.fails = [JSONResponse({"error": {"message": "model `x` does not exist"}}, 404)]
    with pytest.raises(EmbedderFailed, match="answered 404: model `x` does not exist"):
        remote(server, retries=2).embed(["x"])
    assert len(server.calls) == 1


def test_where_one_call_fails_those_that_have_not_begun_are_given_up(server: Embedder) -> None:
    body = remote(server, batch=1, concurrency=1)
    server.fails = [Response("", 404)]
    with pytest.raises(EmbedderFailed, match="404"):
        body.embed(TEXTS)
    body.embed(["who comes next"])
    assert len(server.calls) <= 5 and server.texts[-1] == "who comes next"


def test_nobody_there_is_an_error_that_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        body = RemoteBody(f"http://127.0.0.1:{free.getsockname()[1]}", retries=1, timeout=2)
    with pytest.raises(EmbedderFailed, match=r"cannot be reached \(ConnectError\)"):
        body.embed(["x"])


def test_a_slow_endpoint_is_an_error_of_its_own(server: Embedder) -> None:
    server.held = True
    with pytest.raises(EmbedderTimeout, match=r"did not answer within 0\.2"):
        remote(server, timeout=0.2).embed(["x"])


def test_an_answer_that_trickles_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(40):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return
                    time.sleep(0.1)

        threading.Thread(target=trickle, daemon=True).start()
        body = RemoteBody(f"http://127.0.0.1:{listening.getsockname()[1]}", retries=0, timeout=0.5)
        started = time.monotonic()
        with pytest.raises(EmbedderTimeout):
            body.embed(["x"])
        assert time.monotonic() - started < 3


def one(numbers: list, index: object = 0) -> dict:
    return {"data": [{"index": index, "embedding": numbers}]}


BAD = [
    ("not JSON", Response("<html>"), "holds no embeddings"),
    ("another document", JSONResponse({"ok": True}), "holds no embeddings"),
    ("no number", JSONResponse(one([1.0, "a"])), "holds no embeddings"),
    ("another index", JSONResponse(one([1.0], 3)), "holds no embeddings"),
    ("too few", JSONResponse({"data": []}), r"shape \[0\] for 1 texts"),
    ("too many", JSONResponse({"data": [{"index": i, "embedding": [1.0]} for i in (0, 1)]}), "for 1 texts"),
    ("no numbers", JSONResponse(one([])), "for 1 texts"),
    ("NaN", Response(json.dumps(one([float("nan")] * SIZE))), "gave NaN"),
    ("null", JSONResponse(one([None] * SIZE)), "gave NaN"),
    ("huge", JSONResponse(one([1e30] * SIZE)), "gave NaN"),
    ("another size", JSONResponse(one([1.0] * 5)), "size 5; this body has 128"),
]


@pytest.mark.parametrize(("answer", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_an_answer_that_is_no_embedding_is_refused(server: Embedder, answer: Response, message: str) -> None:
    body = remote(server, feature_size=SIZE)
    server.fails = [answer]
    with pytest.raises(EmbedderFailed, match=message):
        body.embed(["x"])


def test_rows_of_different_sizes_are_refused(server: Embedder) -> None:
    server.fails = [JSONResponse([[1.0, 2.0], [1.0]])]
    with pytest.raises(EmbedderFailed, match="holds no embeddings"):
        remote(server, "tei").embed(["x", "y"])


def test_what_the_endpoint_said_is_shown_without_keys_addresses_and_paths(server: Embedder) -> None:
    said = "bad key s3cret, or sk-abcdefghijklmnopqrstuvwx at http://10.0.0.1/x of /home/someone/models/weights.bin\n"
    shown = safe_words(json.dumps({"message": said}).encode(), "s3cret")
    assert shown == "bad key ..., or ... at ... of ..."
    assert safe_words(b"<html>secret</html>") == safe_words(b"[1]") == safe_words(b'{"error": 3}') == ""
    assert len(safe_words(json.dumps({"error": "word " * 300}).encode())) <= 200
    server.fails = [JSONResponse({"error": "your key s3cret is wrong"}, 401)]
    with pytest.raises(EmbedderFailed) as refused:
        remote(server, key="s3cret").embed(["x"])
    assert "s3cret" not in str(refused.value) and "401" in str(refused.value)


def test_addresses() -> None:
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/embeddings"):
        assert endpoint(url, "openai") == "http://h:1/v1/embeddings"
    assert endpoint("https://h/base", "tei") == "https://h/base/embed"
    assert endpoint("https://h/embed", "tei") == "https://h/embed"


@pytest.mark.parametrize(
    ("url", "settings"),
    [("ftp://h", {}), ("h:80", {}), ("", {}), ("http://me:word@h", {}), ("http://h", {"protocol": "grpc"}),
     ("http://h", {"key": "two\nlines"}), ("http://h", {"batch": 0}), ("http://h", {"timeout": 0.0})],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_no_key_is_shown(url: str, settings: dict) -> None:
    with pytest.raises(InvalidConfig) as refused:
        RemoteBody(url, **settings)
    assert "word" not in str(refused.value) and "two" not in str(refused.value)


def test_a_notebook_takes_texts_where_the_bundle_took_features(
    server: Embedder, toy_features_folder, toy_features: Bundle
) -> None:
    bundle = ltdi.load_bundle(toy_features_folder, device="cpu", body=remote(server, model="n-grams"))
    head = bundle.generate(["where is my money"], ["refund"], descriptions=NAMES, unlabelled=[*LINES, LINES[0]], seed=1)
    assert sorted(server.texts) == sorted(["where is my money", *NAMES.values(), *LINES])
    assert head.metadata["body"] == "remote:n-grams"

    def rows(texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(ngrams(texts).astype(np.float32))

    own = toy_features.generate(
        rows(["where is my money"]), ["refund"], unlabelled=rows([*LINES, LINES[0]]), seed=1,
        descriptions={label: rows([text])[0] for label, text in NAMES.items()},
    )  # fmt: skip
    assert own.metadata["body"] == "features"
    assert sum(a == b for a, b in zip(head.predict(rows(LINES)), own.predict(rows(LINES)), strict=True)) >= 4
    assert head.predict(bundle.embed(["my card is lost"]))[0] in NAMES
    assert bundle.generate(rows(LINES), list("abcde")).labels == list("abcde")


def test_an_update_sends_only_what_is_new(server: Embedder, toy_features_folder) -> None:
    bundle = ltdi.load_bundle(toy_features_folder, device="cpu", body=remote(server))
    head = bundle.generate(descriptions=NAMES, unlabelled=LINES)
    server.reset()
    head = bundle.update(head, ["pay me back"], ["refund"])
    head = bundle.add_class(head, "balance", description="how much is there")
    bundle.remove_class(head, "refund")
    assert server.texts == ["pay me back", "how much is there"]


def test_features_beside_texts_must_be_of_the_endpoint_s_size(server: Embedder, toy_features_folder) -> None:
    bundle = ltdi.load_bundle(toy_features_folder, device="cpu", body=remote(server))
    with pytest.raises(InvalidFeatures, match="size 5; those of the texts have 128") as refused:
        bundle.generate(torch.rand(2, 5), ["refund", "lost_card"], descriptions=NAMES)
    assert refused.value.field == "support"
    assert bundle.generate(torch.rand(2, SIZE), ["refund", "lost_card"], descriptions=NAMES).labels


def test_a_bundle_of_one_size_refuses_an_endpoint_of_another(server: Embedder, tmp_path) -> None:
    bundle = make_geometry(tmp_path / "fitted", BodyConfig("features", 0, 0, "", 24))
    with pytest.raises(EmbedderFailed, match="size 128; this bundle takes 24"):
        bundle.with_body(remote(server)).generate(descriptions=NAMES)
    with pytest.raises(InvalidConfig, match="gives 128 numbers; the bundle takes 24"):
        bundle.with_body(remote(server, feature_size=SIZE))


def test_a_bundle_with_a_body_takes_no_other(server: Embedder, toy_folder) -> None:
    with pytest.raises(InvalidConfig, match="takes no such body"):
        ltdi.load_bundle(toy_folder, body=remote(server))


@pytest.mark.skipif(not SENTENCES, reason="the extra `text` is not installed")
def test_a_sentence_encoder_behind_http_gives_the_features_that_it_gives_here(protocol: str) -> None:
    local = SentenceBody("all-MiniLM-L6-v2", 384)
    with embedder(lambda texts: local.embed(texts).numpy()) as server:
        assert torch.allclose(remote(server, protocol, batch=2).embed(LINES), local.embed(LINES), atol=1e-5)
