"""The compose files: what they name exists, and what they set fits the image and the service's settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.public.yml")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = {
    name.lower(): body for name, body in re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
}
RESET = object()
VARIABLE = re.compile(r"\$\{(\w+)(:[-+?])([^}]*)\}")


class Loader(yaml.SafeLoader):
    """YAML with Compose's `!reset` and `!override`, which take a value of an earlier file away or replace it."""


Loader.add_constructor("!reset", lambda loader, node: RESET)
Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def read(name: str, **variables: str) -> dict[str, Any]:
    """A compose file with ${NAME:-default}, ${NAME:+if set} and ${NAME:?needed} filled in."""

    def filled(found: re.Match[str]) -> str:
        value, operator, word = variables.get(found[1], ""), found[2], found[3]
        assert value or operator != ":?", f"{found[1]} is needed"
        return (word if value else "") if operator == ":+" else value or word

    text = VARIABLE.sub(filled, (ROOT / name).read_text())
    assert "${" not in text
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
    assert (settings.open, settings.keys) == (True, None), (
        "inside, every address is public; the ports are the host's own"
    )
    left = settings.shutdown_delay + settings.shutdown_grace
    assert seconds(service["stop_grace_period"]) >= left + 10


def test_ports_are_the_images_own_and_on_loopback_unless_told_otherwise(service: dict[str, Any]):
    exposed = re.search(r"^EXPOSE (.*)$", STAGES["runtime"], re.M)
    assert exposed is not None
    assert [port.rsplit(":", 1)[1] for port in service["ports"]] == exposed[1].split()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert read(FILES[0], BIND="0.0.0.0")["services"]["kronserve"] == service, "no single variable opens them"


def test_others_are_let_in_only_by_decision():
    with pytest.raises(AssertionError, match="KRONSERVE_OPEN is needed"):
        read(FILES[2], BIND="192.0.2.1", KRONSERVE_KEYS="keys.toml")
    public = read(FILES[2], KRONSERVE_OPEN="false", PORT="80")["services"]["kronserve"]
    assert public["ports"] == ["0.0.0.0:80:8000", "0.0.0.0:8001:8001"]
    assert public["environment"] == {"KRONSERVE_OPEN": False}


def test_a_key_file_of_the_host_is_seen_where_the_settings_look_for_it(base: dict[str, Any], service: dict[str, Any]):
    given = read(FILES[0], KRONSERVE_KEYS="my.toml", KRONSERVE_SCRAPE_KEY="scrape")
    (secret,) = given["services"]["kronserve"]["secrets"]
    assert given["services"]["kronserve"]["environment"]["KRONSERVE_KEYS"] == f"/run/secrets/{secret}"
    assert given["secrets"][secret]["file"] == "my.toml"
    (scraping,) = given["services"]["prometheus"]["secrets"]
    assert given["secrets"][scraping]["file"] == "scrape"
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs[0]["authorization"]["credentials_file"] == f"/run/secrets/{scraping}"
    assert service["environment"]["KRONSERVE_KEYS"] is None
    assert {entry["file"] for entry in base["secrets"].values()} == {os.devnull}


def test_an_image_is_labelled_with_the_release_unless_told_otherwise(service: dict[str, Any]):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in STAGES["runtime"]
    assert service["build"]["args"] == {"REVISION": "unknown"}
    assert read(FILES[0], REVISION="1f2e3d")["services"]["kronserve"]["build"]["args"]["REVISION"] == "1f2e3d"


def test_the_cache_is_where_every_container_can_write(service: dict[str, Any]):
    cache = re.search(r"KRONSERVE_CACHE_DIR=(\S+)", STAGES["runtime"])
    assert cache is not None
    assert cache[1].startswith(service["tmpfs"][0].split(":")[0] + "/")


def test_a_variable_of_the_image_beats_no_line_of_a_file_without_need():
    variables = set(re.findall(r"KRONSERVE_(\w+)=", STAGES["runtime"] + STAGES["cpu"] + STAGES["cuda"]))
    assert variables == {"HOST", "REPOSITORY", "CACHE_DIR", "DEVICE"}
    explained = (ROOT / "docs" / "operations.md").read_text()
    assert all(f"`KRONSERVE_{name}`" in explained for name in variables)


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
    assert base["services"]["dcgm-exporter"]["profiles"] == ["observability-gpu"]
    for name in ("prometheus", "grafana"):
        assert base["services"][name]["profiles"] == ["observability", "observability-gpu"]
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
    assert targets == ["kronserve:8000", "dcgm-exporter:9400"]
    assert {target.split(":")[0] for target in targets} <= set(base["services"])


def _compose() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            found = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if found.stdout.removeprefix("v").startswith("2."):
                return command
    return None


@pytest.mark.skipif(_compose() is None, reason="Docker Compose 2 is not installed")
@pytest.mark.parametrize("files", [FILES[:1], FILES[:2], FILES, [FILES[0], FILES[2]]])
def test_compose_accepts_them(files: tuple[str, ...]):
    command = [*(_compose() or ()), *(part for name in files for part in ("-f", name))]
    command += ["--profile", "observability-gpu", "config"]
    public = FILES[2] in files
    decided = {"KRONSERVE_OPEN": "false", "KRONSERVE_KEYS": "keys.toml"} if public else {}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment() | decided)
    assert done.returncode == 0, done.stderr
    service = yaml.safe_load(done.stdout)["services"]["kronserve"]
    assert {port["host_ip"] for port in service["ports"]} == ({"0.0.0.0"} if public else {"127.0.0.1"})
    assert len(service["ports"]) == 2
    assert service["environment"]["KRONSERVE_OPEN"] == ("false" if public else "true")
    if public:
        undecided = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment())
        assert undecided.returncode != 0
        assert "KRONSERVE_OPEN" in undecided.stderr


def _environment() -> dict[str, str]:
    """This process's, without what the compose files look for."""
    names = {name for file in FILES for name, *_ in VARIABLE.findall((ROOT / file).read_text())}
    return {name: value for name, value in os.environ.items() if name not in names}
