"""What one running service holds: settings, device, models, scheduler, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from app.access import Keys, load_keys
from app.engine import device
from app.engine.repository import Repository
from app.engine.scheduler import Scheduler
from app.errors import LoadFailed, Unavailable
from app.inference_statistics import InferenceStatistics
from app.integrity import trusted_keys
from app.journal import Journal
from app.metrics import Metrics
from app.readers.byte_budget import ByteBudget
from app.settings import Settings

if TYPE_CHECKING:
    from app.tracing import Tracing

logger = logging.getLogger(__name__)


def _read_keys(path: Path) -> Keys:
    try:
        return load_keys(path)
    except OSError as error:
        raise ValueError(f"the key file {path} cannot be read: {error.strerror}") from None


class Service:
    """The parts behind the endpoints and their life: start, load, drain, stop."""

    def __init__(self, settings: Settings) -> None:
        """Choose the device; ValueError when it, the model repository or a trusted key is not there."""
        self.settings = settings
        if not settings.repository.is_dir():
            raise ValueError(f"the model repository {settings.repository} is not a folder")
        if settings.trusted_keys is not None:
            _require_keys(settings.trusted_keys)
        self.device = device.choose(settings)
        logger.info("device: %s (%s), %d executors", self.device.kind, self.device.reason, self.device.executors)
        self.metrics = Metrics()
        self.journal = Journal(settings.log_requests, settings.log_slow)
        self.body_budget = ByteBudget(settings.max_inflight_bytes, settings.queue_budget, self.metrics.rejected)
        self.statistics = InferenceStatistics()
        self.scheduler = Scheduler(
            executors=self.device.executors,
            max_wait=settings.queue_budget,
            max_requests=settings.max_queue,
            reserve=self.device.reserve,
            hold=self.device.hold,
            lone=self.device.lone,
            observers=(self.metrics, self.statistics),
        )
        self.repository = Repository(settings, self.device, self.scheduler)
        self.metrics.watch(self.scheduler, self.repository)
        self.keys = None if settings.keys is None else _read_keys(settings.keys)
        """The API keys that requests must show; None: no key is asked for."""
        self.tracing = _tracing() if settings.traces else None
        """Makes spans of requests; None: nothing of them is noted."""
        self.scheme = "http" if settings.tls_certificate is None else "https"
        self.draining = False
        self.failure: str | None = None
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        # One thread: loads and unloads take turns, and none of them holds up the threads that decode requests.
        self._librarian = ThreadPoolExecutor(1, "repository")
        self._changes: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Start the executors and begin to load; returns at once, `wait_loaded` waits."""
        self.scheduler.start()
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await self._change(self.repository.load_all)
        except Exception as error:
            logger.exception("the model repository cannot be loaded")
            self.failure = f"the model repository cannot be loaded: {error}"
        else:
            if self.settings.watch:
                self._watching = asyncio.create_task(self._watch(self.settings.watch))

    async def _watch(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            try:
                await self._change(self.repository.look)
            except LoadFailed:  # which the repository has logged
                continue
            except Unavailable:  # the server is leaving
                return
            except Exception as error:
                logger.error("a look at the model repository failed: %s: %s", type(error).__name__, error)

    async def load_model(self, name: str) -> None:
        """Bring a model to what is in the repository's folder now. Raises UnknownModel, LoadFailed, Unavailable."""
        await self._change(lambda: self.repository.load(name))

    async def unload_model(self, name: str) -> None:
        """Stop serving a model; returns when no new request is taken for it. Raises UnknownModel, Unavailable."""
        await self._change(lambda: self.repository.unload(name))

    async def _change(self, change: Callable[[], None]) -> None:
        if self.draining:
            raise Unavailable("the server is shutting down")
        changing = asyncio.wrap_future(self._librarian.submit(change))
        self._changes.add(changing)
        try:
            # Not awaited itself: `_leave` cancels it, and that must not look as if this task had been cancelled.
            await asyncio.wait((changing,))
        finally:
            self._changes.discard(changing)
            changing.cancel()  # what nobody waits for any more and has not begun never does
        if changing.cancelled():
            raise Unavailable("the server is shutting down")
        changing.result()

    async def wait_loaded(self) -> None:
        """Return when every version has been loaded or given up."""
        assert self._loading is not None, "start() comes first"
        await asyncio.shield(self._loading)

    @property
    def live(self) -> bool:
        """Whether the process can do its work at all; False asks the orchestrator for a restart."""
        return self.scheduler.device_failure is None and self.failure is None

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here: loaded, warm, not on the way out, and not all of it broken."""
        return self.live and self.repository.loaded and not self.draining and not self.repository.all_broken

    def unparsed(self, status: int) -> None:
        """Note an HTTP answer to what did not become a request: no HTTP, or a head that is refused."""
        self.metrics.unparsed(status)
        self.journal.answered("http", "unparsed", status, 0.0, None)

    async def stop(self, grace: float | None = None) -> None:
        """Answer what was accepted within `grace` seconds (the setting's, if None), then stop the executors.

        A second call waits for the first.
        """
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(self.settings.shutdown_grace if grace is None else grace))
        await asyncio.shield(self._leaving)

    async def _leave(self, grace: float) -> None:
        self.draining = True
        self.repository.stop()
        for task in (self._loading, self._watching):
            if task is not None:
                task.cancel()
        for changing in self._changes:
            changing.cancel()
        self._librarian.shutdown(wait=False, cancel_futures=True)
        await self.scheduler.close(grace)
        logger.info("left: %s", self.scheduler.counters)


def _tracing() -> Tracing:
    """ValueError: it is not installed, or asked for what there is not."""
    try:
        from app.tracing import Tracing

        return Tracing()
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--traces (KRONSERVE_TRACES) needs {error.name}, install it with: pip install 'kronserve[otel]'"
        ) from error
    except ValueError as error:
        raise ValueError(f"--traces (KRONSERVE_TRACES): {error}") from error


def _require_keys(path: Path) -> None:
    """ValueError: no bundle could be checked against these keys."""
    try:
        trusted_keys(path)
    except OSError as error:
        raise ValueError(f"trusted keys {path}: {error.strerror}") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"trusted keys need {error.name}; install kronserve[sign]") from error
