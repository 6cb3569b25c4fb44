"""A single-channel volume, and which arrays are one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import PayloadTooLarge, UnusableInput

Format = Literal["nifti", "dicom", "nrrd", "metaimage", "npy", "npz", "json"]


@dataclass(frozen=True, eq=False)
class Volume:
    """data (i, j, k), finite numbers in the file's own axes.

    `spacing` is the voxel size in mm along the axes. `affine` (4, 4) maps voxel to RAS+ world coordinates in mm; both
    are None where the format has none, or the file says that it does not know. `modality` is DICOM's (CT, MR, ..).
    """

    data: npt.NDArray[Any]
    format: Format
    spacing: tuple[float, float, float] | None = None
    affine: npt.NDArray[np.float64] | None = None
    modality: str | None = None


def claimed_bytes(shape: Sequence[int], dtype: np.dtype[Any], limit: int, claimant: str) -> int:
    """Bytes of the voxels that a header, the `claimant` in messages, speaks of.

    Raises:
        UnusableInput: no voxels; beside an axis of none any other may be longer than an array can be. PayloadTooLarge:
        more than `limit` bytes.
    """
    if 0 in shape:
        raise UnusableInput(f"the {claimant} claims shape {list(shape)}: no voxels")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > limit:
        raise PayloadTooLarge(f"the {claimant} claims {claimed} bytes, more than the limit of {limit}")
    return claimed


def at_time(array: npt.NDArray[Any], time: int | None) -> npt.NDArray[Any]:
    """One of the volumes of a series in time: the `time`-th along the fourth axis.

    Raises:
        UnusableInput: four axes and no time to choose by, or no such time.
    """
    while array.ndim > 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 4 and (time is not None or array.shape[-1] != 1):
        if time is None:
            raise UnusableInput(
                f"the volume has shape {list(array.shape)}; it must have three axes, or t=0 to {array.shape[3] - 1} "
                "must choose one along the fourth",
                field="t",
            )
        if not 0 <= time < array.shape[3]:
            raise UnusableInput(f"t is {time}; the volume has times 0 to {array.shape[3] - 1}", field="t")
        return array[..., time]
    if time not in (None, 0):
        raise UnusableInput(f"t is {time}; the volume has time 0 only", field="t")
    return array


def three_dimensional(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array without trailing axes of one; UnusableInput unless it is three-dimensional, not empty and finite."""
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


def checked_affine(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """UnusableInput unless the affine gives every voxel a place of its own."""
    if not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        raise UnusableInput("the volume's affine is singular")
    return affine


def spacing_of(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Voxel size in mm along the axes."""
    i, j, k = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return i, j, k
