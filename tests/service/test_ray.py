"""The service on a real local Ray: replicas behind Ray's proxy answer as the service does by itself."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from ltdi import Bundle
from ltdi.errors import InvalidConfig

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("ray.serve", reason="the extra `ray` is not installed")

from ray import serve  # noqa: E402

from service.ray_app import Scale, build  # noqa: E402
from service.settings import Settings  # noqa: E402

ROWS, LABELS = torch.eye(256)[:6], ["a", "a", "b", "b", "c", "c"]
SUPPORT = [{"label": label, "features": row} for label, row in zip(LABELS, ROWS.tolist(), strict=True)]


@pytest.fixture(scope="module")
def proxy(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ray.init("local", _node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=3, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            arguments = {"bundle": str(toy_folder), "min_replicas": "2", "max_replicas": "2", "queue_length": "32"}
            serve.run(build(arguments), name="ltdi")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield client
            serve.shutdown()
        finally:
            ray.shutdown()


@pytest.mark.slow
def test_a_head_has_the_bytes_that_it_has_without_ray(proxy: httpx.Client, toy: Bundle) -> None:
    assert proxy.get("/readyz").json() == {"status": "ok", "reasons": []}
    answer = proxy.post("/generate-head", json={"support": SUPPORT, "seed": 3})
    assert answer.status_code == 200, answer.text
    assert answer.content == toy.generate(ROWS, LABELS, seed=3).to_bytes()
    assert answer.headers["LtDi-Method"] and "sample;dur=" in answer.headers["Server-Timing"]


@pytest.mark.slow
def test_two_replicas_share_requests_that_come_together(proxy: httpx.Client, toy: Bundle) -> None:
    (deployment,) = serve.status().applications["ltdi"].deployments.values()
    assert deployment.replica_states == {"RUNNING": 2}
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda seed: proxy.post("/generate-head", json={"support": SUPPORT, "seed": seed}), range(32)))
    assert [answer.content for answer in made] == [toy.generate(ROWS, LABELS, seed=seed).to_bytes() for seed in range(32)]
    counted = r'^ltdi_requests_total{code="200",route="/generate-head"} (\S+)'
    seen = [re.search(counted, proxy.get("/metrics").text, re.MULTILINE) for _ in range(20)]
    assert len({float(found[1]) for found in seen if found}) == 2
    assert max(float(found[1]) for found in seen if found) < 33


@pytest.mark.slow
def test_problems_and_request_ids_pass_the_proxy_once(proxy: httpx.Client) -> None:
    answer = proxy.post("/generate-head", content=b"{", headers={"Content-Type": "application/json", "X-Request-Id": "mine"})
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:ltdi:body-malformed")
    assert answer.headers.get_list("x-request-id") == ["mine"] and answer.json()["request_id"] == "mine"
    assert answer.headers["content-type"] == "application/problem+json"


def test_unknown_and_impossible_arguments_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="'max_replica' is neither a setting"):
        build({"max_replica": "2"})
    with pytest.raises(InvalidConfig, match="max_replicas is 'many'"):
        build({"max_replicas": "many"})
    with pytest.raises(InvalidConfig, match="queue_length"):
        build({"queue_length": "0"})


def test_a_replica_may_hold_more_requests_than_its_queue_so_that_it_refuses_by_itself() -> None:
    assert Scale().max_ongoing_requests > Settings().queue_length
    options = Scale(max_replicas=7, replica_gpus=0.5).options(Settings(drain_seconds=9))
    assert options["autoscaling_config"]["max_replicas"] == 7 and options["graceful_shutdown_timeout_s"] == 10
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0.5}
