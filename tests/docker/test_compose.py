"""The compose files: the specification's schema, and what an operator relies on."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.docker.conftest import DOCKER, ROOT
from tests.docker.test_images import steps

FILES = ("compose.yaml", "compose.cuda.yaml")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
CUDA = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text(encoding="utf-8"))["services"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.mark.parametrize("name", FILES)
def test_a_compose_file_follows_the_compose_specification(name: str) -> None:
    pytest.importorskip("check_jsonschema", reason="the extra `dev` is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DOCKER / name)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_has_a_read_only_root_no_capability_and_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_by_its_version(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])
    assert SERVICES["ltdi"]["image"] == f"ltdi:{VERSION}" and CUDA["ltdi"]["image"] == f"ltdi:{VERSION}-cuda"


def test_what_is_mounted_and_built_exists() -> None:
    mounts = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    files = [mount for mount in mounts if mount[0].startswith(".")]
    assert files and all(mount[2] == "ro" for mount in files)
    for mount in files:
        assert (DOCKER / mount[0]).exists(), mount[0]
    assert (DOCKER / SERVICES["ltdi"]["build"]["context"]).resolve() == ROOT
    for service in (SERVICES["ltdi"], CUDA["ltdi"]):
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_only_the_proxy_listens_beyond_this_machine() -> None:
    for name, service in SERVICES.items():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:") != (name == "proxy"), (name, port)


def test_the_service_gets_settings_that_exist_and_time_to_drain() -> None:
    service = SERVICES["ltdi"]
    others = {name: value for name, value in service["environment"].items() if not name.startswith(PREFIX)}
    assert others == {"FORWARDED_ALLOW_IPS": COMPOSE["networks"]["default"]["ipam"]["config"][0]["subnet"]}
    given = service["environment"].items() - others.items()
    settings = Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in given})
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.leave_seconds + settings.drain_seconds + 2
    assert f":{settings.port}" in service["ports"][0]


def test_the_health_check_is_the_image_s() -> None:
    words = SERVICES["ltdi"]["healthcheck"]["test"]
    assert words[-1] in dict(steps("Dockerfile"))["HEALTHCHECK"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    folder = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    (provider,) = yaml.safe_load((folder / "dashboards" / "ltdi.yaml").read_text(encoding="utf-8"))["providers"]
    (mounted,) = [v.split(":")[1] for v in SERVICES["grafana"]["volumes"] if v.startswith("./grafana/dashboard.json")]
    assert mounted.rsplit("/", 1)[0] == provider["options"]["path"]
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == mounted
