"""The volume classification task: a manifest's preprocessing, and logits to labelled probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import InferenceFailed
from app.manifest import VolumeClassification
from app.readers.volume import Volume
from app.tasks.preprocessing import preprocess

NOTICE = "research use only"


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tensors for the graph, {input: float32 (1, 1, D, H, W)}, and what the answer repeats about the input."""

    tensors: Mapping[str, npt.NDArray[np.float32]]
    labels: tuple[str, ...]
    temperature: float
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


def prepare(volume: Volume, spec: VolumeClassification, *, input_name: str = "volume") -> Prepared:
    """Preprocess a volume to the tensor `input_name`; raises UnusableInput as `preprocess` does."""
    tensor, applied = preprocess(volume, spec)
    described = {
        "format": volume.format,
        "shape": list(volume.data.shape),
        "spacing": None if volume.spacing is None else list(volume.spacing),
    }
    return Prepared({input_name: tensor[np.newaxis]}, spec.labels, spec.temperature, described, applied)


def probabilities(logits: npt.NDArray[Any], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Softmax over the last axis of logits / temperature, in float64; no logit is too large for it."""
    shifted = (logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)) / temperature
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
    by_label = dict(zip(prepared.labels, probabilities(logits[0], prepared.temperature).tolist(), strict=True))
    index = int(logits[0].argmax())
    label = prepared.labels[index]
    return Classification(index, label, by_label[label], by_label, prepared.input, prepared.preprocessing)
