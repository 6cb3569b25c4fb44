"""Short ways to a volume and through a manifest's steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from app.manifest import VolumeClassification
from app.readers.volume import Volume, spacing_of
from app.tasks import preprocessing


def spec(*steps: Any, **fields: Any) -> VolumeClassification:
    return VolumeClassification(labels=("normal", "other", "third"), preprocessing=steps, **fields)


def volume(array: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None, **fields: Any) -> Volume:
    return Volume(array, "npy", None if affine is None else spacing_of(affine), affine, **fields)


def run(array: npt.NDArray[Any], *steps: Any, affine: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float32]:
    """What a manifest of these steps makes of an array."""
    return preprocessing.preprocess(volume(array, affine), spec(*steps))[0][0]
