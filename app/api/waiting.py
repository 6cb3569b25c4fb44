"""Awaiting an answer while the client may leave."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Answer = TypeVar("Answer")

WATCH_AFTER = 0.02
"""Seconds before a waiting request starts to watch its connection; most are answered sooner and never pay for it."""


async def answer_or_disconnect(future: asyncio.Future[Answer], receive: Receive) -> Answer:
    """The future's result; when the client disconnects first, the future is cancelled and ClientDisconnect raised.

    The request's body must have been read: from then on `receive` only returns when the client leaves.
    """
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        future.cancel()

    def start() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(watch())

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER, start)
    try:
        return await future
    except asyncio.CancelledError:
        if watcher is not None and watcher.done():
            raise ClientDisconnect from None
        future.cancel()
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
