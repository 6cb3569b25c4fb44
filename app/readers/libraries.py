"""Heavy libraries, imported by need and never in the event loop: pandas for series, nibabel for volumes.

Importing pandas takes time and memory: the first request that reads a file pays for it, and a service that is only
ever asked with tensors does not.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Literal, TypeVar

from app.readers.offload import INLINE_BYTES, offload

Library = Literal["pandas", "nibabel"]
Result = TypeVar("Result")

_ready: set[Library] = set()


def load(library: Library) -> None:
    """Import it now, in this thread."""
    import_module(library)
    _ready.add(library)


async def offload_with(library: Library, size: int, work: Callable[[], Result]) -> Result:
    """`offload`, for work that imports `library`: in a thread whatever its size when it would be the first."""
    if library in _ready:
        return await offload(size, work)

    def first() -> Result:
        load(library)
        return work()

    return await offload(INLINE_BYTES + 1, first)
