"""Compressed answers for clients that ask for them. RFC 9110, section 12.5.3, "Accept-Encoding"."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Literal

Coding = Literal["gzip", "deflate"]

LEVEL = 1
"""The fastest: tensors of floats hardly get smaller at any."""

_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


def accepted(header: bytes) -> Coding | None:
    """The coding that an Accept-Encoding header prefers; gzip among equals, None if identity is preferred to both.

    What cannot be read in the header counts as not there.
    """
    weights: dict[str, float] = {}
    for item in header.decode("latin-1").lower().split(","):
        name, _, parameter = item.partition(";")
        key, _, value = parameter.strip().partition("=")
        try:
            weights[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            continue
    anything = weights.get("*", 0.0)
    gzip = weights.get("gzip", weights.get("x-gzip", anything))
    deflate = weights.get("deflate", anything)
    if max(gzip, deflate) <= 0 or weights.get("identity", 0.0) > max(gzip, deflate):
        return None
    return "gzip" if gzip >= deflate else "deflate"


def compress(pieces: Iterable[bytes | memoryview], coding: Coding) -> bytes:
    """The pieces as one compressed body; `deflate` is the zlib format, as HTTP has it."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(stream.compress(piece) for piece in pieces), stream.flush()])
