"""NRRD (.nrrd): a text header, read by pynrrd, an empty line, then the voxels, raw or gzip.

Specification: Teem's definition of the NRRD file format. Only files that hold their own voxels.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer, gunzip
from app.readers.volume import Volume, at_time, checked_affine, spacing_of, three_dimensional

MAGIC = b"NRRD000"
MAX_HEADER = 1 << 16

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}


def read_nrrd(data: Buffer, limit: int, time: int | None = None) -> Volume:
    """The volume of an .nrrd file; `time` chooses along a fourth axis.

    Raises:
        InvalidRequest: broken, truncated, or with its voxels elsewhere. UnusableInput: not one number a voxel, another
        encoding. PayloadTooLarge: more than `limit` bytes.
    """
    header, start = _header(bytes(data[:MAX_HEADER]))
    if "data file" in header or "datafile" in header:
        raise InvalidRequest("the NRRD's voxels are in another file; send an .nrrd that holds its own")
    if any(int(header.get(key, 0)) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise UnusableInput("an NRRD that skips lines or bytes is not read here")
    kind = _TYPES.get(str(header.get("type", "")))
    if kind is None:
        raise UnusableInput("the NRRD's elements are not plain numbers")
    shape = tuple(int(size) for size in np.atleast_1d(header.get("sizes", ())))
    if not 1 <= len(shape) <= 7 or any(size < 0 for size in shape) or int(header.get("dimension", -1)) != len(shape):
        raise InvalidRequest("the NRRD's sizes are broken")
    dtype = np.dtype((">" if header.get("endian") == "big" else "<") + kind)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > limit:
        raise PayloadTooLarge(f"the NRRD claims {claimed} bytes, more than the limit of {limit}")
    body: Buffer = memoryview(data)[start:]
    encoding = header.get("encoding")
    if encoding in ("gzip", "gz"):
        body = gunzip(body, claimed)
    elif encoding != "raw":
        raise UnusableInput("an NRRD's voxels must be encoded raw or gzip")
    if len(body) < claimed:
        raise InvalidRequest(f"the NRRD is truncated: {len(body)} of {claimed} bytes")
    count = math.prod(shape)
    flat: npt.NDArray[Any] = np.frombuffer(body, dtype, count) if count else np.empty(0, dtype)
    voxels = three_dimensional(at_time(flat.reshape(shape, order="F"), time))
    affine = _affine(header)
    return Volume(voxels, "nrrd", _spacing(header) if affine is None else spacing_of(affine), affine)


def _header(head: bytes) -> tuple[dict[str, Any], int]:
    import nrrd

    ends = [(head.find(mark), len(mark)) for mark in (b"\n\n", b"\r\n\r\n")]
    end, length = min((found for found in ends if found[0] >= 0), default=(-1, 0))
    if end < 0:
        raise InvalidRequest("the NRRD's header has no end")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header: dict[str, Any] = nrrd.read_header(io.BytesIO(head[: end + length]))
    except Exception as exc:  # NRRDError, and whatever numpy makes of broken numbers
        raise InvalidRequest("the NRRD's header is broken") from exc
    return header, end + length


def _affine(header: dict[str, Any]) -> npt.NDArray[np.float64] | None:
    """To RAS, of the first three axes; None where the header names no anatomical space."""
    signs = _TO_RAS.get(str(header.get("space", "")).lower())
    directions = header.get("space directions")
    if signs is None or directions is None:
        return None
    try:
        vectors = np.array([np.full(3, np.nan) if row is None else row for row in directions], np.float64)[:3]
        origin = np.asarray(header.get("space origin", np.zeros(3)), np.float64)
    except (ValueError, TypeError) as exc:
        raise InvalidRequest("the NRRD's orientation is broken") from exc
    if vectors.shape != (3, 3) or origin.shape != (3,):
        return None
    affine = np.eye(4)
    affine[:3, :3] = vectors.T
    affine[:3, 3] = origin
    affine[:3] *= np.array(signs)[:, np.newaxis]
    return checked_affine(affine)


def _spacing(header: dict[str, Any]) -> tuple[float, float, float] | None:
    try:
        i, j, k = (abs(float(size)) for size in header["spacings"][:3])
    except (KeyError, ValueError, TypeError):
        return None
    return (i, j, k) if all(0 < size < math.inf for size in (i, j, k)) else None
