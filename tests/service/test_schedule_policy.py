"""What callers say of when their requests are to run reaches the scheduler: priority, timeout, a call's deadline."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from fastapi import FastAPI
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub as Stub

from app.main import create_app
from app.service import Service
from app.settings import Settings
from tests.engine.fakes import DoublingModel
from tests.tiny_models import write_offset_model

ROOT = Path(__file__).parents[2]
LONGEST = 1000.0
"""Seconds that the service of the second test lets a request wait."""


@pytest_asyncio.fixture
async def app(tmp_path: Path, cache: Path) -> AsyncIterator[FastAPI]:
    """One executor, one row a batch: what is answered first ran first."""
    write_offset_model(tmp_path / "offset" / "1", 1.0)
    settings = Settings(repository=tmp_path, cache_dir=cache, device="cpu", executors=1, max_batch=1)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await app.state.service.wait_loaded()
        yield app


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (what it waits for has no event)
        await asyncio.sleep(0.001)


async def test_a_better_priority_is_answered_before_what_came_earlier(app: FastAPI):
    """While the only executor is held, requests queue one after the other; then it is let go."""
    service: Service = app.state.service
    holding = DoublingModel(batch_limit=1)
    holding.gate.clear()
    service.scheduler.register(holding)
    held = service.scheduler.submit(holding, {"x": np.zeros((1, 3), np.float32)}, ["y"])
    await until(lambda: service.scheduler.running == 1)
    given = [5, 7, 2, None, 5, 1, 2, 0]
    answered: list[int] = []

    async def send(number: int, priority: int | None) -> None:
        body: dict[str, Any] = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [number] * 3}]}
        if priority is not None:
            body["parameters"] = {"priority": priority}
        answer = await client.post("/v2/models/offset/infer", json=body)
        assert answer.json()["outputs"][0]["data"] == [number + 1] * 3
        answered.append(number)

    transport = httpx.ASGITransport(app=app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://kronserve") as client,
        asyncio.TaskGroup() as group,
    ):
        for number, priority in enumerate(given):
            group.create_task(send(number, priority))
            await until(lambda number=number: service.scheduler.queued == number + 1)  # type: ignore[misc]
        assert not answered
        holding.gate.set()
    await held
    assert answered == sorted(range(len(given)), key=lambda number: given[number] or 0)


@pytest.fixture(scope="module")
def noting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stub, IO[str]]]:
    """A server's methods, and the limits of requests as its scheduler is told them, a line each."""
    repository = tmp_path_factory.mktemp("noting")
    write_offset_model(repository / "offset" / "1", 1.0)
    command = [sys.executable, "-m", "tests.service.noting_limits", str(repository), str(LONGEST)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}") as channel:
                yield Stub(channel), process.stdout
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("deadline", "asked", "least", "most"),
    [
        (None, None, LONGEST, LONGEST),
        (600, None, 300, 620),
        (600, 100, 100, 100),
        (600, 900, 300, 620),
        (None, 900, 900, 900),
        (2 * LONGEST, None, LONGEST, LONGEST),
    ],
)
def test_the_shorter_of_a_calls_deadline_and_its_timeout_reaches_the_scheduler(
    noting: tuple[Stub, IO[str]], deadline: float | None, asked: int | None, least: float, most: float
):
    """In seconds, `asked` being the timeout; what is left of a deadline is rounded on the wire."""
    stub, limits = noting
    request = pb.ModelInferRequest(model_name="offset", raw_input_contents=[bytes(12)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    if asked is not None:
        request.parameters["timeout"].int64_param = asked * 1_000_000
    answer = stub.ModelInfer(request, timeout=deadline)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [1, 1, 1]
    assert least <= float(limits.readline()) <= most
