"""NumPy's .npy format, versions 1 to 3 (NEP 1), for plain numbers only.

numpy's own reader allocates what the header claims, and can be told to run pickles. This one compares the header with
the bytes that are there, then lays the array over them: no allocation, no code.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096
"""Bytes of header text: numpy writes 118 for most arrays."""

_PLAIN_NUMBER = re.compile(r"[<>|=]?[biuf][0-9]{1,2}")


def read_npy(data: Buffer, limit: int) -> npt.NDArray[Any]:
    """The array of an .npy file, read-only over `data` where that is.

    Raises:
        InvalidRequest: not an .npy file, or its header and its length disagree.
        PayloadTooLarge: the header claims more than `limit` bytes.
        UnusableInput: its elements are not booleans, integers or floats.
    """
    view = memoryview(data)
    if bytes(view[:6]) != MAGIC or len(view) < 10:
        raise InvalidRequest("not an .npy file")
    length_size = 2 if view[6] == 1 else 4
    start = 8 + length_size
    end = start + int.from_bytes(view[8:start], "little")
    if view[6] not in (1, 2, 3) or end - start > MAX_HEADER or end > len(view):
        raise InvalidRequest("the .npy header is broken")
    shape, dtype, fortran_order = _parse_header(bytes(view[start:end]).decode("latin-1"))

    count = math.prod(shape)
    claimed = count * dtype.itemsize
    if claimed > limit:
        raise PayloadTooLarge(f"the .npy header claims {claimed} bytes, more than the limit of {limit}")
    if claimed != len(view) - end:
        raise InvalidRequest(f"the .npy header claims {claimed} bytes of data, the file has {len(view) - end}")
    flat: npt.NDArray[Any] = np.frombuffer(view, dtype, count, offset=end) if count else np.empty(0, dtype)
    try:
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except (ValueError, OverflowError) as exc:  # absurd axes beside an empty one
        raise InvalidRequest("the .npy header is broken") from exc


def _parse_header(text: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    try:
        header = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as exc:
        raise InvalidRequest("the .npy header is broken") from exc
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise InvalidRequest("the .npy header is broken")
    shape, descr, fortran_order = header["shape"], header["descr"], header["fortran_order"]
    if (
        not isinstance(shape, tuple)
        or len(shape) > 32
        or not all(type(size) is int and size >= 0 for size in shape)
        or not isinstance(fortran_order, bool)
    ):
        raise InvalidRequest("the .npy header is broken")
    if not isinstance(descr, str) or _PLAIN_NUMBER.fullmatch(descr) is None:
        raise UnusableInput("the array's elements must be booleans, integers or floats")
    try:
        return shape, np.dtype(descr), fortran_order
    except TypeError as exc:
        raise InvalidRequest("the .npy header is broken") from exc
