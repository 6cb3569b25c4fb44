"""The clients of a soak: each sends by its own timetable over one connection, and what comes back is noted."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.chaos import read_answer
from bench.soak_requests import Kind

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Seen:
    """What came of the requests, over all clients. `wrong`: every answer that its kind may not have."""

    statuses: Counter[int] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Of the answers 200, seconds."""

    @property
    def requests(self) -> int:
        """Answered, or left by their client."""
        return self.statuses.total() + self.left.total()


class Clients:
    """`count` clients of the server at `port`."""

    def __init__(self, port: int, count: int, kinds: Sequence[Kind], seen: Seen) -> None:
        self._port, self._count, self._seen = port, count, seen
        self._kinds, self._shares = kinds, [kind.share for kind in kinds]
        self._messages = {kind.name: kind.bytes() for kind in kinds}
        self._stopping = False

    @asynccontextmanager
    async def sending(self, rate: float | None) -> AsyncIterator[None]:
        """While the block runs: `rate` requests a second together, without pause if None; all of them are answered."""
        self._stopping = False
        interval = self._count / rate if rate else 0.0
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._client(random.Random(number), interval))  # noqa: S311
            try:
                yield
            finally:
                self._stopping = True

    async def _client(self, chance: random.Random, interval: float) -> None:
        reader, writer = await self._connect()
        due = time.perf_counter() + interval * chance.random()
        while not self._stopping:
            await asyncio.sleep(due - time.perf_counter())
            (kind,) = chance.choices(self._kinds, self._shares)
            try:
                usable = await self._exchange(kind, reader, writer)
            except (OSError, asyncio.IncompleteReadError) as error:
                self._seen.wrong[f"{kind.name}: {type(error).__name__}"] += 1
                usable = False
            if not usable:
                writer.close()
                reader, writer = await self._connect()
            due = max(due + interval, time.perf_counter())  # what was missed is not made up for
        writer.close()

    async def _connect(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _exchange(self, kind: Kind, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection can be used again."""
        started = time.perf_counter()
        writer.write(self._messages[kind.name])
        await writer.drain()
        if kind.leaves:
            self._seen.left[kind.leaves] += 1
            return False
        status, body, _ = await read_answer(reader)
        self._seen.statuses[status] += 1
        if status not in (kind.status, 429) or not body:
            self._seen.wrong[f"{kind.name}: {status}"] += 1
        if status == 200:
            self._seen.latencies.append(time.perf_counter() - started)
        return True
