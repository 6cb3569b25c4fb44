"""Long answers as JSON, written piece by piece: orjson keeps the interpreter for the whole of what it is given, and the
event loop waits for it, whichever thread that is in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

PIECE = 1 << 14
"""Numbers that are written at once, in about a millisecond."""


def dumps(document: object, numbers: int) -> bytes:
    """JSON of dictionaries, lists and arrays that hold about `numbers` numbers."""
    return _text(document) if numbers <= PIECE else b"".join(_pieces(document))


def _text(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _pieces(value: object) -> Iterator[bytes]:
    if isinstance(value, dict) and value:
        opening = b"{"
        for key, inner in value.items():
            yield opening + _text(key) + b":"
            yield from _pieces(inner)
            opening = b","
        yield b"}"
    elif (isinstance(value, list) and value and isinstance(value[0], dict)) or (
        isinstance(value, np.ndarray) and value.size > PIECE and value.ndim > 1
    ):
        opening = b"["
        for inner in value:
            yield opening
            yield from _pieces(inner)
            opening = b","
        yield b"]"
    elif isinstance(value, np.ndarray) and value.size > PIECE:
        opening = b"["
        for start in range(0, value.size, PIECE):
            yield opening + _text(value[start : start + PIECE])[1:-1]
            opening = b","
        yield b"]"
    else:
        yield _text(value)
