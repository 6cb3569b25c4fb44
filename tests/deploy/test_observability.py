"""Rules, metrics page and dashboard before a real Prometheus that scrapes a real service."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.access import new_key
from tests.service.conftest import write_add_model
from tests.service.process import Server, patiently, serving

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "kronserve.json").read_text())
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
OF_GPUS = {name: query for name, query in QUERIES.items() if "DCGM_" in query}
DCGM_COUNTERS = {
    *("DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_MEM_CLOCK", "DCGM_FI_DEV_MEMORY_TEMP", "DCGM_FI_DEV_GPU_TEMP"),
    *("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER"),
    *("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL", "DCGM_FI_DEV_ENC_UTIL", "DCGM_FI_DEV_DEC_UTIL"),
    *("DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED"),
}
"""Of etc/default-counters.csv in NVIDIA/dcgm-exporter: what the exporter gives without a list of one's own."""
INPUTS = [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in ("a", "b")]

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="prometheus and promtool are not on PATH; on Debian and Ubuntu: apt-get install prometheus",
)


def promtool(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key of each scope by its name; the folder of both files by the name `folder`."""
    folder = tmp_path_factory.mktemp("keys")
    made = {scope: new_key() for scope in ("read", "inference")}
    entries = [f'[keys.{scope}]\nsha256 = "{digest}"\nscopes = ["{scope}"]' for scope, (_, digest) in made.items()]
    (folder / "keys.toml").write_text("\n".join(entries))
    for name in ("scrape-key", "key"):
        (folder / name).write_text(made["read"][0] + "\n")
    return {scope: key for scope, (key, _) in made.items()} | {"folder": str(folder)}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("observed")
    write_add_model(folder / "repository" / "add" / "1")
    with serving(folder / "repository", folder / "log", "--keys", f"{keys['folder']}/keys.toml") as server:
        yield server


@pytest.fixture(scope="module")
def page(service: Server, keys: dict[str, str]) -> str:
    """The metrics page after some use."""
    _use(service, keys)
    answer = httpx.get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {keys['read']}"})
    assert answer.status_code == 200
    return answer.text


@pytest.fixture(scope="module")
def prometheus(service: Server, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our configuration, but for target, pace and the key's folder, in a Prometheus of its own."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(RULES / "alerts.yml", folder)
    text = (RULES / "prometheus.yml").read_text()
    assert "kronserve:8000" in text
    text = text.replace("kronserve:8000", f"127.0.0.1:{service.port}").replace("5s", "1s")
    assert "/run/secrets/scrape-key" in text
    text = text.replace("/run/secrets/", f"{keys['folder']}/")
    config = yaml.safe_load(text)
    config["scrape_configs"] += [_of_pods(service.port, keys["folder"])]
    text = yaml.safe_dump(config)
    (folder / "prometheus.yml").write_text(text)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        patiently(lambda: _ready(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _of_pods(port: int, folder: str) -> dict[str, Any]:
    """The job for a cluster, under another name, with what the cluster would tell of two ports of a pod."""
    (job,) = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-scrape.yml").read_text())["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    pod = {"namespace": "models", "pod_name": "kronserve-5d9", "pod_label_app_kubernetes_io_name": "kronserve"}
    told = {f"__meta_kubernetes_{name}": value for name, value in pod.items()}
    ports = [told | {"__meta_kubernetes_pod_container_port_name": name} for name in ("http", "grpc")]
    found = [{"targets": [f"127.0.0.1:{port}"], "labels": labels} for labels in ports]
    authorization = {"credentials_file": f"{folder}/{Path(job['authorization']['credentials_file']).name}"}
    return job | {"job_name": "pods", "static_configs": found, "authorization": authorization}


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_the_configuration_is_valid(keys: dict[str, str], tmp_path: Path):
    file = RULES / "prometheus.yml"
    shutil.copy(RULES / "alerts.yml", tmp_path)
    text, found = re.subn(
        r"credentials_file: [^}]*", f"credentials_file: {keys['folder']}/scrape-key", file.read_text()
    )
    assert found == 1
    (tmp_path / "prometheus.yml").write_text(text)
    checked = promtool("check", "config", "prometheus.yml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_are_valid():
    checked = promtool("test", "rules", "alerts_test.yml", cwd=RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tested_and_explained():
    names = [line.split()[-1] for line in (RULES / "alerts.yml").read_text().splitlines() if "- alert:" in line]
    tested = (RULES / "alerts_test.yml").read_text()
    explained = (DEPLOY.parent / "docs" / "operations.md").read_text()
    assert len(names) == 6
    for name in names:
        assert f"alertname: {name}" in tested
        assert f"### {name}" in explained


def test_metrics_page_is_as_the_ecosystem_expects(page: str):
    checked = promtool("check", "metrics", input=page)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_metric_is_explained(page: str):
    explained = (DEPLOY.parent / "docs" / "operations.md").read_text()
    names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE kronserve_")}
    assert len(names) > 10
    assert [name for name in sorted(names) if f"`{name}`" not in explained] == []


def _queried(prometheus: str, name: str) -> list[dict[str, Any]]:
    """The series that a query of the dashboard gives now."""
    expression = QUERIES[name].replace("$__rate_interval", "10s").replace("$instance", ".*")
    found = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}).json()
    assert found["status"] == "success", f"{name}: {found}"
    series: list[dict[str, Any]] = found["data"]["result"]
    return series


def test_queries_of_gpus_name_what_nvidias_exporter_gives(prometheus: str):
    assert len(OF_GPUS) >= 3
    for name, query in OF_GPUS.items():
        assert set(re.findall(r"DCGM_\w+", query)) <= DCGM_COUNTERS
        assert 'job="dcgm"' in query
        assert _queried(prometheus, name) == [], "there is no exporter here, but the query can be asked"


def test_every_other_query_of_the_dashboard_returns_data(service: Server, keys: dict[str, str], prometheus: str):
    """Prometheus has scraped with its key: without one the page is 401."""
    assert httpx.get(f"{service.url}/metrics").status_code == 401
    empty = set(QUERIES) - set(OF_GPUS)

    def answered() -> bool:
        _use(service, keys)
        for name in list(empty):
            values = [float(series["value"][1]) for series in _queried(prometheus, name)]
            if any(value == value for value in values):
                empty.discard(name)
        return not empty

    try:
        patiently(answered, 60)
    except AssertionError:
        raise AssertionError(f"no data for {sorted(empty)}") from None


def test_the_autoscaler_s_metric_is_one_of_pods(prometheus: str):
    """Scraped with the key, from the port for HTTP alone, with the labels by which the adapter knows a pod."""
    query = 'kronserve_queue_requests{job="pods"}'

    def series() -> list[dict[str, str]]:
        found = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}).json()["data"]["result"]
        return [one["metric"] for one in found]

    patiently(lambda: len(series()) > 0)
    (labels,) = series()
    assert (labels["namespace"], labels["pod"]) == ("models", "kronserve-5d9")


def test_rules_are_evaluated_without_error(prometheus: str):
    def healths() -> set[str]:
        groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}

    patiently(lambda: healths() == {"ok"})


def _use(service: Server, keys: dict[str, str]) -> None:
    """Good requests, a bad one, and a gRPC call, so that every family has a sample."""
    import tritonclient.grpc as triton

    headers = {"Authorization": f"Bearer {keys['inference']}"}
    for _ in range(3):
        httpx.post(f"{service.url}/v2/models/add/infer", json={"inputs": INPUTS}, headers=headers).raise_for_status()
    httpx.post(f"{service.url}/v2/models/nobody/infer", json={"inputs": INPUTS}, headers=headers)
    with triton.InferenceServerClient(f"127.0.0.1:{service.grpc_port}") as client:
        client.is_server_live()
