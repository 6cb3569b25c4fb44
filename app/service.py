"""What one running service holds: settings, device, models, scheduler, metrics."""

from __future__ import annotations

import asyncio
import logging

from app.engine import device
from app.engine.repository import Repository
from app.engine.scheduler import Scheduler
from app.metrics import Metrics
from app.settings import Settings

logger = logging.getLogger(__name__)


class Service:
    """The parts behind the endpoints and their life: start, load, drain, stop."""

    def __init__(self, settings: Settings) -> None:
        """Choose the device; ValueError when the one that the settings demand is not there."""
        self.settings = settings
        self.device = device.choose(settings)
        logger.info("device: %s (%s), %d executors", self.device.kind, self.device.reason, self.device.executors)
        self.repository = Repository(settings, self.device)
        self.metrics = Metrics()
        self.scheduler = Scheduler(
            executors=self.device.executors,
            max_wait=settings.queue_budget,
            max_requests=settings.max_queue,
            observer=self.metrics,
        )
        self.metrics.watch(self.scheduler, self.repository)
        self.draining = False
        self.failure: str | None = None
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the executors and begin to load; returns at once, `wait_loaded` waits."""
        self.scheduler.start()
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await asyncio.to_thread(self.repository.load, self.scheduler.register)
        except Exception as error:
            logger.exception("the model repository cannot be loaded")
            self.failure = f"the model repository cannot be loaded: {error}"

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
        """Whether new requests should be sent here: everything loaded and warm, and not on the way out."""
        return self.live and self.repository.loaded and not self.draining

    async def stop(self) -> None:
        """Answer what was accepted within the grace, then stop the executors."""
        self.draining = True
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
        await self.scheduler.close(self.settings.shutdown_grace)
        logger.info("left: %s", self.scheduler.counters)
