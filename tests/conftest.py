"""What tests of the running service share: the shipped bundles and one client of one application."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from hypothesis import settings as hypothesis_settings

from app.main import create_app
from app.settings import Settings

# The same examples at every run, and none fails for being slow on a busy machine.
hypothesis_settings.register_profile("kronserve", deadline=None, derandomize=True)
hypothesis_settings.load_profile("kronserve")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiled models and measured plans of this run alone, here and in every server process."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRONSERVE_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The shipped bundles; KRONSERVE_REPOSITORY names others of the same names and shapes."""
    return Path(os.environ.get("KRONSERVE_REPOSITORY", ROOT / "model_repository"))


@pytest.fixture(scope="session")
def service_settings(repository: Path, cache: Path) -> Settings:
    """Small limits, so that tests reach them with small bodies."""
    return Settings(
        repository=repository,
        cache_dir=cache,
        device="cpu",
        executors=2,
        max_body_bytes=4 << 20,
        max_decoded_bytes=8 << 20,
    )


@asynccontextmanager
async def speaking_to(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application of its own, whose models are loaded."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await app.state.service.wait_loaded()
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://kronserve") as speaker:
            yield speaker


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(service_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to an application whose models are loaded. Tests that use it run in the session's event loop:
    pytestmark = pytest.mark.asyncio(loop_scope="session").
    """
    async with speaking_to(service_settings) as speaker:
        yield speaker
