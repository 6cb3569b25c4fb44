"""Where decoding and encoding happens: short work in the event loop, long work in few threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

INLINE_BYTES = 1 << 18
"""Work on fewer bytes is done in the event loop: a thread would cost more than it frees."""

SERIES_BYTES = 1 << 16
"""What work on one series costs beside its numbers (timestamps, a frequency, an answer's frame), in bytes."""

Result = TypeVar("Result")

_threads: RunVar[CapacityLimiter] = RunVar("_threads")


async def offload(size: int, work: Callable[[], Result], inline: int = INLINE_BYTES) -> Result:
    """Run `work` in a thread if it has more than `inline` bytes to go through, at most one a core at a time.

    Decoding holds memory and the processor: more of it at once would only raise the peak.
    """
    if size <= inline:
        return work()
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = CapacityLimiter(_cores())
        _threads.set(limiter)
    return await to_thread.run_sync(work, limiter=limiter)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
