"""NIfTI-1 and NIfTI-2 (.nii, or a pair of .hdr and .img) through nibabel's header, with every number of it checked."""

from __future__ import annotations

import io
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer
from app.readers.volume import Volume, at_time, checked_affine, claimed_bytes, three_dimensional

NIFTI1_HEADER, NIFTI2_HEADER = 348, 540
"""Bytes of a NIfTI header; its first field, an int32 in the file's own byte order, says the same number."""

_SINGLE, _PAIR = (b"n+1", b"n+2"), (b"ni1", b"ni2")
_MAGIC_AT = {NIFTI1_HEADER: 344, NIFTI2_HEADER: 4}
_MILLIMETRES = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Of the units of space in the low three bits of xyzt_units (nifti1.h): metre, millimetre, micron."""


def is_nifti(head: bytes) -> bool:
    """Whether bytes begin as a NIfTI file does, or a header of a pair, or one of Analyze 7.5."""
    return _byte_order(head) is not None


def is_pair_header(head: bytes) -> bool:
    """Whether bytes are the header (.hdr) of a pair, whose voxels are in another file (.img)."""
    found = _byte_order(head)
    return found is not None and head[_MAGIC_AT[found[1]] :][:3] in _PAIR


def _byte_order(head: bytes) -> tuple[Literal["little", "big"], int] | None:
    for order in ("little", "big"):
        size = int.from_bytes(head[:4], order)
        if size in (NIFTI1_HEADER, NIFTI2_HEADER):
            return order, size
    return None


def _header(head: bytes) -> Any:
    import nibabel as nib

    found = _byte_order(head)
    if found is None:
        raise InvalidRequest("not a NIfTI file")
    order, size = found
    if len(head) < size:
        raise InvalidRequest("the NIfTI header is truncated")
    kind: Any = nib.Nifti1Header if size == NIFTI1_HEADER else nib.Nifti2Header
    header = kind.from_fileobj(io.BytesIO(head[:size]), endianness="<" if order == "little" else ">", check=False)
    magic = bytes(header["magic"])[:3]
    if magic not in (*_SINGLE, *_PAIR):
        raise InvalidRequest("not a NIfTI image (magic n+1, n+2, ni1 or ni2); Analyze 7.5 is not read")
    return header


def _layout(header: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and byte offset of the voxels; every number in a stranger's header is checked here."""
    dimensions = [int(size) for size in header["dim"]]
    if not 1 <= dimensions[0] <= 7 or any(size < 0 for size in dimensions[1 : dimensions[0] + 1]):
        raise InvalidRequest("the NIfTI header's dimensions are broken")
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (KeyError, ValueError, TypeError) as exc:
        raise InvalidRequest("the NIfTI header's data type is unknown") from exc
    if dtype.kind not in "iuf":
        raise UnusableInput(f"voxels of type {dtype} are not single numbers")
    offset = float(header["vox_offset"])
    least = 0 if bytes(header["magic"])[:3] in _PAIR else int(header["sizeof_hdr"])
    if not (math.isfinite(offset) and offset >= least and offset.is_integer()):
        raise InvalidRequest("the NIfTI header's vox_offset is broken")
    return tuple(dimensions[1 : dimensions[0] + 1]), dtype, int(offset)


def claimed_size(head: bytes, limit: int) -> int:
    """Bytes of the file that holds the voxels, by its header; past `limit` (of the voxels) it is refused."""
    shape, dtype, offset = _layout(_header(head))
    if offset > limit:
        raise PayloadTooLarge(f"the NIfTI header claims {offset} bytes, more than the limit of {limit}")
    return offset + claimed_bytes(shape, dtype, limit, "NIfTI header")


def read_nifti(data: Buffer, limit: int, time: int | None = None, voxels: Buffer | None = None) -> Volume:
    """The volume of a .nii file, or of a pair: `data` the header, `voxels` the other file.

    Raises:
        InvalidRequest: broken or truncated, or half of a pair. UnusableInput: not a volume of single numbers.
        PayloadTooLarge: more than `limit` bytes.
    """
    head = bytes(data[:NIFTI2_HEADER])
    header = _header(head)
    if (bytes(header["magic"])[:3] in _PAIR) is (voxels is None):
        raise InvalidRequest("the two files of a NIfTI pair, .hdr and .img, belong together in one zip or form")
    body = data if voxels is None else voxels
    size = claimed_size(head, limit)
    if len(body) < size:
        raise InvalidRequest(f"the NIfTI file is truncated: {len(body)} of {size} bytes")
    shape, dtype, offset = _layout(header)
    flat: npt.NDArray[Any] = np.frombuffer(body, dtype, math.prod(shape), offset)
    chosen = at_time(flat.reshape(shape, order="F"), time)
    return Volume(three_dimensional(_rescaled(chosen, header, limit)), "nifti", _spacing(header), _affine(header))


def _rescaled(voxels: npt.NDArray[Any], header: Any, limit: int) -> npt.NDArray[Any]:
    """Apply scl_slope and scl_inter where the header sets them (NIfTI-1: slope 0 or not finite means unset)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or (slope, intercept) == (1.0, 0.0):
        return voxels
    if not math.isfinite(intercept):
        raise InvalidRequest("the NIfTI header's scl_inter is not finite")
    if voxels.size * 8 > limit:
        raise PayloadTooLarge(f"the rescaled volume takes {voxels.size * 8} bytes, more than the limit of {limit}")
    return voxels * np.float64(slope) + intercept


def _unit(header: Any) -> float:
    """The header's unit of space in mm; what it does not say, or says unknown, is taken for mm."""
    return _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)


def _spacing(header: Any) -> tuple[float, float, float] | None:
    i, j, k = (abs(float(size)) * _unit(header) for size in header["pixdim"][1:4])
    return (i, j, k) if all(0 < size < math.inf for size in (i, j, k)) else None


def _affine(header: Any) -> npt.NDArray[np.float64] | None:
    from nibabel.spatialimages import HeaderDataError

    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return None  # the file says nothing of its orientation; a default would turn it at random
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (ValueError, HeaderDataError, np.linalg.LinAlgError) as exc:
        raise InvalidRequest("the NIfTI header's orientation is broken") from exc
    affine[:3] *= _unit(header)
    return checked_affine(affine)
