"""NRRD (.nrrd): a text header, read by pynrrd, an empty line, then the voxels, raw or gzip.

Specification: Teem's definition of the NRRD file format. Only files that hold their own voxels.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, UnusableInput
from app.readers.bounded import Buffer, gunzip
from app.readers.volume import Volume, at_time, checked_affine, claimed_bytes, spacing_of, three_dimensional

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
_MILLIMETRES = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("um", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
}
"""Units are any text to the specification; one that is not here is taken for mm."""

_MICRO = re.compile(rb"\xc2\xb5|\xce\xbc|\xb5")
"""The letter before the m of a micrometre, in UTF-8 (two code points look so) and Latin-1."""

_OF_SPACE = frozenset({"domain", "space", "none", "???"})
_OF_TIME = frozenset({"list", "time"})
"""Kinds of axes: those of a volume, and those along which there may be several. All others make up one voxel."""


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
    claimed = claimed_bytes(shape, dtype, limit, "NRRD")
    body: Buffer = memoryview(data)[start:]
    encoding = header.get("encoding")
    if encoding in ("gzip", "gz"):
        body = gunzip(body, claimed)
    elif encoding != "raw":
        raise UnusableInput("an NRRD's voxels must be encoded raw or gzip")
    if len(body) < claimed:
        raise InvalidRequest(f"the NRRD is truncated: {len(body)} of {claimed} bytes")
    flat: npt.NDArray[Any] = np.frombuffer(body, dtype, math.prod(shape))
    axes = _axes(header, shape)
    voxels = three_dimensional(at_time(flat.reshape(shape, order="F").transpose(axes), time))
    affine = _affine(header, axes[:3])
    return Volume(voxels, "nrrd", _spacing(header, axes[:3]) if affine is None else spacing_of(affine), affine)


def _header(head: bytes) -> tuple[dict[str, Any], int]:
    import nrrd

    ends = [(head.find(mark), len(mark)) for mark in (b"\n\n", b"\r\n\r\n")]
    end, length = min((found for found in ends if found[0] >= 0), default=(-1, 0))
    if end < 0:
        raise InvalidRequest("the NRRD's header has no end")
    # pynrrd leaves out what is not ASCII, and would read micrometres as metres.
    text = re.sub(rb"[\x80-\xff]", b"?", _MICRO.sub(b"u", head[: end + length]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header: dict[str, Any] = nrrd.read_header(io.BytesIO(text))
    except Exception as exc:  # NRRDError, and whatever numpy makes of broken numbers
        raise InvalidRequest("the NRRD's header is broken") from exc
    return header, end + length


def _axes(header: dict[str, Any], shape: tuple[int, ...]) -> list[int]:
    """The order of the axes that has those of space first, as the kinds say: one of time may be anywhere in the file.

    Raises:
        UnusableInput: an axis of a colour or of another part of a voxel, several of time, or one and not three of
        space. InvalidRequest: not a kind for every axis.
    """
    kinds = [str(kind).lower() for kind in header.get("kinds", ["domain"] * len(shape))]
    if len(kinds) != len(shape):
        raise InvalidRequest("the NRRD's kinds are broken: there must be one for every axis")
    space = [axis for axis, kind in enumerate(kinds) if kind in _OF_SPACE]
    others = [axis for axis in range(len(shape)) if axis not in space]
    several = [axis for axis in others if shape[axis] != 1]
    if any(kinds[axis] not in _OF_TIME for axis in several):
        raise UnusableInput(
            "the NRRD's kinds name an axis of colours, vectors or the like; a volume has one number a voxel, and its "
            "axes are domain or space, and list or time"
        )
    if several and (len(several) > 1 or len(space) != 3):
        raise UnusableInput(
            f"the NRRD's kinds are of {len(space)} axes of space and {len(several)} of list or time; three and at most "
            "one are read"
        )
    return [*space, *several, *(axis for axis in others if axis not in several)]


def _affine(header: dict[str, Any], axes: Sequence[int]) -> npt.NDArray[np.float64] | None:
    """To RAS in mm, of three axes; None where the header names no anatomical space."""
    signs = _TO_RAS.get(str(header.get("space", "")).lower())
    directions = header.get("space directions")
    if signs is None or directions is None:
        return None
    try:
        vectors = np.array([np.full(3, np.nan) if row is None else row for row in directions], np.float64)[axes]
        origin = np.asarray(header.get("space origin", np.zeros(3)), np.float64)
    except (ValueError, TypeError, IndexError) as exc:
        raise InvalidRequest("the NRRD's orientation is broken") from exc
    if vectors.shape != (3, 3) or origin.shape != (3,):
        return None
    affine = np.eye(4)
    affine[:3, :3] = vectors.T
    affine[:3, 3] = origin
    affine[:3] *= (np.array(signs) * _units(header, "space units", range(3)))[:, np.newaxis]
    return checked_affine(affine)


def _units(header: dict[str, Any], field: str, axes: Sequence[int]) -> npt.NDArray[np.float64]:
    """The units in mm that a field has for some axes; 1 where there is no such field."""
    names = header.get(field)
    if names is None:
        return np.ones(len(axes))
    if len(names) <= max(axes):
        raise InvalidRequest(f"the NRRD's {field} are broken: there must be one for every axis")
    return np.array([_MILLIMETRES.get(str(names[axis]).strip().lower(), 1.0) for axis in axes])


def _spacing(header: dict[str, Any], axes: Sequence[int]) -> tuple[float, float, float] | None:
    try:
        sizes = np.array([abs(float(header["spacings"][axis])) for axis in axes])
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    i, j, k = (sizes * _units(header, "units", axes)).tolist()
    return (i, j, k) if all(0 < size < math.inf for size in (i, j, k)) else None
