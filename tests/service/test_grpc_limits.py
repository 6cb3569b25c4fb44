"""gRPC calls that end otherwise than with an answer: deadline, cancellation, size, full queue, a leaving server."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub as Stub

from tests.service.process import Server, serving

MIB = 1 << 20
PATIENCE = 60
"""Seconds until a client gives up what should have ended long before."""


def forecast_request(rows: int, variates: int = 21) -> pb.ModelInferRequest:
    series = np.zeros((rows, variates, 96), np.float32)
    request = pb.ModelInferRequest(model_name="hot-etth1", raw_input_contents=[series.tobytes()])
    request.inputs.add(name="series", datatype="FP32", shape=series.shape)
    return request


def add_request(**parameters: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="add", raw_input_contents=[bytes(12), bytes(12)])
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 3])
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


def outcome(server: Server, name: str) -> float:
    sample = f'kronserve_inference_requests_total{{outcome="{name}"}} '
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))


@pytest_asyncio.fixture
async def stub(server: Server) -> AsyncIterator[Stub]:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        yield Stub(channel)


async def test_timeout_parameter_ends_a_wait_in_the_queue(server: Server, stub: Stub):
    """While large batches hold the executors, a call that may wait 0.1 ms is told so; one without a limit is not."""
    for _ in range(20):
        holding = [stub.ModelInfer(forecast_request(64)) for _ in range(4)]
        hurried = [stub.ModelInfer(add_request(timeout=100)) for _ in range(10)]
        codes = {await call.code() for call in hurried}
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert len((await stub.ModelInfer(add_request())).raw_output_contents) == 2
        assert {await call.code() for call in holding} == {grpc.StatusCode.OK}
        if grpc.StatusCode.DEADLINE_EXCEEDED in codes:
            return
    raise AssertionError("no deadline passed")


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_calls_given_up_leave_the_queue(server: Server, stub: Stub, how: str):
    """Their requests end as expired or cancelled, not as answers that nobody reads.

    They are of lower priority than what holds the executors, so they wait until all of that is done.
    """
    before = outcome(server, "cancelled") + outcome(server, "expired")
    for attempt in range(1, 21):
        pause = 0.01 * attempt  # long enough, on some attempt, for this machine to have taken the calls in
        holding = [stub.ModelInfer(forecast_request(64)) for _ in range(4)]
        await asyncio.sleep(pause)
        timeout = pause if how == "deadline" else None
        given_up = [stub.ModelInfer(add_request(priority=9), timeout=timeout) for _ in range(10)]
        if how == "cancel":
            await asyncio.sleep(pause)
            for call in given_up:
                call.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        assert {await call.code() for call in holding} == {grpc.StatusCode.OK}
        if outcome(server, "cancelled") + outcome(server, "expired") > before:
            return
    raise AssertionError("no request of a call that was given up left the queue")


async def test_calls_given_up_at_any_moment_are_no_error_of_ours(server: Server, stub: Stub):
    """Of so many, some are given up in the moment in which they are answered."""

    async def one(number: int) -> None:
        call = stub.ModelInfer(add_request(), timeout=0.0005 * (1 + number % 8))
        await asyncio.gather(call, return_exceptions=True)

    for _ in range(150):
        await asyncio.gather(*map(one, range(16)))
    await stub.ModelInfer(add_request())
    assert "Traceback" not in server.log.read_text()


async def test_messages_over_the_limit_are_refused_with_bounded_memory(mixed_repository: Path, tmp_path: Path):
    """As sent and as decompressed: 200 MB of zeros are 200 kB in gzip."""
    with serving(mixed_repository, tmp_path / "log", "--grpc-max-message-bytes", str(MIB)) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = Stub(channel)
            await stub.ModelInfer(add_request())
            before = server.resident_bytes()
            for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
                with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
                    await stub.ModelInfer(forecast_request(200 * MIB // 8064), compression=compression)
                assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert server.peak_bytes() - before < 64 * MIB
            await stub.ModelInfer(add_request())


async def test_full_queue_is_resource_exhausted_with_pushback(mixed_repository: Path, tmp_path: Path):
    with serving(mixed_repository, tmp_path / "log", "--max-queue", "2") as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            calls = [Stub(channel).ModelInfer(forecast_request(8)) for _ in range(60)]
            codes = [await call.code() for call in calls]
            assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            refused = calls[codes.index(grpc.StatusCode.RESOURCE_EXHAUSTED)]
            assert int(dict(await refused.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


async def test_sigterm_under_load_answers_what_was_accepted(mixed_repository: Path, tmp_path: Path):
    """Every call is answered or told UNAVAILABLE, the server's own count of accepted ones agrees, exit 0."""
    answered: list[grpc.StatusCode] = []
    with serving(mixed_repository, tmp_path / "log") as server:

        async def send(stub: Stub) -> None:
            while not answered or answered[-1] == grpc.StatusCode.OK:
                answered.append(await stub.ModelInfer(forecast_request(1, 4), timeout=PATIENCE).code())

        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            sending = [asyncio.create_task(send(Stub(channel))) for _ in range(16)]
            while len(answered) < 64:  # noqa: ASYNC110  (other tasks fill it)
                await asyncio.sleep(0.01)
            status = await asyncio.to_thread(server.stop)
            await asyncio.gather(*sending)
    assert status == 0
    assert set(answered) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    counters = dict(re.findall(r"(\w+)=(\d+)", server.log.read_text().split("left: ")[1]))
    assert int(counters["succeeded"]) == int(counters["submitted"]) == answered.count(grpc.StatusCode.OK)


def test_taken_port_stops_the_start_and_is_named(mixed_repository: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with (
            pytest.raises(AssertionError, match=f"{port}.*--grpc-port"),
            serving(mixed_repository, tmp_path / "log", "--grpc-port", port),
        ):
            pass


@pytest.mark.parametrize("off", ["", "none"])
def test_without_a_port_there_is_no_grpc(mixed_repository: Path, tmp_path: Path, off: str):
    with serving(mixed_repository, tmp_path / "log", "--grpc-port", off, wait_ready=False) as server:
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        assert "gRPC" not in server.log.read_text()


def test_without_grpcio_http_serves_and_the_log_says_so(tmp_path: Path):
    """The base dependencies are enough: an interpreter that cannot import grpc starts all the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import sys; sys.modules['grpc'] = None; from app.serve import serve; sys.exit(serve(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--repository", str(tmp_path), "--port", str(port)]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + PATIENCE
        while "Uvicorn running" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        assert httpx.get(f"http://127.0.0.1:{port}/v2/health/live").status_code == 200
        assert "no gRPC: grpc is not installed" in log.read_text()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
