"""How long a caller waits for its answer: the header of every inference endpoint."""

from __future__ import annotations

import re
from math import inf

from app.errors import InvalidRequest

HEADER = "X-Request-Timeout"
RAW_HEADER = HEADER.lower().encode()

DOCUMENTED = {
    "name": HEADER,
    "in": "header",
    "description": "Seconds that the request may wait in the queue, at most the server's own limit; past it 504.",
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


def earliest(*limits: float | None) -> float | None:
    """The shortest of the limits that are given."""
    return min((limit for limit in limits if limit), default=None)
