"""Dashboard, alerts and scaling rule: their metrics exist, and a real Prometheus answers every expression of theirs."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from service.client import png
from service.metrics import Metrics
from service.problems import KINDS
from tests.docker.conftest import DOCKER, ROOT, features_task, free_port, running, until
from training.data.made import load_made

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None, reason="prometheus is not installed: make system-deps"
)
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = {rule["alert"]: rule for rule in yaml.safe_load((DOCKER / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]}
ADAPTER = yaml.safe_load((DOCKER / "kubernetes" / "monitoring" / "adapter-values.yaml").read_text(encoding="utf-8"))
(RULE,) = ADAPTER["rules"]["custom"]
SHOWN = {f"{panel['title']}, {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
LIMIT = re.compile(r" (?:>|==) [\d.]+$")


def variables() -> list[str]:
    return [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]


def exported() -> set[str]:
    """The names of all samples that the service can show."""
    names = set()
    for metric in Metrics().registry.collect():
        if metric.type == "histogram":
            names |= {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")}
        else:
            names.add(f"{metric.name}_total" if metric.type == "counter" else metric.name)
    return names


def filled(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    for name, value in {"$__rate_interval": "30s", "$instance": ".*", "$model": ".*"}.items():
        expression = expression.replace(name, value)
    return expression


class Watched:
    """A service under traffic, and the Prometheus that watches it."""

    def __init__(self, prometheus: str) -> None:
        self.http = httpx.Client(base_url=prometheus, timeout=30)

    def series(self, expression: str) -> list[dict]:
        """What an expression gives now."""
        answer = self.http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def values(self, expression: str) -> list[float]:
        """The finite values of `series`."""
        values = [float(series["value"][1]) for series in self.series(expression)]
        return [value for value in values if math.isfinite(value)]


def traffic(address: str, seconds: float) -> None:
    """Good and bad requests of every kind that the dashboard tells apart, for some seconds."""
    drawings = load_made("test", classes=3, drawings=2).images.flatten(0, 1)
    images = [("support", (f"c{i // 2}/{i}.png", png(image))) for i, image in enumerate(drawings)]
    end, seed = time.monotonic() + seconds, 0
    with httpx.Client(base_url=address, timeout=60) as http:
        while time.monotonic() < end:
            seed += 1
            task = features_task(seed)
            assert http.post("/generate-head", json=task).headers["ltdi-cache"] == "miss"
            assert http.post("/generate-head", json=task).headers["ltdi-cache"] == "hit"
            assert http.post("/generate-head", json=task | {"model": "any-embedding"}).status_code == 200
            data = {"request": json.dumps({"model": "omniglot", "seed": seed})}
            assert http.post("/generate-head", files=images, data=data).status_code == 200
            assert http.post("/generate-head", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
            assert http.post("/generate-head", json={"support": []}).status_code == 422
            assert http.post("/generate-head", json=task | {"model": "no-such-bundle"}).status_code == 503
            time.sleep(0.1)


@pytest.fixture(scope="module")
def watched(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The shipped configuration, with this service as its target and a second for its intervals."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = (DOCKER / "prometheus.yml").read_text(encoding="utf-8")
    config = config.replace("ltdi:8080", address.removeprefix("http://")).replace("_interval: 15s", "_interval: 1s")
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(DOCKER / "alerts.yml", folder)
    command = [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (folder / "log").open("w") as log, running(command, stdout=log, stderr=log):
        watched = Watched(f"http://127.0.0.1:{port}")
        until(lambda: watched.http.get("/-/ready").status_code == 200)
        until(lambda: watched.values('up{job="ltdi"}') == [1])
        traffic(address, seconds=6)
        time.sleep(2)
        yield watched


@needs_prometheus
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    for command in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        checked = subprocess.run([PROMTOOL, *command], cwd=DOCKER, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tested_where_it_fires_and_on_a_service_in_good_health() -> None:
    cases = yaml.safe_load((DOCKER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    fires = {rule["alertname"] for case in cases for rule in case["alert_rule_test"] if rule.get("exp_alerts")}
    healthy = {rule["alertname"] for rule in cases[0]["alert_rule_test"] if not rule.get("exp_alerts")}
    assert fires == healthy == set(ALERTS)


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description"}, name


def test_the_readme_says_of_every_alert_what_to_do() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(LtDi\w+)`(?=.*\|)", readme)) >= set(ALERTS)
    for path in re.findall(r"docker/[\w./-]+[\w]", readme):
        assert (ROOT / path).exists(), path


def test_every_metric_that_is_named_is_one_that_the_service_shows() -> None:
    expressions = [*SHOWN.values(), *variables(), *(rule["expr"] for rule in ALERTS.values()), RULE["seriesQuery"]]
    named = {name for text in expressions for name in re.findall(r"\bltdi_\w+", text)}
    assert {"ltdi_queue_depth", "ltdi_stage_duration_seconds_bucket"} <= named
    assert not named - exported()


def test_every_metric_of_the_service_is_on_the_dashboard() -> None:
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported()}
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for text in SHOWN.values() for name in re.findall(r"\bltdi_\w+", text)}
    assert shown == families


def test_panels_do_not_overlap_and_use_the_chosen_data_source() -> None:
    cells = [(x, y) for p in DASHBOARD["panels"] for g in [p["gridPos"]]
             for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])]  # fmt: skip
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({p["id"] for p in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert {panel["datasource"]["uid"]} | {t["datasource"]["uid"] for t in panel["targets"]} == {"${datasource}"}


@needs_prometheus
@pytest.mark.parametrize("name", SHOWN)
def test_a_panel_has_data(watched: Watched, name: str) -> None:
    assert watched.values(filled(SHOWN[name])), SHOWN[name]


@needs_prometheus
def test_the_dashboard_s_variables_have_values(watched: Watched) -> None:
    for text in variables():
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", text).groups()
        assert {series["metric"][label] for series in watched.series(selector)} - {""}


@needs_prometheus
def test_the_dashboard_tells_what_happened(watched: Watched) -> None:
    by_code = {s["metric"]["code"] for s in watched.series(filled(SHOWN["Requests by code, A"]))}
    assert {"200", "400", "422", "503"} <= by_code
    by_stage = {s["metric"]["stage"] for s in watched.series(filled(SHOWN["Stages, p99, A"]))}
    assert by_stage == {"decode", "embed", "queue", "sample", "check", "encode"}
    models = {s["metric"]["model"] for s in watched.series(filled(SHOWN["Loaded bundles, A"]))}
    assert models == {"omniglot", "any-embedding"}
    (hits,) = watched.values(filled(SHOWN["Answered from the cache, A"]))
    assert 0.15 < hits < 0.35
    (errors,) = watched.values(filled(SHOWN["Errors, A"]))
    assert 0.05 < errors < 0.25


@needs_prometheus
@pytest.mark.parametrize("name", [name for name, rule in ALERTS.items() if LIMIT.search(rule["expr"]) and name != "LtDiNotReady"])
def test_what_an_alert_compares_with_its_limit_has_data(watched: Watched, name: str) -> None:
    """All but `LtDiNotReady`, which counts what a service that is ready never answers."""
    reasons = {reason for text in re.findall(r'reason=~?"([^"]+)"', ALERTS[name]["expr"]) for reason in text.split("|")}
    if missing := reasons - {kind.reason for kind in KINDS.values()}:
        pytest.skip(f"this service never refuses for {', '.join(sorted(missing))}")
    assert watched.values(LIMIT.sub("", ALERTS[name]["expr"]))


@needs_prometheus
def test_no_alert_fires_on_a_service_that_was_just_started(watched: Watched) -> None:
    until(lambda: all(rule["health"] != "unknown" for rule in loaded(watched)))
    assert {rule["name"]: rule["health"] for rule in loaded(watched)} == dict.fromkeys(ALERTS, "ok")
    assert not [rule["name"] for rule in loaded(watched) if rule["state"] == "firing"]


def loaded(watched: Watched) -> list[dict]:
    """The alerts as Prometheus has them."""
    return watched.http.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]


@needs_prometheus
def test_the_adapter_s_query_gives_a_depth_for_each_pod(watched: Watched) -> None:
    query = RULE["metricsQuery"]
    for name, value in {"Series": "ltdi_queue_depth", "LabelMatchers": 'job="ltdi"', "GroupBy": "instance"}.items():
        query = query.replace(f"<<.{name}>>", value)
    assert "<<" not in query
    (depth,) = watched.values(query)
    assert depth >= 0
