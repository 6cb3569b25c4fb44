"""Compressed answers for clients that ask for them. RFC 9110, section 12.5.3, "Accept-Encoding"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from isal import isal_zlib

Coding = Literal["gzip", "deflate"]

LEVEL = 1
"""Of ISA-L's 0 to 3. At 0 JSON's numbers stay larger, and above 1 they get hardly smaller."""

SAMPLE_BYTES = 2048
"""Bytes out of an answer's middle by which it is told whether the rest is worth compressing."""

WORTHWHILE = 0.75
"""What a compressed answer has at most of the plain one's size: JSON has less, most float tensors as bytes more."""

_WINDOW = {"gzip": isal_zlib.MAX_WBITS | 16, "deflate": isal_zlib.MAX_WBITS}


@lru_cache(maxsize=16)
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


def shrinks(pieces: Sequence[bytes | memoryview]) -> bool:
    """Whether a body in these pieces is worth compressing, by a sample of its largest piece."""
    largest = memoryview(max(pieces, key=len))
    start = max(0, len(largest) - SAMPLE_BYTES) // 2
    sample = largest[start : start + SAMPLE_BYTES]
    return len(isal_zlib.compress(sample, LEVEL)) <= WORTHWHILE * len(sample)


def compress(pieces: Iterable[bytes | memoryview], coding: Coding) -> bytes:
    """The pieces as one compressed body; `deflate` is the zlib format, as HTTP has it."""
    stream = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(stream.compress(piece) for piece in pieces), stream.flush()])
