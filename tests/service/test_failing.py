"""What breaks around a real server: its files, its cache, its descriptors, stalling clients. It stays, or says why."""

from __future__ import annotations

import asyncio
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.service.process import Server, serving
from tests.tiny_models import write_offset_model

TENSOR = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
CALL = {"inputs": [TENSOR]}


def answer(server: Server, model: str = "m") -> list[float]:
    """What the model answers to 1, 2, 3, over a connection of its own."""
    got = httpx.post(f"{server.url}/v2/models/{model}/infer", json=CALL)
    assert got.status_code == 200, got.text
    numbers: list[float] = got.json()["outputs"][0]["data"]
    return numbers


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository whose model `m` adds 1."""
    write_offset_model(tmp_path / "models" / "m" / "1", 1)
    return tmp_path / "models"


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """A soft limit of this process, which a server inherits that is started meanwhile."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def write_wide_model(folder: Path) -> None:
    """y = x w with a megabyte of weights, which the cache would hold."""
    weights = np.ones((3, 1 << 17), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("ReduceMax", ["h", "axes"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    folder.mkdir(parents=True)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")


def write_fussy_model(folder: Path) -> None:
    """y = x over [n, 3]; a number above 1000 is an index out of bounds, at which the whole run fails."""
    graph = helper.make_graph(
        [
            helper.make_node("Greater", ["x", "bound"], ["past"]),
            helper.make_node("Cast", ["past"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["zero", "index"], ["nothing"]),
            helper.make_node("Add", ["x", "nothing"], ["y"]),
        ],
        "fussy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(1000), "bound"), numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    folder.mkdir(parents=True)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")


async def test_of_a_batch_that_fails_only_the_guilty_get_the_error(tmp_path: Path) -> None:
    write_fussy_model(tmp_path / "models" / "m" / "1")
    options = ("--executors", "1", "--max-batch", "8")
    limits = httpx.Limits(max_connections=100)
    with serving(tmp_path / "models", tmp_path / "log", *options) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:

            async def call(number: int) -> None:
                numbers = [number, 0, 5000 if number % 10 == 0 else 2]
                got = await client.post("/v2/models/m/infer", json={"inputs": [TENSOR | {"data": numbers}]})
                if number % 10 == 0:
                    assert got.status_code >= 400
                    assert "could not run this input" in got.json()["error"]
                else:
                    assert got.json()["outputs"][0]["data"] == numbers

            await asyncio.gather(*map(call, range(400)))
            lines = (await client.get("/metrics")).text.splitlines()
        rows, batches = (
            float(next(line for line in lines if line.startswith(f"kronserve_batch_rows_{part}")).split()[-1])
            for part in ("sum", "count")
        )
        assert rows > batches, "no batch was formed, so nothing was shown"


def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    """Files past a limit cannot be written, as on a disk without room."""
    write_wide_model(tmp_path / "models" / "m" / "1")
    log, cache = tmp_path / "log", tmp_path / "cache"
    options = ("--cache-dir", str(cache), "--plan-seconds", "0.1")
    with limited(resource.RLIMIT_FSIZE, 1 << 19), serving(tmp_path / "models", log, *options) as server:
        assert answer(server) == [6]
        assert "no room for its compiled form" in log.read_text()
    assert not list(cache.rglob("*.bin"))


def test_the_repository_goes_and_comes_back(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log") as server:
        models.rename(tmp_path / "gone")
        assert answer(server) == [2, 3, 4]
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        index = httpx.post(f"{server.url}/v2/repository/index")
        assert [(row["name"], row["state"]) for row in index.json()] == [("m", "READY")]
        refused = httpx.post(f"{server.url}/v2/repository/models/m/load")
        assert refused.status_code == 422
        assert refused.json() == {"error": "the model repository cannot be read"}
        (tmp_path / "gone").rename(models)
        assert httpx.post(f"{server.url}/v2/repository/models/m/load").status_code == 200
        assert answer(server) == [2, 3, 4]


def test_files_that_shrink_under_a_served_model(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "hot-etth1", tmp_path / "models" / "hot-etth1")
    weights = tmp_path / "models" / "hot-etth1" / "1" / "weights.safetensors"
    tensor = {"name": "series", "shape": [1, 1, 96], "datatype": "FP32", "data": list(range(96))}
    with serving(tmp_path / "models", tmp_path / "log") as server:

        def forecast() -> httpx.Response:
            return httpx.post(f"{server.url}/v2/models/hot-etth1/infer", json={"inputs": [tensor]})

        before = forecast().json()["outputs"]
        with weights.open("r+b") as file:
            file.truncate(100)
        assert forecast().json()["outputs"] == before
        refused = httpx.post(f"{server.url}/v2/repository/models/hot-etth1/load")
        assert refused.status_code == 422
        assert "weights.safetensors" in refused.json()["error"]
        assert forecast().json()["outputs"] == before


def test_without_file_descriptors_the_open_connections_are_served(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log") as server, httpx.Client(base_url=server.url) as early:
        assert early.post("/v2/models/m/infer", json=CALL).status_code == 200
        used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 8, hard))
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
        time.sleep(0.5)
        for _ in range(20):
            assert early.post("/v2/models/m/infer", json=CALL).status_code == 200
        for connection in held:
            connection.close()
        until = time.monotonic() + 20
        while True:
            try:
                assert answer(server) == [2, 3, 4]
                break
            except httpx.TransportError:
                assert time.monotonic() < until, "no connection is accepted any more"
                time.sleep(0.1)
        assert (tmp_path / "log").stat().st_size < 1 << 20


def test_a_client_that_reads_nothing_holds_little(server: Server) -> None:
    """Answers of 100 KB each to a thousand requests on one connection, of which none is taken."""
    tensor = {"name": "series", "shape": [1, 7, 96], "datatype": "FP32", "data": [0.5] * 672}
    request = httpx.Request("POST", f"{server.url}/v2/models/hot-etth1/infer", json={"inputs": [tensor]})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    whole = f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content
    before = server.resident_bytes()
    with socket.create_connection(("127.0.0.1", server.port)) as stalled:
        stalled.setblocking(False)
        sent = 0
        until = time.monotonic() + 3
        while sent < 1000 * len(whole) and time.monotonic() < until:
            try:
                sent += stalled.send(whole)
            except BlockingIOError:
                time.sleep(0.01)
        assert answer_of_the_add_model(server) == 200
        assert server.resident_bytes() - before < 32 << 20


def answer_of_the_add_model(server: Server) -> int:
    tensors = [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in ("a", "b")]
    return httpx.post(f"{server.url}/v2/models/add/infer", json={"inputs": tensors}).status_code
