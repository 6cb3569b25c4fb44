"""The compose files: what they name exists, and what they set fits the image and the service's settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.cpu.yml")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = {
    name.lower(): body for name, body in re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
}
RESET = object()


class Loader(yaml.SafeLoader):
    """YAML with Compose's `!reset`, which takes a value of an earlier file away."""


Loader.add_constructor("!reset", lambda loader, node: RESET)


def read(name: str, **variables: str) -> dict[str, Any]:
    """A compose file with ${NAME:-default} filled in."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1], found[2]), (ROOT / name).read_text())
    assert "${" not in text, "every variable has a default"
    return yaml.load(text, Loader)  # noqa: S506  (a SafeLoader)


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return read(FILES[0])


@pytest.fixture(scope="module")
def service(base: dict[str, Any]) -> dict[str, Any]:
    return base["services"]["kronserve"]


def seconds(text: str) -> float:
    return float(re.fullmatch(r"([\d.]+)s", text)[1])  # type: ignore[index]


def test_images_are_targets_of_the_dockerfile(service: dict[str, Any]):
    cpu = read(FILES[1])
    overlaid = cpu["services"]["kronserve"]
    assert set(cpu["services"]) == {"kronserve"}
    assert (service["build"]["target"], overlaid["build"]["target"]) == ("cuda", "cpu")
    assert {service["build"]["target"], overlaid["build"]["target"]} <= set(STAGES)
    assert overlaid["deploy"] is RESET, "the CPU file reserves no device"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_settings_are_settings(service: dict[str, Any]):
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    environment = service["environment"]
    assert set(environment) <= known
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items()}
    settings = Settings(**{name: value for name, value in given.items() if value != ""})
    assert settings.open, "the container listens on all of its addresses; the ports are on the host's loopback"
    left = settings.shutdown_delay + settings.shutdown_grace
    assert seconds(service["stop_grace_period"]) >= left + 10


def test_ports_are_the_images_own_and_on_loopback_unless_told_otherwise(service: dict[str, Any]):
    exposed = re.search(r"^EXPOSE (.*)$", STAGES["runtime"], re.M)
    assert exposed is not None
    assert [port.rsplit(":", 1)[1] for port in service["ports"]] == exposed[1].split()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    public = read(FILES[0], BIND="0.0.0.0", PORT="80")["services"]["kronserve"]["ports"]
    assert public[0] == "0.0.0.0:80:8000"


def test_the_container_has_no_more_rights_than_it_needs(service: dict[str, Any]):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]  # noqa: S108  (all that can be written)


def test_what_is_mounted_exists(base: dict[str, Any], service: dict[str, Any]):
    (models,) = service["volumes"]
    assert models["read_only"] is True
    assert models["target"] == re.search(r"KRONSERVE_REPOSITORY=(\S+)", STAGES["runtime"])[1]  # type: ignore[index]
    assert (ROOT / models["source"]).is_dir()
    for name in ("prometheus", "grafana"):
        assert base["services"][name]["profiles"] == ["observability"]
        for mount in base["services"][name]["volumes"]:
            source = mount.split(":")[0]
            assert (ROOT / source).is_dir() if source.startswith(".") else source in base["volumes"]


def test_grafana_finds_its_dashboards_and_prometheus(base: dict[str, Any]):
    mounts = dict(mount.split(":")[:2] for mount in base["services"]["grafana"]["volumes"])
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load(next((provisioning / "dashboards").iterdir()).read_text())["providers"]
    assert provider["options"]["path"] == mounts["./deploy/grafana/dashboards"]
    (source,) = yaml.safe_load(next((provisioning / "datasources").iterdir()).read_text())["datasources"]
    port = base["services"]["prometheus"]["ports"][0].rsplit(":", 1)[1]
    assert source["url"] == f"http://prometheus:{port}"
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = [target for job in scraped for group in job["static_configs"] for target in group["targets"]]
    assert "kronserve:8000" in targets


def _compose() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            found = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if found.stdout.removeprefix("v").startswith("2."):
                return command
    return None


@pytest.mark.skipif(_compose() is None, reason="Docker Compose 2 is not installed")
@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_compose_accepts_them(files: tuple[str, ...]):
    command = [*(_compose() or ()), *(part for name in files for part in ("-f", name))]
    command += ["--profile", "observability", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
