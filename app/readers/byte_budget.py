"""How many bytes of requests the service holds in memory at once, over all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType

from app.errors import Overloaded

SMALL = 1 << 16
"""Bodies that arrive in one piece of up to this many bytes are not counted: the bounded queue limits their number."""

RETRY_AFTER = 1.0


class ByteBudget:
    """Bytes that requests may hold together: read from the wire, decompressed, or waiting for their answer.

    limit: bytes. patience: seconds that a request waits for others to finish before it is refused. A request that
    holds more than the whole budget counts as all of it. refused: told the reason of each refusal. For one event loop.
    """

    def __init__(self, limit: int, patience: float, refused: Callable[[str], None] = lambda _: None) -> None:
        self.limit, self._patience, self._refused = limit, patience, refused
        self.held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def lease(self) -> Lease:
        """One request's share, empty; use it as a context manager."""
        return Lease(self)

    def take_at_once(self, size: int) -> bool:
        """Count `size` more bytes as held if there is room for them now."""
        if self._waiting or not self._fits(size):
            return False
        self.held += size
        return True

    async def take(self, size: int) -> None:
        """Count `size` more bytes as held; waits in turn while there is no room. Raises Overloaded."""
        if self.take_at_once(size):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give(size)  # granted in the same moment
            turn.cancel()
            self._grant()
            if isinstance(error, TimeoutError):
                refusal = Overloaded(
                    "the service holds as many bytes of requests as it may; try again later",
                    retry_after=RETRY_AFTER,
                    reason="memory",
                )
                self._refused(refusal.reason)
                raise refusal from None
            raise

    def give(self, size: int) -> None:
        """Count `size` bytes as held no more."""
        self.held -= size
        if self._waiting:
            self._grant()

    def _fits(self, size: int) -> bool:
        return self.held + size <= self.limit

    def _grant(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size):
                    return
                self.held += size
                turn.set_result(None)
            self._waiting.popleft()


class Lease:
    """What one request holds of the budget; given back when the block ends."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.held:
            self.settle(0)

    async def take(self, size: int) -> None:
        """Hold `size` more bytes; Overloaded when there is no room for them in time."""
        size = min(size, self._budget.limit - self.held)
        await self._budget.take(size)
        self.held += size

    def settle(self, size: int) -> None:
        """Hold no more than `size` bytes from now on."""
        if size < self.held:
            excess, self.held = self.held - size, size
            self._budget.give(excess)
