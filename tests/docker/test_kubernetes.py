"""The Kubernetes manifests: their schema, and that the parts find each other and the service."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import yaml

from ltdi.errors import InvalidConfig
from service.app import create_app
from service.settings import PREFIX, Settings, load_settings
from tests.docker.conftest import DOCKER, ROOT

FOLDER = DOCKER / "kubernetes"
NAMES = sorted(path.name for path in FOLDER.glob("*.yaml"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


POD = manifest("deployment.yaml")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
LABELS = POD["metadata"]["labels"].items()


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_follows_its_schema(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="the extra `dev` is not installed")
    validator.validate(manifest(name), validator.latest_version(), strict=True)


def test_every_selector_finds_the_pods() -> None:
    selectors = [
        manifest("deployment.yaml")["spec"]["selector"]["matchLabels"],
        manifest("service.yaml")["spec"]["selector"],
        manifest("disruption-budget.yaml")["spec"]["selector"]["matchLabels"],
        POD["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= LABELS for selector in selectors)


def test_ports_have_the_names_that_others_use_and_the_number_of_the_settings() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    assert [p["targetPort"] for p in manifest("service.yaml")["spec"]["ports"]] == [port["name"]]
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])


def test_probes_ask_routes_that_exist_and_load_never_restarts_a_pod() -> None:
    paths = {probe: CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    assert set(paths.values()) <= set(create_app().openapi()["paths"])
    assert {CONTAINER[probe]["httpGet"]["port"] for probe in paths} == {CONTAINER["ports"][0]["name"]}


def test_a_pod_has_a_read_only_root_and_no_right_that_it_does_not_need() -> None:
    inner, outer = CONTAINER["securityContext"], POD["spec"]["securityContext"]
    assert inner == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert outer["runAsNonRoot"] and f"USER {outer['runAsUser']}" in (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]
    assert set(CONTAINER["resources"]) == {"requests", "limits"}


def test_a_pod_is_given_settings_that_exist_and_time_to_drain() -> None:
    settings = Settings(**{e["name"].removeprefix(PREFIX).lower(): e["value"] for e in CONTAINER["env"]})
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert POD["spec"]["terminationGracePeriodSeconds"] > pause + settings.drain_seconds
    assert CONTAINER["image"] == f"ltdi:{VERSION}" and POD["metadata"]["labels"]["app.kubernetes.io/version"] == VERSION


def test_variables_of_a_service_of_this_name_would_be_refused_so_none_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert manifest("service.yaml")["metadata"]["name"] == "ltdi" and POD["spec"]["enableServiceLinks"] is False
    monkeypatch.setenv("LTDI_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(InvalidConfig, match="LTDI_SERVICE_HOST"):
        load_settings({})


def test_scaling_reads_the_metric_that_the_adapter_gives_and_begins_before_the_queue_is_full() -> None:
    (metric,) = manifest("autoscaler.yaml")["spec"]["metrics"]
    (rule,) = manifest("monitoring/adapter-values.yaml")["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == "ltdi_queue_depth"
    assert int(metric["pods"]["target"]["averageValue"]) < Settings.model_fields["queue_length"].default / 2
    target = manifest("autoscaler.yaml")["spec"]["scaleTargetRef"]
    deployment = manifest("deployment.yaml")
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "applied again, it would undo what the autoscaler chose"
    assert manifest("autoscaler.yaml")["spec"]["minReplicas"] > manifest("disruption-budget.yaml")["spec"]["minAvailable"]


def test_the_service_monitor_finds_the_service_and_names_the_job_of_alerts_and_dashboard() -> None:
    monitor, service = manifest("monitoring/service-monitor.yaml"), manifest("service.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "ltdi"
    assert [e["port"] for e in monitor["spec"]["endpoints"]] == [p["name"] for p in service["spec"]["ports"]]
    assert [e["path"] for e in monitor["spec"]["endpoints"]] == ["/metrics"]
