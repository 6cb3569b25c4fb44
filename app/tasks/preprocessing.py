"""The steps that a manifest declares between a volume and the tensor; each says in the answer what it did.

A step maps (array, geometry) to (array, geometry): the size and direction of the voxels change with reorienting and
resampling, and later steps go by the new ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput
from app.manifest import Binarise, Clip, Crop, Normalise, Pad, Reorient, Resample, Resize, Step, VolumeClassification
from app.readers.volume import Volume

MAX_AXIS = 4096
"""Voxels along one axis that are resized; the weights take memory with its length, whatever the volume's size."""

MAX_VOXELS = 1 << 27
"""Voxels of a resampled or padded volume."""

FREE_VOXELS = 1 << 24
"""Voxels that any volume may be resampled to, 256 along each axis; past them MAX_GROWTH counts."""

MAX_SPACING = 1e9
"""mm between voxels that are resampled; its reciprocal is the least."""

MAX_GROWTH = 8
"""Times its voxels that a large volume may be resampled to: a header may claim metres between them."""

Entry = dict[str, Any]


@dataclass(frozen=True, eq=False)
class _State:
    """A volume between two steps. `axcodes` are None, `spacing` too, where the file says nothing of them."""

    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64] | None
    spacing: tuple[float, float, float] | None


def preprocess(volume: Volume, spec: VolumeClassification) -> tuple[npt.NDArray[np.float32], list[Entry]]:
    """Run the manifest's steps on a volume (i, j, k) and say which were applied, and how.

    Returns the volume as float32 (1, D, H, W) and one entry a step.

    Raises:
        UnusableInput: another modality than the model takes, a constant volume, a single slice, no mask where one must
        be, no voxel size where resampling needs it, one that makes more voxels than the volume's own account for.
    """
    if spec.modalities and volume.modality is not None and volume.modality not in spec.modalities:
        raise UnusableInput(f"this model takes {' and '.join(spec.modalities)}; the file is of another modality")
    if min(volume.data.shape) < 2:
        raise UnusableInput(f"the volume has shape {list(volume.data.shape)}: a single slice is no volume")
    _refuse_constant(volume.data, "the volume is constant: there is nothing in it to classify")
    state = _State(volume.data, volume.affine, volume.spacing)
    applied: list[Entry] = []
    for step in spec.preprocessing:
        state, entry = _apply(step, state)
        applied.append({"op": step.op, **entry})
    with np.errstate(over="ignore"):
        tensor = np.ascontiguousarray(state.array, np.float32)
    if not np.isfinite(tensor).all():
        raise UnusableInput("the volume holds values past the range of float32")
    return tensor[np.newaxis], applied


def made_bytes(spec: VolumeClassification) -> int:
    """Bytes, as float32, of the largest grid that the manifest's steps may make of a volume, however small it is."""
    voxels = [0]
    for step in spec.preprocessing:
        if isinstance(step, Resample):
            voxels.append(FREE_VOXELS)
        elif isinstance(step, Pad | Resize):
            voxels.append(math.prod(step.shape))
    return max(voxels) * np.dtype(np.float32).itemsize


def _apply(step: Step, state: _State) -> tuple[_State, Entry]:
    if isinstance(step, Reorient):
        return _reorient(state, step)
    if isinstance(step, Resample):
        return _resample(state, step)
    if isinstance(step, Clip):
        array, entry = _clip(state.array, step)
    elif isinstance(step, Normalise):
        array, entry = _normalise(state.array, step)
    elif isinstance(step, Binarise):
        array, entry = _binarise(state.array, step)
    elif isinstance(step, Crop):
        array, entry = _crop(state.array, step)
    elif isinstance(step, Pad):
        array, entry = _pad(state.array, step)
    else:
        array, entry = _resize(state.array, step)
    return replace(state, array=array), entry


def _reorient(state: _State, step: Reorient) -> tuple[_State, Entry]:
    if state.affine is None:
        return state, {"applied": False, "reason": "the input carries no orientation"}
    from nibabel import orientations

    current = orientations.io_orientation(state.affine)
    if np.isnan(current).any():
        raise UnusableInput("the volume's affine does not give every axis a direction")
    turn = orientations.ornt_transform(current, orientations.axcodes2ornt(tuple(step.axcodes)))
    turned = np.asarray(orientations.apply_orientation(state.array, turn))
    affine = state.affine @ orientations.inv_ornt_aff(turn, state.array.shape)
    spacing = state.spacing
    if spacing is not None:
        into = turn[:, 0].astype(int)  # the axis that each old one becomes
        i, j, k = (spacing[int(np.flatnonzero(into == axis)[0])] for axis in range(3))
        spacing = (i, j, k)
    entry = {"from": "".join(orientations.ornt2axcodes(current)), "to": step.axcodes}
    return _State(turned, affine, spacing), entry


def _resample(state: _State, step: Resample) -> tuple[_State, Entry]:
    """The first voxel's centre stays; positions past the last centre take the last voxel, as ITK's border does."""
    if state.spacing is None:
        raise UnusableInput("this model resamples to a voxel size, and the file does not say which it has")
    if not all(1 / MAX_SPACING < size < MAX_SPACING for size in state.spacing):
        raise UnusableInput(f"the volume's voxels are of {list(state.spacing)} mm, which cannot be resampled")
    shape = tuple(
        max(1, round(size * old / new))
        for size, old, new in zip(state.array.shape, state.spacing, step.spacing, strict=True)
    )
    _check_voxels(shape, max(FREE_VOXELS, MAX_GROWTH * state.array.size))
    positions = [
        np.arange(size) * (new / old) for size, old, new in zip(shape, state.spacing, step.spacing, strict=True)
    ]
    array = _sampled(state.array, positions, step.method)
    entry = {
        "method": step.method,
        "from": list(state.spacing),
        "to": list(step.spacing),
        "shape": list(array.shape),
    }
    return _State(array, state.affine, step.spacing), entry


def _clip(array: npt.NDArray[Any], step: Clip) -> tuple[npt.NDArray[Any], Entry]:
    low, high = step.low, step.high
    if step.of == "percentiles":
        numbers = array.view(np.uint8) if array.dtype == np.bool_ else array  # no percentiles of truths in NumPy
        low, high = (float(bound) for bound in np.percentile(numbers, (low, high)))
    entry = {"of": step.of, "low": low, "high": high}
    numbers = array.astype(np.float64)
    return np.clip(numbers, low, high, out=numbers), entry


def _normalise(array: npt.NDArray[Any], step: Normalise) -> tuple[npt.NDArray[np.float64], Entry]:
    numbers = array.astype(np.float64)
    _refuse_constant(numbers, "the volume is constant after the steps before its normalisation")
    if step.method == "minmax":
        low, high = float(numbers.min()), float(numbers.max())
        numbers -= low
        numbers /= high - low
        return numbers, {"method": step.method, "low": low, "high": high}
    mean = float(numbers.mean()) if step.mean is None else step.mean
    deviation = float(numbers.std()) if step.deviation is None else step.deviation
    numbers -= mean
    numbers /= deviation
    return numbers, {"method": step.method, "mean": mean, "deviation": deviation}


def _binarise(array: npt.NDArray[Any], step: Binarise) -> tuple[npt.NDArray[np.bool_], Entry]:
    if step.intensities == "refuse" and not ((array == array.min()) | (array == array.max())).all():
        raise UnusableInput("this model takes masks of two values; the volume has more, as intensities do")
    mask = array > step.threshold
    _refuse_constant(mask, f"no two voxels lie on either side of {step.threshold:g}: the mask is empty, or full")
    return mask, {"threshold": step.threshold}


def _crop(array: npt.NDArray[Any], step: Crop) -> tuple[npt.NDArray[Any], Entry]:
    before = list(array.shape)
    for axis, size in enumerate(step.shape):
        start = max(0, array.shape[axis] - size) // 2
        array = array.take(range(start, start + min(size, array.shape[axis])), axis)
    return array, {"from": before, "to": list(array.shape)}


def _pad(array: npt.NDArray[Any], step: Pad) -> tuple[npt.NDArray[Any], Entry]:
    missing = [max(0, size - have) for size, have in zip(step.shape, array.shape, strict=True)]
    _check_voxels([have + more for have, more in zip(array.shape, missing, strict=True)], MAX_VOXELS)
    # NumPy's least type of 0.1 and of 3001.0 is float16, which holds neither.
    whole = step.value.is_integer() and abs(step.value) < 1 << 53
    kind = np.result_type(array, np.min_scalar_type(int(step.value)) if whole else np.float32)
    widths = [(more // 2, more - more // 2) for more in missing]
    padded = np.pad(array.astype(kind), widths, constant_values=step.value)
    return padded, {"from": list(array.shape), "to": list(padded.shape), "value": step.value}


def _resize(array: npt.NDArray[Any], step: Resize) -> tuple[npt.NDArray[Any], Entry]:
    entry = {"method": step.method, "from": list(array.shape), "to": list(step.shape)}
    if step.method == "area":
        return resize_area(array, step), entry
    positions = [
        (np.arange(target) + 0.5) * (source / target) - 0.5
        for source, target in zip(array.shape, step.shape, strict=True)
    ]
    return _sampled(array, positions, step.method), entry


def resize_area(array: npt.NDArray[Any], step: Resize) -> npt.NDArray[np.float64]:
    """Average, for each target voxel, the source voxels by the volume in which they overlap it.

    The overlaps are integers in units of 1 / (source * target) of an axis, and divided only at the end: sums of integer
    voxels are exact, and an integer factor gives the plain mean. One slab at a time, so that a large volume is never
    held in float64 as a whole.

    Raises:
        UnusableInput: an axis is longer than any scanner's.
    """
    if max(array.shape) > MAX_AXIS:
        raise UnusableInput(f"the volume has shape {list(array.shape)}; an axis may have {MAX_AXIS} voxels")
    along_d, along_h, along_w = (
        _overlaps(source, target) for source, target in zip(array.shape, step.shape, strict=True)
    )
    resized = np.empty(step.shape)
    for index, weights in enumerate(along_d):
        slab = np.zeros(array.shape[1:])
        for position in np.flatnonzero(weights):
            slab += weights[position] * array[position]
        resized[index] = along_h @ slab @ along_w.T
    resized /= float(np.prod(array.shape))
    return resized


def _sampled(array: npt.NDArray[Any], positions: list[npt.NDArray[np.float64]], method: str) -> npt.NDArray[Any]:
    """The array at the grid of positions (in voxels, one list an axis), which end at its first and last voxel.

    Linear interpolation in three axes is that in one axis after another. Axes that shrink come first: less is held. It
    gives float32, or float64 where float32 does not hold the array's own numbers; "nearest" keeps these.
    """
    sampled = array
    kind = np.result_type(array, np.float32)
    for axis in sorted(range(3), key=lambda axis: len(positions[axis]) / array.shape[axis]):
        last = array.shape[axis] - 1
        places = positions[axis].clip(0, last)
        if method == "nearest":
            sampled = sampled.take(np.floor(places + 0.5).astype(np.intp), axis)
            continue
        below = np.minimum(np.floor(places).astype(np.intp), max(0, last - 1))
        shape = [1, 1, 1]
        shape[axis] = -1
        part = (places - below).reshape(shape).astype(kind)
        lower = sampled.take(below, axis).astype(kind, copy=False)
        upper = sampled.take(np.minimum(below + 1, last), axis).astype(kind, copy=False)
        del sampled  # two of an axis' arrays at a time
        with np.errstate(over="ignore", invalid="ignore"):  # `preprocess` refuses what comes of it
            upper -= lower
            upper *= part
            lower += upper
        sampled = lower
    return sampled


def _overlaps(source: int, target: int) -> npt.NDArray[np.float64]:
    """(target, source): how far each source voxel reaches into each target voxel, in units of 1 / (source * target)."""
    source_start = np.arange(source) * target
    target_start = np.arange(target)[:, np.newaxis] * source
    start = np.maximum(source_start, target_start)
    end = np.minimum(source_start + target, target_start + source)
    overlaps: npt.NDArray[np.float64] = np.maximum(end - start, 0).astype(np.float64)
    return overlaps


def _check_voxels(shape: tuple[int, ...] | list[int], most: int) -> None:
    most = min(most, MAX_VOXELS)
    if np.prod(np.array(shape, np.float64)) > most:
        raise UnusableInput(f"the volume would have shape {list(shape)}, more than {most} voxels")


def _refuse_constant(array: npt.NDArray[Any], message: str) -> None:
    if array.min() == array.max():
        raise UnusableInput(message)
