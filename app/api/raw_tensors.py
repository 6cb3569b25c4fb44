"""Tensors as raw bytes: little-endian and row-major, as REST's binary extension and gRPC's raw contents carry them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import prod
from typing import Any

import numpy as np

from app.errors import InvalidRequest

STRINGS = "OSU"
"""Kinds of numpy types that hold BYTES elements."""


def from_bytes(
    blob: bytes | memoryview, name: str, datatype: str, dtype: np.dtype[Any], shape: Sequence[int]
) -> np.ndarray:
    """The tensor of this shape in `blob`, without a copy but for BYTES; InvalidRequest when the size is another.

    BOOL elements are bytes of 0 or 1, as Triton's binary tensor data extension has them: of others ONNX Runtime's
    operators make what is neither.
    """
    if datatype == "BYTES":
        # No more elements than the shape has and one: each is a Python object.
        return filled(list(islice(_split(blob, name), prod(shape) + 1)), name, dtype, shape)
    if len(blob) != prod(shape) * dtype.itemsize:
        raise InvalidRequest(
            f"input {name!r}: {len(blob)} bytes do not hold {datatype} of shape {list(shape)}", field=name
        )
    if datatype == "BOOL" and np.frombuffer(blob, np.uint8).max(initial=0) > 1:
        raise InvalidRequest(f"input {name!r}: a BOOL element is a byte of 0 or 1", field=name)
    return _shaped(np.frombuffer(blob, dtype), name, shape)


def lies_ready(tensor: np.ndarray) -> bool:
    """Whether the tensor's bytes can be sent as they lie: row-major, and no part of a larger tensor.

    A slow client would keep all of a batch in memory with its own rows.
    """
    return tensor.dtype.kind not in STRINGS and not isinstance(tensor.base, np.ndarray) and tensor.flags.c_contiguous


def raw_bytes(tensor: np.ndarray) -> bytes | memoryview:
    """The tensor's raw bytes, not copied if they lie ready; objects and strings become BYTES elements."""
    if tensor.dtype.kind not in STRINGS:
        return tensor.data.cast("B") if tensor.size and lies_ready(tensor) else tensor.tobytes()
    pieces = []
    for value in tensor.ravel():
        raw = value if isinstance(value, bytes) else str(value).encode()
        pieces += [len(raw).to_bytes(4, "little"), raw]
    return b"".join(pieces)


def filled(values: Sequence[Any] | np.ndarray, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray:
    """Flat values in this shape; InvalidRequest unless they fill it."""
    if len(values) != prod(shape):
        raise InvalidRequest(f"input {name!r}: {len(values)} values do not fill shape {list(shape)}", field=name)
    return _shaped(np.asarray(values, dtype), name, shape)


def _shaped(flat: np.ndarray, name: str, shape: Sequence[int]) -> np.ndarray:
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:  # more axes than numpy has, or huge ones beside an empty one
        raise InvalidRequest(f"input {name!r}: shape {list(shape)[:8]} is out of bounds", field=name) from error


def _split(blob: bytes | memoryview, name: str) -> Iterator[bytes]:
    """BYTES elements: a little-endian u32 length before each."""
    position = 0
    while position < len(blob):
        end = position + 4
        length = int.from_bytes(blob[position:end], "little")
        if end > len(blob) or length > len(blob) - end:
            raise InvalidRequest(f"input {name!r}: a BYTES element runs past the tensor's end", field=name)
        yield bytes(blob[end : end + length])
        position = end + length
