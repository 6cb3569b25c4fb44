"""Fifty reloads between two versions while 32 clients send without pause."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path

import httpx

from tests.service.process import Server, patiently, serving
from tests.tiny_models import write_offset_model

CLIENTS, RELOADS = 32, 50
BALLAST = 3_000_000
"""Floats of weight in each version, 12 MB: a few versions that stay would show."""

BODY = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}]}


async def send_until(stop: asyncio.Event, client: httpx.AsyncClient, seen: Counter[tuple[int, str, float]]) -> None:
    while not stop.is_set():
        answer = await client.post("/v2/models/m/infer", json=BODY)
        told = answer.json()
        value = told["outputs"][0]["data"][0] if answer.status_code == 200 else -1.0
        seen[answer.status_code, told.get("model_version", told.get("error")), value] += 1


async def reload_under_load(server: Server, models: Path, count: int) -> Counter[tuple[int, str, float]]:
    """Load version 2 and version 1 in turns, each as the latest; what the clients saw meanwhile."""
    seen: Counter[tuple[int, str, float]] = Counter()
    stop = asyncio.Event()
    limits = httpx.Limits(max_connections=CLIENTS + 1)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        clients = [asyncio.create_task(send_until(stop, client, seen)) for _ in range(CLIENTS)]
        for turn in range(count):
            if turn % 2 == 0:
                await asyncio.to_thread(write_offset_model, models / "m" / "2", 2, weights=BALLAST)
            else:
                await asyncio.to_thread(shutil.rmtree, models / "m" / "2")
            answer = await client.post("/v2/repository/models/m/load")
            assert answer.status_code == 200, answer.text
            before = seen.total()
            while seen.total() < before + 2 * CLIENTS:  # noqa: ASYNC110  (the clients' tasks count)
                await asyncio.sleep(0.002)
        stop.set()
        await asyncio.gather(*clients)
    return seen


async def settled_bytes(server: Server) -> int:
    """Resident memory once versions that left have let go of theirs."""
    known, now = 0, server.resident_bytes()
    while now != known:
        await asyncio.sleep(0.5)
        known, now = now, server.resident_bytes()
    return now


async def test_no_request_fails_and_memory_comes_back(tmp_path: Path):
    models = tmp_path / "models"
    write_offset_model(models / "m" / "1", 1, weights=BALLAST)
    options = ("--version-policy", "latest:1", "--max-batch", "8", "--cache-dir", str(tmp_path / "cache"))
    with serving(models, tmp_path / "log", *options) as server:
        await reload_under_load(server, models, 2)  # the allocator's and the threads' own memory is taken once
        before = await settled_bytes(server)
        seen = await reload_under_load(server, models, RELOADS)
        assert set(seen) == {(200, "1", 1.0), (200, "2", 2.0)}, seen
        patiently(lambda: server.resident_bytes() < 1.1 * before)
        assert server.stop() == 0
