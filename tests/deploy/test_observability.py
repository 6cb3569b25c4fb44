"""Rules, metrics page and dashboard before a real Prometheus that scrapes a real service."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

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
INPUTS = [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in ("a", "b")]

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="prometheus and promtool are not on PATH; on Debian and Ubuntu: apt-get install prometheus",
)


def promtool(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("observed")
    write_add_model(folder / "repository" / "add" / "1")
    with serving(folder / "repository", folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(service: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our configuration, but for the target and the pace, in a Prometheus of its own."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(RULES / "alerts.yml", folder)
    text = (RULES / "prometheus.yml").read_text()
    assert "kronserve:8000" in text
    text = text.replace("kronserve:8000", f"127.0.0.1:{service.port}").replace("5s", "1s")
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


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_rules_and_configuration_are_valid():
    assert promtool("check", "config", "prometheus.yml", cwd=RULES).returncode == 0
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


def test_metrics_page_is_as_the_ecosystem_expects(service: Server):
    _use(service)
    page = httpx.get(f"{service.url}/metrics").text
    checked = promtool("check", "metrics", input=page)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_metric_is_explained(service: Server):
    page = httpx.get(f"{service.url}/metrics").text
    explained = (DEPLOY.parent / "docs" / "operations.md").read_text()
    names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE kronserve_")}
    assert len(names) > 10
    assert [name for name in sorted(names) if f"`{name}`" not in explained] == []


def test_every_query_of_the_dashboard_returns_data(service: Server, prometheus: str):
    empty = set(QUERIES)

    def answered() -> bool:
        _use(service)
        for name in list(empty):
            expression = QUERIES[name].replace("$__rate_interval", "10s").replace("$instance", ".*")
            found = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}).json()
            assert found["status"] == "success", f"{name}: {found}"
            values = [float(series["value"][1]) for series in found["data"]["result"]]
            if any(value == value for value in values):
                empty.discard(name)
        return not empty

    try:
        patiently(answered, 60)
    except AssertionError:
        raise AssertionError(f"no data for {sorted(empty)}") from None


def test_rules_are_evaluated_without_error(prometheus: str):
    def healths() -> set[str]:
        groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}

    patiently(lambda: healths() == {"ok"})


def _use(service: Server) -> None:
    """Good requests, a bad one, and a gRPC call, so that every family has a sample."""
    import tritonclient.grpc as triton

    for _ in range(3):
        httpx.post(f"{service.url}/v2/models/add/infer", json={"inputs": INPUTS})
    httpx.post(f"{service.url}/v2/models/nobody/infer", json={"inputs": INPUTS})
    with triton.InferenceServerClient(f"127.0.0.1:{service.grpc_port}") as client:
        client.is_server_live()
