"""Model repository and statistics over a real port, spoken by tritonclient."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.service.process import Server, patiently, serving
from tests.tiny_models import write_offset_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository whose model `m` has version 1."""
    write_offset_model(tmp_path / "models" / "m" / "1", 1)
    return tmp_path / "models"


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(models, tmp_path / "log", "--max-batch", "4", "--cache-dir", str(tmp_path / "cache")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4)
    yield client
    client.close()


def zeros(rows: int = 1) -> triton.InferInput:
    item = triton.InferInput("x", [rows, 3], "FP32")
    item.set_data_from_numpy(np.zeros((rows, 3), np.float32))
    return item


def offset(client: triton.InferenceServerClient, version: str = "") -> float:
    return float(client.infer("m", [zeros()], model_version=version).as_numpy("y")[0, 0])


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics").text


def test_index_load_and_unload(client: triton.InferenceServerClient, server: Server, models: Path):
    assert set(client.get_server_metadata()["extensions"]) >= {"model_repository", "statistics"}
    assert client.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
    write_offset_model(models / "m" / "2", 2)
    assert [row["state"] for row in client.get_model_repository_index()] == ["READY", "UNAVAILABLE"]
    client.load_model("m")
    assert (offset(client), offset(client, "1")) == (2, 1)
    assert 'kronserve_model_loaded{model="m",version="1"} 1.0' in metrics(server)
    client.unload_model("m", unload_dependents=True)
    assert 'kronserve_model_loaded{model="m"' not in metrics(server), "which would be an alert"
    assert not client.is_model_ready("m")
    assert {row["reason"] for row in client.get_model_repository_index()} == {"it was unloaded"}
    with pytest.raises(InferenceServerException, match="unloaded") as caught:
        offset(client)
    assert caught.value.status() == "503"
    client.load_model("m")
    assert offset(client) == 2


async def test_index_load_and_unload_with_asyncio(server: Server, models: Path):
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        await client.unload_model("m")
        assert not await client.is_model_ready("m")
        await client.load_model("m")
        assert await client.is_model_ready("m", "1")
        assert (await client.get_model_repository_index())[0]["state"] == "READY"
        answer = await client.infer("m", [zeros(2)])
        np.testing.assert_array_equal(answer.as_numpy("y"), np.ones((2, 3), np.float32))
        assert (await client.get_inference_statistics("m"))["model_stats"][0]["inference_count"] == 2


def test_failed_load_says_why_and_the_old_version_serves(client: triton.InferenceServerClient, models: Path):
    (models / "m" / "2").mkdir()
    (models / "m" / "2" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InferenceServerException, match=r"m/2: ONNX Runtime cannot load") as caught:
        client.load_model("m")
    assert caught.value.status() == "422"
    assert offset(client) == 1
    (row,) = [row for row in client.get_model_repository_index() if row["version"] == "2"]
    assert row["state"] == "UNAVAILABLE"
    assert "ONNX Runtime cannot load" in row["reason"]


def test_ready_filter_and_bad_requests(server: Server, models: Path):
    (models / "m" / "2").mkdir()

    def post(path: str, content: str) -> httpx.Response:
        return httpx.post(f"{server.url}/v2/repository/{path}", content=content)

    assert [row["version"] for row in post("index", '{"ready": true}').json()] == ["1"]
    assert [row["version"] for row in post("index", "").json()] == ["1", "2"]
    for path, content, status, text in (
        ("index", "{", 400, "JSON"),
        ("index", "[]", 400, "object"),
        ("index", '{"ready": 1}', 400, "ready"),
        ("index", " " * (1 << 21), 413, "limit"),
        ("models/nobody/load", "{}", 404, "'nobody'"),
        ("models/nobody/unload", "{}", 404, "'nobody'"),
        ("models/m/load", '{"parameters": {"config": "{}"}}', 501, "folder"),
        ("models/m/load", '{"parameters": {"file:1/model.onnx": ""}}', 501, "folder"),
        ("models/m/load", '{"parameters": {"speed": 1}}', 400, "'speed'"),
        ("models/m/unload", '{"parameters": [1]}', 400, "object"),
    ):
        answer = post(path, content)
        assert answer.status_code == status, (path, content, answer.text)
        assert text in answer.json()["error"]


@pytest.mark.parametrize("change", ["unload", "load"])
def test_parameters_are_an_object_or_none(server: Server, change: str):
    def post(content: str) -> httpx.Response:
        return httpx.post(f"{server.url}/v2/repository/models/m/{change}", content=content)

    for parameters in ("[]", "[1]", "0", '""', "false"):
        answer = post(f'{{"parameters": {parameters}}}')
        assert answer.status_code == 400, parameters
        assert answer.json() == {"error": "parameters must be a JSON object", "field": "parameters"}
    for content in ("", "{}", '{"parameters": null}', '{"parameters": {}}'):
        answer = post(content)
        assert (answer.status_code, answer.json()) == (200, {}), content


def test_statistics_add_up(client: triton.InferenceServerClient):
    for rows in (1, 2, 2, 3):
        client.infer("m", [zeros(rows)])
    (stats,) = client.get_inference_statistics("m", "1")["model_stats"]
    assert client.get_inference_statistics("m")["model_stats"] == [stats]
    assert client.get_inference_statistics()["model_stats"] == [stats]
    assert (stats["name"], stats["version"]) == ("m", "1")
    assert (stats["inference_count"], stats["execution_count"]) == (8, sum(counts(stats).values()))
    assert sum(size * count for size, count in counts(stats).items()) == 8
    inference = stats["inference_stats"]
    assert inference["success"]["count"] == inference["queue"]["count"] == 4
    assert inference["fail"] == {"count": 0, "ns": 0}
    assert 0 < inference["compute_infer"]["ns"] <= inference["success"]["ns"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(inference[part]["ns"] for part in parts) <= inference["success"]["ns"]
    assert stats["last_inference"] > 1.7e12
    with pytest.raises(InferenceServerException) as caught:
        client.get_inference_statistics("nobody")
    assert caught.value.status() == "404"


def counts(stats: dict) -> dict[int, int]:
    return {batch["batch_size"]: batch["compute_infer"]["count"] for batch in stats["batch_stats"]}


def test_watch_follows_the_folder(models: Path, tmp_path: Path):
    options = ("--watch", "0.05", "--version-policy", "latest:1", "--cache-dir", str(tmp_path / "cache"))
    with serving(models, tmp_path / "log", "--max-batch", "4", *options) as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        write_offset_model(models / "m" / "2", 2)
        patiently(lambda: offset(client) == 2)
        patiently(lambda: not client.is_model_ready("m", "1"))
        write_offset_model(models / "n" / "1", 5)
        patiently(lambda: client.is_model_ready("n"))
        shutil.rmtree(models / "n")
        patiently(lambda: not client.is_model_ready("n"))
        client.close()
