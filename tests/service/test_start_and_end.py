"""Starting on odd repositories, and the end of the grace."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from tritonclient.grpc import service_pb2 as pb

from app.integrity import GRAPH, MANIFEST, SIGNATURE
from tests.service.conftest import write_add_model
from tests.service.process import Server, patiently, serving
from tests.test_integrity import write_public
from tests.tiny_models import write_offset_model


def test_missing_repository_stops_the_start(tmp_path: Path):
    command = [str(Path(sys.executable).with_name("kronserve")), "serve", "--repository", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "is not a folder" in result.stderr


def test_all_broken_is_live_but_not_ready(tmp_path: Path):
    folder = tmp_path / "repository" / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"rubbish")
    with serving(tmp_path / "repository", tmp_path / "log", wait_ready=False) as server:
        for _ in range(100):
            states = httpx.get(f"{server.url}/v1/models").json()["models"]
            if states and states[0].get("reason", "").startswith("ONNX Runtime cannot load"):
                break
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503


def test_odd_folders_and_dangling_links_harm_no_model(tmp_path: Path):
    root = tmp_path / "repository"
    write_add_model(root / "add" / "1")
    (root / "odd" / "²").mkdir(parents=True)
    (root / "add" / "1" / "notes.txt").symlink_to(tmp_path / "nowhere")
    with serving(root, tmp_path / "log") as server:
        listed = httpx.get(f"{server.url}/v1/models").text
        assert '"ready"' in listed
        assert str(tmp_path) not in listed


@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("600", 2)])
async def test_end_of_the_grace_or_a_second_signal_answers_503(
    repository: Path, tmp_path: Path, grace: str, signals: int
):
    """More work than the grace allows, or than who sends SIGTERM twice waits for: what was accepted is told so."""
    options = ("--shutdown-grace", grace, "--queue-budget", "600", "--max-batch", "1")
    shutil.copytree(repository / "hot-etth1", tmp_path / "repository" / "hot-etth1")
    with serving(tmp_path / "repository", tmp_path / "log", *options) as server:
        series = np.zeros((5000, 21, 96), "<f4")
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            header = (
                b'{"inputs":[{"name":"series","shape":[5000,21,96],"datatype":"FP32",'
                b'"parameters":{"binary_data_size":%d}}]}' % series.nbytes
            )
            sending = [
                asyncio.create_task(
                    client.post(
                        "/v2/models/hot-etth1/infer",
                        content=header + series.tobytes(),
                        headers={"Inference-Header-Content-Length": str(len(header))},
                    )
                )
                for _ in range(3)
            ]
            while "kronserve_queue_requests 0" in (await client.get("/metrics")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for _ in range(signals - 1):
                server.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(patiently, lambda: "not ready from now on" in server.log.read_text())
            status = await asyncio.to_thread(server.stop, 60.0)
            answers = await asyncio.gather(*sending)
        assert status == 0
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["error"] for answer in answers} == {"the server is shutting down"}
        counters = dict(re.findall(r"(\w+)=(\d+)", server.log.read_text().split("left: ")[1]))
        assert counters["submitted"] == counters["aborted"] != "0"  # a second signal may come before all are submitted
        assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("600", 2)])
async def test_loads_that_the_end_of_the_grace_finds_are_answered_503(tmp_path: Path, grace: str, signals: int):
    """The one under way, held up by the key file that it reads, and those behind it."""
    models, trusted = tmp_path / "models", write_public(tmp_path / "trusted.pem", ed25519.Ed25519PrivateKey.generate())
    models.mkdir()
    options = ("--trusted-keys", str(trusted), "--shutdown-grace", grace)
    with serving(models, tmp_path / "log", *options) as server:
        trusted.unlink()
        os.mkfifo(trusted)
        bundle = models / "m" / "1"
        bundle.mkdir(parents=True)
        for name in (GRAPH, MANIFEST, SIGNATURE):
            (bundle / name).touch()
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=120) as client,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            url = "/v2/repository/models/m"
            sending = [asyncio.create_task(client.post(f"{url}/load"))]
            pipe = await asyncio.to_thread(opened_for_writing, trusted)
            sending += [asyncio.create_task(client.post(f"{url}/{change}")) for change in ("load", "unload")]
            message = pb.RepositoryModelLoadRequest(model_name="m").SerializeToString()
            # A second signal ends gRPC at once, whatever is under way.
            methods = ("RepositoryModelLoad", "RepositoryModelUnload") if signals == 1 else ()
            calls = [
                asyncio.ensure_future(channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message))
                for method in methods
            ]
            # What is sent after them is answered; if one of them only comes after the signal, it is told the same.
            await client.get("/v2/health/live")
            if calls:
                await channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"")
            for number in range(signals):
                server.process.send_signal(signal.SIGTERM)
                said = "stopping at once" if number else "not ready from now on"
                await asyncio.to_thread(patiently, lambda said=said: said in server.log.read_text())
            answers = await asyncio.gather(*sending)
            refusals = await asyncio.gather(*calls, return_exceptions=True)
        os.close(pipe)
        assert await asyncio.to_thread(server.process.wait, 60.0) == 0
        for answer in answers:
            assert (answer.status_code, answer.json()) == (503, {"error": "the server is shutting down"})
        for refusal in refusals:
            assert isinstance(refusal, grpc.aio.AioRpcError)
            assert refusal.code() == grpc.StatusCode.UNAVAILABLE
            assert refusal.details() == "the server is shutting down"
        assert "Traceback" not in server.log.read_text()


def test_the_watch_ends_with_the_signal(tmp_path: Path):
    """A look is no failure for being refused while the server leaves."""
    write_offset_model(tmp_path / "models" / "m" / "1", 1)
    options = ("--watch", "0.02", "--shutdown-delay", "0.5")
    with serving(tmp_path / "models", tmp_path / "log", *options) as server:
        assert server.stop() == 0
        assert "ERROR" not in server.log.read_text()


def opened_for_writing(pipe: Path) -> int:
    """The named pipe, when somebody reads it, who then waits until it is closed."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(0.02)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_follow_the_affinity(tmp_path: Path):
    from app.settings import Settings

    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert Settings().cpu_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_help_names_every_default():
    command = [str(Path(sys.executable).with_name("kronserve")), "serve", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "500"})
    assert "Undefined" not in text.stdout
    assert "[KRONSERVE_CACHE_DIR, default /" in text.stdout


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """One line says so, and what was being loaded ends without another."""
    models = tmp_path / "models"
    write_offset_model(models / "m" / "1", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = ["--repository", str(models), "--port", str(taken.getsockname()[1]), "--grpc-port", "none"]
        command = [str(Path(sys.executable).with_name("kronserve")), "serve", *options]
        ended = subprocess.run(
            [*command, "--cache-dir", str(tmp_path / "cache")], capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert "address already in use" in ended.stderr
    assert ended.stderr.count("ERROR") == 1
    assert "Traceback" not in ended.stderr


def test_head_is_get_without_the_body(server: Server) -> None:
    for path in ("/v2/health/live", "/v2", "/v2/models/add", "/metrics", "/docs"):
        head, whole = httpx.head(server.url + path), httpx.get(server.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert httpx.head(f"{server.url}/v2/models/add/infer").status_code == 405
