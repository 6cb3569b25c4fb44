"""How long a caller waits for its answer: the header of every inference endpoint."""

from __future__ import annotations

import re
import time
from math import inf

from starlette.requests import Request

from app.errors import DeadlineExceeded, InvalidRequest

HEADER = "X-Request-Timeout"
RAW_HEADER = HEADER.lower().encode()

DOCUMENTED = {
    "name": HEADER,
    "in": "header",
    "description": "Seconds until the request must have left the queue, at most the server's own limit; past it 504.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
"""The header as an OpenAPI parameter."""

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LONGEST = 32
"""Characters of a number."""


def seconds(value: bytes | str | None) -> float | None:
    """The header's seconds; None without it. InvalidRequest unless it is a number above 0."""
    if value is None:
        return None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if len(text) > LONGEST or not _NUMBER.fullmatch(text.strip()) or not 0 < float(text) < inf:
        raise InvalidRequest(f"{HEADER} must be a number of seconds above 0", field=HEADER)
    return float(text)


async def arm(request: Request) -> None:
    """A route's dependency: begin to count the caller's time before anything of the request is read."""
    limit = seconds(request.headers.get(HEADER))
    request.state.until = None if limit is None else time.monotonic() + limit


def remaining(request: Request) -> float | None:
    """What is left of the time of an armed request, seconds; None without a limit. Raises DeadlineExceeded."""
    until: float | None = request.state.until
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded(f"{HEADER} passed before there was an answer")
    return left


def earliest(*limits: float | None) -> float | None:
    """The shortest of the limits that are given."""
    return min(filter(None, limits), default=None)
