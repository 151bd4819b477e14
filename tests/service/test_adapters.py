"""kind=lora over HTTP: a PEFT folder as zip archive, the adapter as safetensors and as JSON, and what is refused."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

import ltdi
from ltdi import Bundle
from ltdi.adapters import AdapterBundle, BaseModel, from_zip, read_folder, to_safetensors, to_zip
from ltdi.adapters.check import logits, peft_installed
from ltdi.bundle import HeadRequest
from ltdi.pipeline import Options
from service.client import LtDiClient
from service.jobs import Job, work_on
from service.process import ProcessWorker
from service.settings import Settings
from tests.ltdi.adapters.made import LABELS, PAIRS, TEXTS, make_adapter_bundle, transformers, write_base
from tests.service.conftest import Running, json_task

SUPPORT = [{"label": label, "text": text} for label, text in zip(LABELS, TEXTS, strict=True)]
TASK = {"model": "toy-lora", "kind": "lora", "support": SUPPORT}
ZIP, JSON = {"Accept": "application/zip"}, {"Accept": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bundles") / "toy-lora"
    write_base(made / "base")
    make_adapter_bundle(BaseModel(str(made / "base"), 16), "base").save(made)
    return made


@pytest.fixture(scope="module")
def bundle(folder: Path) -> AdapterBundle:
    return ltdi.load_bundle(folder, device="cpu")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def served(toy: Bundle, bundle: AdapterBundle) -> Iterator[httpx.Client]:
    server = Running(Settings(), [toy, bundle])
    until_ready(server.client)
    yield server.client
    server.stop()


def until_ready(client: httpx.Client) -> None:
    models = [{"state": "loading"}]
    while any(model["state"] == "loading" for model in models):
        time.sleep(0.05)
        models = client.get("/models").json()["models"]
    assert not [model["reason"] for model in models if model["state"] == "failed"]


def post(client: httpx.Client, headers: dict | None = None, **changes: object) -> httpx.Response:
    return client.post("/generate-head", json=TASK | changes, headers=headers)


def test_an_adapter_in_each_form_is_the_library_s(served: httpx.Client, bundle: AdapterBundle) -> None:
    own = bundle.generate(TEXTS, LABELS, seed=2, base_model_name_or_path="org/Exact", fallback="none")
    chosen = {"seed": 2, "base_model_name_or_path": "org/Exact", "options": {"fallback": "none"}}
    plain, packed, document = (post(served, headers, **chosen) for headers in ({}, ZIP, JSON))
    assert plain.status_code == packed.status_code == document.status_code == 200, plain.text
    assert plain.content == to_safetensors(own) and plain.headers["Content-Type"] == "application/vnd.safetensors"
    assert packed.content == to_zip(own) and packed.headers["Content-Type"] == "application/zip"
    said = document.json()
    assert said["adapter_config"] == own.config() and said["labels"] == list(own.labels)
    assert said["adapter_config"]["base_model_name_or_path"] == "org/Exact"
    assert all(torch.equal(torch.tensor(said["tensors"][name]), value) for name, value in own.tensors.items())
    assert said["effect"]["delta_norm"] > 0 and said["timings_ms"]["total"] > 0
    assert ("peft" in said["checks"][-1]) == peft_installed()
    for answer in (plain, packed, document):
        assert answer.headers["LtDi-Method"] == own.method and answer.headers["LtDi-Bundle"] == f"toy-lora@{bundle.digest[:12]}"
        assert {part.split(";")[0] for part in answer.headers["Server-Timing"].split(", ")} >= {"decode", "embed", "sample", "check", "encode"}


def test_what_curl_saves_is_loaded_by_peft(served: httpx.Client, folder: Path, bundle: AdapterBundle, tmp_path: Path) -> None:
    library = pytest.importorskip("peft", reason="the extra `lora` is not installed")
    with zipfile.ZipFile(io.BytesIO(post(served, ZIP, options={"fallback": "none"}).content)) as archive:
        archive.extractall(tmp_path / "one")
    plain = transformers().AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=3)
    model = library.PeftModel.from_pretrained(plain, tmp_path / "one").eval()
    adapter = read_folder(tmp_path / "one")
    with torch.no_grad():
        found = model(**bundle.body.tokens(TEXTS)).logits
    assert torch.allclose(found, logits(adapter, bundle.body, TEXTS), atol=1e-5)
    assert [adapter.labels[row] for row in found.argmax(-1)] == LABELS


def test_the_name_of_the_base_and_the_form_tell_artefacts_apart(served: httpx.Client) -> None:
    names = [post(served, headers, base_model_name_or_path=name).headers["ETag"] for name in (None, "a", "b") for headers in ({}, ZIP)]
    assert len(set(names)) == 6
    again = post(served, ZIP, base_model_name_or_path="a")
    assert again.headers["LtDi-Cache"] == "hit" and from_zip(again.content).base_model_name_or_path == "a"
    kept = served.get(f"/artefacts/{names[3].strip(chr(34))}")
    assert kept.content == again.content and kept.headers["Content-Type"] == "application/zip"


def test_pairs_make_an_adapter(served: httpx.Client, bundle: AdapterBundle) -> None:
    answer = post(served, support=[{"label": "ny"[i % 2], "pair": pair} for i, pair in enumerate(PAIRS)])
    assert answer.status_code == 200, answer.text
    assert answer.content == to_safetensors(bundle.generate(PAIRS, list("nyny")))


def test_the_client_gives_an_adapter(served: httpx.Client, bundle: AdapterBundle) -> None:
    with LtDiClient(str(served.base_url)) as client:
        made = client.generate_adapter(TEXTS, LABELS, model="toy-lora", seed=4, base_model_name_or_path="org/x", check=False)
        assert to_safetensors(made) == to_safetensors(bundle.generate(TEXTS, LABELS, seed=4, base_model_name_or_path="org/x", check=False))
        assert client.generate_adapter(PAIRS, list("abab"), model="toy-lora").labels == ("a", "b")
        said = dict.fromkeys(LABELS, "a card")
        described = client.generate_adapter(TEXTS, LABELS, model="toy-lora", descriptions=said)
        assert to_safetensors(described) == to_safetensors(bundle.generate(TEXTS, LABELS, descriptions=said))
        assert described.metadata["support_digest"] != made.metadata["support_digest"]


def test_the_models_say_what_they_make(served: httpx.Client) -> None:
    models = {model["name"]: model for model in served.get("/models").json()["models"]}
    lora = models["toy-lora"]
    assert (models["toy"]["kind"], lora["kind"]) == ("head", "lora")
    assert lora["response_forms"] == ["application/vnd.safetensors", "application/json", "application/zip"]
    assert lora["request_forms"] == ["application/json"] and lora["input_kinds"] == ["texts", "pairs"]
    assert "application/zip" not in models["toy"]["response_forms"]
    assert lora["body"]["kind"] == "text" and lora["body"]["installed"] and lora["feature_size"] == 32
    assert served.get("/models/toy-lora").json()["limits"]["examples"] == 256


REFUSED = [
    ("a head of it", {"kind": "head"}, 422, "input-unsupported", "/kind"),
    ("an adapter of a bundle of heads", {"model": "toy"}, 422, "input-unsupported", "/kind"),
    ("draws", {"options": {"draws": 2}}, 422, "input-unsupported", "/options/draws"),
    ("steps", {"options": {"refine_steps": 1}}, 422, "input-unsupported", "/options/refine_steps"),
    ("a base without a name", {"base_model_name_or_path": " "}, 422, "invalid-input", "/base_model_name_or_path"),
    ("a pool", {"unlabelled": [{"text": "x"}]}, 422, "input-unsupported", "/unlabelled"),
    ("a description for examples", {"classes": [{"label": x, "description": "d"} for x in (*sorted(set(LABELS)), "z")]}, 422, "support-invalid", "/support"),
    ("features", {"support": [{"label": "a", "features": [1.0] * 32}]}, 422, "input-unsupported", "/support"),
    ("one class", {"support": SUPPORT[:2]}, 422, "classes-too-few", "/support"),
    ("three texts", {"support": [{"label": "a", "pair": ["x", "y", "z"]}, {"label": "b", "pair": ["x", "y"]}]}, 422, "text-invalid", "/support/0"),
    ("long text", {"support": [*SUPPORT, {"label": "card", "text": "card " * 40}]}, 422, "text-invalid", "/support/6"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "code", "field"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_names_its_place(served: httpx.Client, changes: dict, status: int, code: str, field: str | None) -> None:
    answer = post(served, **changes)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:ltdi:{code}"), answer.text
    assert field is None or answer.json()["field"] == field


def test_forms_that_a_kind_has_not_are_406(served: httpx.Client, images: torch.Tensor, labels: list[str]) -> None:
    assert post(served, {"Accept": "application/onnx"}).status_code == 406
    assert served.post("/generate-head", json=json_task(images, labels, model="toy"), headers=ZIP).status_code == 406
    named = json_task(images, labels, model="toy", base_model_name_or_path="x")
    assert served.post("/generate-head", json=named).json()["field"] == "/base_model_name_or_path"


def test_adapters_are_neither_embedded_nor_predicted_with(served: httpx.Client) -> None:
    etag = post(served).headers["ETag"].strip('"')
    head = {"artefact": etag, "queries": [{"text": "my card"}]}
    for path, body in (("/predict", head), ("/embed", {"model": "toy-lora", "inputs": [{"text": "x"}]}), ("/embed?as=task", TASK)):
        answer = served.post(path, json=body)
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:ltdi:input-unsupported"), answer.text
    assert served.get("/models/toy-lora/body").status_code == 422


def test_adapters_are_counted_by_kind(served: httpx.Client) -> None:
    post(served, seed=77)
    text = served.get("/metrics").text
    assert 'ltdi_ways_count{kind="lora"}' in text and 'ltdi_artefact_bytes_count{kind="lora"}' in text


def test_texts_that_are_cut_are_counted(served: httpx.Client) -> None:
    answer = post(served, support=[*SUPPORT, {"label": "card", "text": "card " * 40}], options={"truncate": True})
    assert (answer.status_code, answer.headers["LtDi-Truncated"]) == (200, "1")


def test_an_adapter_that_takes_too_long_is_given_up_between_two_passes(
    toy: Bundle, bundle: AdapterBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, passes = BaseModel._each, []

    def slow(*arguments: object) -> object:
        passes.append(time.sleep(4.0 if not passes else 0.0))
        return real(*arguments)

    server = Running(Settings(answer_seconds=3.0), [toy, bundle])
    try:
        until_ready(server.client)
        with monkeypatch.context() as patch:
            patch.setattr(BaseModel, "_each", slow)
            late = post(server.client)
        assert (late.status_code, late.json()["type"], late.json()["field"]) == (504, "urn:ltdi:deadline-passed", "/support")
        assert "fewer or shorter examples" in late.json()["detail"] and len(passes) == 1
        assert 'ltdi_requests_rejected_total{reason="deadline"} 1.0' in server.client.get("/metrics").text
    finally:
        server.stop()


def test_the_time_of_an_adapter_counts_from_its_beginning(bundle: AdapterBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real, passes = BaseModel._each, []

    def slow(*arguments: object) -> object:
        passes.append(time.sleep(0.6 if not passes else 0.0))
        return real(*arguments)

    monkeypatch.setattr(BaseModel, "_each", slow)
    now = time.monotonic()
    job = Job(HeadRequest(bundle.support(TEXTS, LABELS), Options()), bundle, deadline=now + 0.5, queued_at=now - 30.0)
    assert job.begin() and [list(done) for done in work_on([job], lambda name, size: None)] == [[job]]
    assert job.future.result().labels == tuple(sorted(set(LABELS))), "its deadline has passed, the time that it is allowed has not"


def test_a_missing_base_is_503_with_its_remedy_and_a_foreign_one_does_not_serve(toy: Bundle, folder: Path, tmp_path: Path) -> None:
    make_adapter_bundle(BaseModel(str(folder / "base"), 16), "elsewhere").save(tmp_path / "missing")
    make_adapter_bundle(BaseModel(str(folder / "base"), 16), "base", name="foreign").save(tmp_path / "foreign")
    write_base(tmp_path / "foreign" / "base", num_hidden_layers=3)
    server = Running(Settings(), [toy, *(ltdi.load_bundle(tmp_path / name, device="cpu") for name in ("missing", "foreign"))])
    try:
        while any(model["state"] == "loading" for model in server.client.get("/models").json()["models"]):
            time.sleep(0.05)
        refused = post(server.client)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:ltdi:body-missing")
        assert "ltdi[text,lora]" in refused.json()["detail"]
        foreign = server.client.get("/models/foreign").json()
        assert foreign["state"] == "failed" and "a number of layers of 3; this was made for 2" in foreign["reason"]
        assert post(server.client, model="foreign").json()["type"] == "urn:ltdi:model-not-ready"
    finally:
        server.stop()


def test_the_process_that_runs_torch_makes_the_same_bytes(folder: Path, toy_folder: Path, bundle: AdapterBundle) -> None:
    server = Running(Settings(bundle=(str(toy_folder), str(folder)), device="cpu"), None)
    try:
        assert isinstance(server.app.state.service.worker, ProcessWorker)
        until_ready(server.client)
        answers = [post(server.client, ZIP, seed=seed) for seed in (0, 1)]
        refused = post(server.client, base_model_name_or_path="")
    finally:
        server.stop()
    for seed, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        assert answer.content == to_zip(bundle.generate(TEXTS, LABELS, seed=seed))
    assert (refused.status_code, refused.json()["field"]) == (422, "/base_model_name_or_path")
