"""A single-channel volume from the bytes of a NIfTI, .npy, .npz or JSON payload, told apart by its first bytes."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers import npy
from app.readers.bounded import BLOCK, GZIP_MAGIC, Buffer, gunzip, gunzip_prefix, unzip_member, zip_directory
from app.readers.numeric_json import read_document

ZIP_MAGIC = b"PK\x03\x04"
NIFTI1_HEADER, NIFTI2_HEADER = 348, 540
"""Bytes of a NIfTI header; its first field, an int32 in the file's own byte order, says the same number."""

_NPZ_NAMES = ("volume", "image")


@dataclass(frozen=True, eq=False)
class Volume:
    """data (i, j, k), finite numbers in the file's own axes.

    `spacing` is the voxel size in mm along the axes. `affine` (4, 4) maps voxel to RAS+ world coordinates in mm; both
    are None where the format has none, or the file says that it does not know.
    """

    data: npt.NDArray[Any]
    format: Literal["nifti", "npy", "npz", "json"]
    spacing: tuple[float, float, float] | None = None
    affine: npt.NDArray[np.float64] | None = None


def read_volume(data: Buffer, limit: int) -> Volume:
    """Read .npy, .npz, .nii or .nii.gz.

    Args:
        limit: most bytes of the decoded array, checked against what the header claims before anything is expanded.

    Raises:
        InvalidRequest: none of the formats, truncated or broken. PayloadTooLarge: past `limit`.
        UnusableInput: not three-dimensional, empty, or with values that are not finite numbers.
    """
    head = bytes(data[: len(npy.MAGIC)])
    if head == npy.MAGIC:
        return Volume(_three_dimensional(npy.read_npy(data, limit)), "npy")
    if head.startswith(ZIP_MAGIC):
        return Volume(_three_dimensional(_read_npz(data, limit)), "npz")
    if head.startswith(GZIP_MAGIC):
        size = _claimed_size(gunzip_prefix(data, NIFTI2_HEADER), limit)
        return _read_nifti(gunzip(data, size + BLOCK), limit)  # some writers pad the end
    if _nifti_byte_order(head) is not None:
        return _read_nifti(data, limit)
    raise InvalidRequest("not a volume: the first bytes are neither those of .npy, .npz, .nii nor .nii.gz")


def read_json_volume(data: Buffer, limit: int) -> Volume:
    """Read {"volume": [[[..], ..], ..]}; raises as `read_volume` does."""
    members, array = read_document(data, "volume", limit)
    if members:
        raise InvalidRequest(f"unknown member {next(iter(members))[:40]!r}", field=next(iter(members))[:40])
    return Volume(_three_dimensional(array), "json")


def _read_npz(data: Buffer, limit: int) -> npt.NDArray[Any]:
    arrays = {entry.filename.removesuffix(".npy"): entry for entry in zip_directory(data)}
    named = [arrays[name] for name in _NPZ_NAMES if name in arrays]
    candidates: list[zipfile.ZipInfo] = named or list(arrays.values())
    if len(candidates) != 1:
        raise UnusableInput(f"the .npz must hold one array, or name one of them {' or '.join(_NPZ_NAMES)}")
    # The header is not part of the array that `limit` is about.
    return npy.read_npy(unzip_member(data, candidates[0], limit + npy.MAX_HEADER), limit)


def _nifti_byte_order(head: bytes) -> tuple[Literal["little", "big"], int] | None:
    for order in ("little", "big"):
        size = int.from_bytes(head[:4], order)
        if size in (NIFTI1_HEADER, NIFTI2_HEADER):
            return order, size
    return None


def _nifti_header(head: bytes) -> Any:
    import nibabel as nib

    found = _nifti_byte_order(head)
    if found is None:
        raise InvalidRequest("not a NIfTI file")
    order, size = found
    if len(head) < size:
        raise InvalidRequest("the NIfTI header is truncated")
    kind: Any = nib.Nifti1Header if size == NIFTI1_HEADER else nib.Nifti2Header
    header = kind.from_fileobj(io.BytesIO(head[:size]), endianness="<" if order == "little" else ">", check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise InvalidRequest("not a single-file NIfTI image (magic n+1 or n+2)")
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
    if not (math.isfinite(offset) and offset >= int(header["sizeof_hdr"]) and offset.is_integer()):
        raise InvalidRequest("the NIfTI header's vox_offset is broken")
    return tuple(dimensions[1 : dimensions[0] + 1]), dtype, int(offset)


def _claimed_size(head: bytes, limit: int) -> int:
    """Bytes of the whole file by its header; past `limit` (of the voxels) it is refused."""
    shape, dtype, offset = _layout(_nifti_header(head))
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > limit or offset > limit:
        raise PayloadTooLarge(f"the NIfTI header claims {max(claimed, offset)} bytes, more than the limit of {limit}")
    return offset + claimed


def _read_nifti(data: Buffer, limit: int) -> Volume:
    head = bytes(data[:NIFTI2_HEADER])
    size = _claimed_size(head, limit)
    if len(data) < size:
        raise InvalidRequest(f"the NIfTI file is truncated: {len(data)} of {size} bytes")
    header = _nifti_header(head)
    shape, dtype, offset = _layout(header)
    count = math.prod(shape)
    flat: npt.NDArray[Any] = np.frombuffer(data, dtype, count, offset) if count else np.empty(0, dtype)
    voxels = _three_dimensional(_rescaled(flat.reshape(shape, order="F"), header, limit))
    return Volume(voxels, "nifti", _spacing(header), _affine(header))


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


def _spacing(header: Any) -> tuple[float, float, float] | None:
    i, j, k = (abs(float(size)) for size in header["pixdim"][1:4])
    return (i, j, k) if all(0 < size < math.inf for size in (i, j, k)) else None


def _affine(header: Any) -> npt.NDArray[np.float64] | None:
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return None  # the file says nothing of its orientation; a default would turn it at random
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except ValueError as exc:
        raise InvalidRequest("the NIfTI header's orientation is broken") from exc
    if not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        raise UnusableInput("the NIfTI header's affine is singular")
    return affine


def _three_dimensional(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise UnusableInput(f"the volume has shape {list(array.shape)}; it must have three axes")
    if array.size == 0:
        raise UnusableInput(f"the volume has shape {list(array.shape)}: no voxels")
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            first = np.unravel_index(int((~finite).argmax()), array.shape)
            place = [int(index) for index in first]
            raise UnusableInput(
                f"the volume has {int((~finite).sum())} voxels that are NaN or infinite, first at {place}"
            )
    return array
