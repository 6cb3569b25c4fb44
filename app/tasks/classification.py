"""The volume classification task: a manifest's preprocessing, and logits to labelled probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import InferenceFailed, UnusableInput
from app.manifest import Binarise, Reorient, Resize, VolumeClassification
from app.readers.volumes import Volume

NOTICE = "research use only"

MAX_AXIS = 4096
"""Voxels along one axis that are resized; the weights take memory with its length, whatever the volume's size."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tensors for the graph, {input: float32 (1, 1, D, H, W)}, and what the answer repeats about the input."""

    tensors: Mapping[str, npt.NDArray[np.float32]]
    labels: tuple[str, ...]
    input: dict[str, Any]
    preprocessing: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Classification:
    """The most probable label, all the probabilities by label, and how the input was read."""

    index: int
    label: str
    probability: float
    probabilities: dict[str, float]
    input: dict[str, Any]
    preprocessing: list[dict[str, Any]]


def preprocess(
    array: npt.NDArray[Any], spec: VolumeClassification, affine: npt.NDArray[np.float64] | None = None
) -> tuple[npt.NDArray[np.float32], list[dict[str, Any]]]:
    """Run the manifest's steps on a volume (i, j, k) and say which were applied, and how.

    Returns the volume as float32 (1, D, H, W) and one entry a step.
    """
    applied: list[dict[str, Any]] = []
    for step in spec.preprocessing:
        if isinstance(step, Reorient):
            array, entry = _reorient(array, affine, step)
        elif isinstance(step, Binarise):
            array, entry = array > step.threshold, {"op": step.op, "threshold": step.threshold}
        else:
            entry = {"op": step.op, "method": step.method, "from": list(array.shape), "to": list(step.shape)}
            array = resize_area(array, step)
        applied.append(entry)
    with np.errstate(over="ignore"):
        volume = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(volume).all():
        raise UnusableInput("the volume holds values past the range of float32")
    return volume[np.newaxis], applied


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


def prepare(volume: Volume, spec: VolumeClassification, *, input_name: str = "volume") -> Prepared:
    """Preprocess a volume to the tensor `input_name`; raises UnusableInput as `preprocess` does."""
    tensor, applied = preprocess(volume.data, spec, volume.affine)
    described = {
        "format": volume.format,
        "shape": list(volume.data.shape),
        "spacing": None if volume.spacing is None else list(volume.spacing),
    }
    return Prepared({input_name: tensor[np.newaxis]}, spec.labels, described, applied)


def probabilities(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in float64; no logit is too large for it."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def finish(prepared: Prepared, outputs: Mapping[str, npt.NDArray[np.generic]]) -> Classification:
    """The classification from the graph's one output, logits (1, labels).

    Raises:
        InferenceFailed: the graph gave NaN or infinity.
    """
    (logits,) = outputs.values()
    if not np.isfinite(logits).all():
        raise InferenceFailed("the model's logits are not finite")
    by_label = dict(zip(prepared.labels, probabilities(logits[0]).tolist(), strict=True))
    index = int(logits[0].argmax())
    label = prepared.labels[index]
    return Classification(index, label, by_label[label], by_label, prepared.input, prepared.preprocessing)


def _reorient(
    array: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None, step: Reorient
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    if affine is None:
        return array, {"op": step.op, "applied": False, "reason": "the input carries no orientation"}
    from nibabel import orientations

    current = orientations.io_orientation(affine)
    if np.isnan(current).any():
        raise UnusableInput("the volume's affine does not give every axis a direction")
    wanted = orientations.axcodes2ornt(tuple(step.axcodes))
    turned = orientations.apply_orientation(array, orientations.ornt_transform(current, wanted))
    return np.asarray(turned), {
        "op": step.op,
        "from": "".join(orientations.ornt2axcodes(current)),
        "to": step.axcodes,
    }


def _overlaps(source: int, target: int) -> npt.NDArray[np.float64]:
    """(target, source): how far each source voxel reaches into each target voxel, in units of 1 / (source * target)."""
    source_start = np.arange(source) * target
    target_start = np.arange(target)[:, np.newaxis] * source
    start = np.maximum(source_start, target_start)
    end = np.minimum(source_start + target, target_start + source)
    overlaps: npt.NDArray[np.float64] = np.maximum(end - start, 0).astype(np.float64)
    return overlaps
