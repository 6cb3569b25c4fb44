"""When and where pandas and nibabel are imported: by need, and never in the event loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = r"""
import asyncio, sys, threading
from importlib.abc import MetaPathFinder
import httpx
from app.main import create_app
from app.settings import Settings

class Witness(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("pandas", "nibabel"):
            print("in the event loop" if threading.current_thread() is threading.main_thread() else "in a thread", name)

async def main(repository, cache, request):
    sys.meta_path.insert(0, Witness())
    app = create_app(Settings(repository=repository, cache_dir=cache, device="cpu", max_batch=4))
    async with app.router.lifespan_context(app):
        await app.state.service.wait_loaded()
        if request == "none":
            return
        transport = httpx.ASGITransport(app=app)
        rows = "\n".join(f"2020-01-{1 + n // 24:02}T{n % 24:02}:00:00,{n % 7}" for n in range(96))
        async with httpx.AsyncClient(transport=transport, base_url="http://kronserve") as client:
            answer = await client.post(request, content="date,a\n" + rows, headers={"content-type": "text/csv"})
            print(answer.status_code)

asyncio.run(main(*sys.argv[1:]))
"""


def run(repository: Path, cache: Path, request: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, str(repository), str(cache), request]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return result.stdout.splitlines()


def test_a_loaded_service_has_imported_neither(repository: Path, tmp_path: Path) -> None:
    assert run(repository, tmp_path / "cache", "none") == []


def test_the_first_request_imports_in_a_thread(repository: Path, tmp_path: Path) -> None:
    lines = run(repository, tmp_path / "cache", "/v1/models/hot-etth1/forecast")
    assert "200" in lines
    assert "in a thread pandas" in lines
    assert not [line for line in lines if "event loop" in line]
