"""MetaImage (.mha): a header of "key = value" lines, then the voxels, raw or as one zlib stream.

Specification: ITK's MetaIO documentation. Only files that hold their own voxels: ElementDataFile = LOCAL.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, UnusableInput
from app.readers.bounded import Buffer, inflate
from app.readers.volume import Volume, at_time, checked_affine, claimed_bytes, spacing_of, three_dimensional

MAGIC = b"ObjectType"
MAX_HEADER = 1 << 14

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_metaimage(data: Buffer, limit: int, time: int | None = None) -> Volume:
    """The volume of an .mha file; `time` chooses along a fourth axis.

    Raises:
        InvalidRequest: broken, truncated, or with its voxels elsewhere. UnusableInput: not one number a voxel.
        PayloadTooLarge: more than `limit` bytes.
    """
    header, start = _header(bytes(data[:MAX_HEADER]))
    if header.get("ElementDataFile") != "LOCAL":
        raise InvalidRequest("the MetaImage's voxels are in another file; send an .mha")
    if int(_number(header, "ElementNumberOfChannels", "1")) != 1:
        raise UnusableInput("the MetaImage has several channels; a volume has one number a voxel")
    kind = _TYPES.get(header.get("ElementType", ""))
    if kind is None:
        raise UnusableInput("the MetaImage's elements are not plain numbers")
    shape = tuple(int(size) for size in _numbers(header, "DimSize"))
    if not 1 <= len(shape) <= 7 or any(size < 0 for size in shape):
        raise InvalidRequest("the MetaImage's DimSize is broken")
    big = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower() == "true"
    dtype = np.dtype((">" if big else "<") + kind)
    claimed = claimed_bytes(shape, dtype, limit, "MetaImage")
    if header.get("BinaryData", "True").lower() != "true":
        raise UnusableInput("a MetaImage with its voxels as text is not read here")
    body: Buffer = memoryview(data)[start:]
    if header.get("CompressedData", "False").lower() == "true":
        body = inflate(body, claimed)
    if len(body) < claimed:
        raise InvalidRequest(f"the MetaImage is truncated: {len(body)} of {claimed} bytes")
    flat = np.frombuffer(body, dtype, math.prod(shape))
    voxels = three_dimensional(at_time(flat.reshape(shape, order="F"), time))
    affine = _affine(header, len(shape))
    return Volume(voxels, "metaimage", None if affine is None else spacing_of(affine), affine)


def _header(head: bytes) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    position = 0
    while (end := head.find(b"\n", position)) >= 0:
        key, mark, value = head[position:end].decode("latin-1").partition("=")
        position = end + 1
        if not mark:
            break
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return fields, position
    raise InvalidRequest("the MetaImage's header is broken")


def _numbers(header: dict[str, str], *keys: str) -> list[float]:
    text = next((header[key] for key in keys if key in header), "")
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError as exc:
        raise InvalidRequest(f"the MetaImage's {keys[0]} is broken") from exc
    if not all(math.isfinite(number) for number in numbers):
        raise InvalidRequest(f"the MetaImage's {keys[0]} is broken")
    return numbers


def _number(header: dict[str, str], key: str, default: str) -> float:
    numbers = _numbers({key: header.get(key, default)}, key)
    if len(numbers) != 1:
        raise InvalidRequest(f"the MetaImage's {key} is broken")
    return numbers[0]


def _affine(header: dict[str, str], dimensions: int) -> npt.NDArray[np.float64] | None:
    """To RAS, of the first three axes: MetaImage's coordinates are LPS. None where nothing is said; directions without
    a spacing are of voxels of 1 mm, as in ITK."""
    directions = _numbers(header, "TransformMatrix", "Rotation", "Orientation")
    spacing = _numbers(header, "ElementSpacing", "ElementSize") or [1.0] * (dimensions if directions else 0)
    if len(spacing) != dimensions or dimensions < 3:
        return None
    directions = directions or list(np.eye(dimensions).ravel())
    origin = _numbers(header, "Offset", "Position", "Origin") or [0.0] * dimensions
    if len(directions) != dimensions**2 or len(origin) != dimensions:
        raise InvalidRequest("the MetaImage's orientation is broken")
    affine = np.eye(4)
    # Each row of the file is the direction of one axis.
    affine[:3, :3] = np.array(directions).reshape(dimensions, dimensions)[:3, :3].T * np.array(spacing[:3])
    affine[:3, 3] = origin[:3]
    affine[:2] *= -1
    return checked_affine(affine)
