"""Health, metrics, logs, settings, the document, and the command."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from ltdi.errors import InvalidConfig
from service.app import create_app
from service.commands import default_of, parser
from service.metrics import Metrics
from service.openapi import text
from service.problems import KINDS
from service.settings import Settings, flag_of, load_settings
from tests.service.conftest import Running, json_task

ROOT = Path(__file__).parents[2]
CONTRACT = {
    "ltdi_requests_total": {"route", "code"},
    "ltdi_request_duration_seconds": {"route"},
    "ltdi_stage_duration_seconds": {"stage", "model"},
    "ltdi_requests_rejected_total": {"reason"},
    "ltdi_queue_depth": set(),
    "ltdi_queue_limit": set(),
    "ltdi_requests_in_flight": set(),
    "ltdi_worker_alive": set(),
    "ltdi_batch_size": {"model"},
    "ltdi_ways": {"kind"},
    "ltdi_support_examples": {"kind"},
    "ltdi_artefact_bytes": {"kind"},
    "ltdi_support_accuracy": {"model"},
    "ltdi_support_accuracy_gain": {"model"},
    "ltdi_cache_requests_total": {"outcome"},
    "ltdi_model_info": {"model", "version", "digest", "body", "device"},
}


def test_metrics_have_the_names_and_labels_of_the_contract(http, images, labels) -> None:
    http.post("/generate-head", json=json_task(images, labels, seed=50))
    http.post("/generate-head", content=b"{", headers={"Content-Type": "application/json"})
    lines = http.get("/metrics").text
    for name, wanted in CONTRACT.items():
        found = re.search(rf"^{name}(?:_bucket|_count|_sum)?(?:{{(.*)}})? ", lines, re.MULTILINE)
        assert found, name
        assert set(re.findall(r'(\w+)="', found[1] or "")) - {"le"} == wanted, name
    for stage in ("decode", "embed", "queue", "sample", "check", "encode"):
        assert f'ltdi_stage_duration_seconds_count{{model="toy",stage="{stage}"}}' in lines


def test_counters_with_known_labels_are_there_before_their_first_event() -> None:
    lines = Metrics().text().decode()
    for reason in {kind.reason for kind in KINDS.values() if kind.reason}:
        assert f'ltdi_requests_rejected_total{{reason="{reason}"}} 0.0' in lines
    for rest in ('cache_requests_total{outcome="hit"}', 'cache_requests_total{outcome="miss"}',
                 'fallbacks_total{reason="support_accuracy"}', 'artefact_check_failures_total{reason="generation-failed"}'):  # fmt: skip
        assert f"ltdi_{rest} 0.0" in lines


def test_a_service_is_ready_only_once_its_bundle_has_proven_itself(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(bundle=(str(tmp_path / "nothing"),)))) as http:
        until = time.monotonic() + 10
        while "loading" in http.get("/readyz").text and time.monotonic() < until:
            time.sleep(0.01)
        answer = http.get("/readyz")
        assert answer.status_code == 503 and "failed" in answer.json()["reasons"][0]
        assert http.get("/livez").status_code == 200
        refused = http.post("/generate-head", json={"support": [{"label": "a", "features": [1.0]}]})
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:ltdi:model-not-ready")
        assert refused.headers["retry-after"]
        assert http.get("/health").json() == answer.json()
        assert str(tmp_path) not in answer.text + http.get("/models").text + refused.text
        assert http.get("/models/nothing").json()["state"] == "failed"


def test_a_dead_inference_thread_is_neither_ready_nor_live(toy) -> None:
    app = create_app(Settings(), [toy])
    with TestClient(app) as http:
        app.state.service.worker.stop()
        assert http.get("/livez").status_code == 503
        assert http.get("/readyz").status_code == 503
        assert http.post("/generate-head", json={"support": []}).json()["type"] == "urn:ltdi:not-ready"


@pytest.mark.parametrize("death", [SystemExit("secret"), MemoryError("secret")], ids=["exit", "memory"])
def test_when_the_inference_thread_dies_everyone_learns_it_within_a_second(toy, death, caplog, capfd) -> None:
    server = Running(Settings(), [toy])
    try:
        http, worker = server.client, server.app.state.service.worker
        assert "ltdi_worker_alive 1.0" in http.get("/metrics").text
        worker._on_batch = lambda name, size: (_ for _ in ()).throw(death)
        task = [{"label": label, "features": [value] * 256} for label, value in (("a", 0.1), ("b", 0.2))]
        waiting = http.post("/generate-head", json={"support": task})
        died = time.monotonic()
        assert (waiting.status_code, waiting.json()["type"]) == (503, "urn:ltdi:not-ready")
        while (codes := [http.get(path).status_code for path in ("/readyz", "/livez")]) != [503, 503]:
            assert time.monotonic() - died < 1, codes
        refused = http.post("/generate-head", json={"support": task})
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:ltdi:not-ready")
        assert refused.headers["retry-after"]
        assert "ltdi_worker_alive 0.0" in http.get("/metrics").text
    finally:
        server.stop()
    assert [record.levelname for record in caplog.records if record.message == "inference ended"] == ["CRITICAL"]
    assert "secret" not in caplog.text + "".join(capfd.readouterr())


def test_the_served_document_is_the_one_in_the_repository(http) -> None:
    assert http.get("/openapi.json").json() == json.loads((ROOT / "openapi" / "openapi.json").read_text(encoding="utf-8"))


def test_the_readme_has_a_table_of_every_setting() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", readme.split("## Settings")[1].split("\n## ")[0], re.MULTILINE))
    wanted = {name: f"{field.description} | {default_of(field)}" for name, field in Settings.model_fields.items()}
    assert rows == wanted


def test_the_document_in_the_repository_is_the_app_s() -> None:
    kept = (ROOT / "openapi" / "openapi.json").read_text(encoding="utf-8")
    assert kept == text(create_app()), "run `make openapi`"


def test_help_names_every_setting() -> None:
    page = parser().format_help()
    for name, field in Settings.model_fields.items():
        assert flag_of(name) in page and f"LTDI_{name.upper()}" in page and field.description.split()[0] in page


def test_flags_win_over_the_environment_and_it_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ltdi.toml"
    file.write_text("port = 1\nmax_items = 11\nqueue_length = 12\n")
    monkeypatch.setenv("LTDI_MAX_ITEMS", "21")
    monkeypatch.setenv("LTDI_PORT", "2")
    settings = load_settings({"port": 3}, file)
    assert (settings.port, settings.max_items, settings.queue_length) == (3, 21, 12)


def test_unknown_settings_are_refused_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ltdi.toml"
    file.write_text("que_length = 12\n")
    with pytest.raises(InvalidConfig, match="queue_length"):
        load_settings({}, file)
    monkeypatch.setenv("LTDI_PROT", "2")
    with pytest.raises(InvalidConfig, match="LTDI_PORT"):
        load_settings({})


def test_the_command_serves_a_bundle_logs_json_and_stops_on_sigterm(toy_folder: Path) -> None:
    command = [sys.executable, "-m", "ltdi.cli", "serve", "--port", "0", "--bundle", str(toy_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        address, lines = None, []
        for line in process.stdout:
            lines.append(json.loads(line))
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                address = found[0]
                break
        until = time.monotonic() + 20
        while httpx.get(f"{address}/readyz").status_code != 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert httpx.get(f"{address}/models/toy").json()["state"] == "ready"
        process.send_signal(signal.SIGTERM)
        lines += [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=20) == 0
    requests = [line for line in lines if line["message"] == "request"]
    assert {"request_id", "route", "code", "seconds"} <= set(requests[-1])
