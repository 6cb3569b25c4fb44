"""The inputs that a bundle is proven on: ordinary and extreme, at every shape of a grid; the same ones every time.

Made from the manifest's description of the input alone, so any model and any side of the comparison can have them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from app.manifest import TensorSpec

BATCHES = (1, 2, 7, 33)
SIZES = (1, 7, 21, 321)
"""Of every other dynamic axis, as the number of variates."""
LARGEST = 700
"""Of the dynamic axes' product: 33 rows and 321 variates are met, but not both at once."""
LARGEST_INPUT = 2**22
"""Values of one input: large volumes and images are met in fewer rows, down to two."""


@dataclass(frozen=True)
class Case:
    """One input and what it is made of."""

    kind: str
    input: NDArray[np.float32]


def shapes(spec: TensorSpec) -> list[tuple[int, ...]]:
    """Every shape of the grid, smallest first: fixed axes as they are, the dynamic ones over BATCHES and SIZES.

    One and two rows of one variate are always there, however large a sample is.
    """
    ranges = [(size,) if size >= 0 else SIZES if axis else BATCHES for axis, size in enumerate(spec.shape)]
    found = []
    for shape in product(*ranges):
        samples = prod(size for size, known in zip(shape, spec.shape, strict=True) if known < 0)
        if samples <= 2 or (samples <= LARGEST and prod(shape) <= LARGEST_INPUT):
            found.append(shape)
    return sorted(found, key=prod)


def cases(spec: TensorSpec, wanted: list[tuple[int, ...]] | None = None) -> Iterator[Case]:
    """The inputs at every shape of the grid, or at the `wanted` ones.

    Each case has one scale, so that an error is measured against the outputs it belongs to. Series are noise, random
    walks far from zero, constant and zero series, and noise in small and large units; grids of voxels or pixels are
    grey values, masks, and empty, full, faint and bright ones.
    """
    series = spec.axes[-1:] == ("lookback",)
    for shape in shapes(spec) if wanted is None else wanted:
        draw = np.random.default_rng(zlib.crc32(repr(shape).encode()))
        values = draw.standard_normal(shape) if series else draw.random(shape)
        made: dict[str, NDArray[np.generic]] = {"random": values}
        if series:
            made["random walk"] = values.cumsum(-1) + 100
            made["constant"] = np.broadcast_to(values[..., :1], shape)
        else:
            made["mask"] = values > 0.7
            made["constant"] = np.ones(shape)
        made["zero"] = np.zeros(shape)
        made["scaled by 1e-6"] = values * 1e-6
        made["scaled by 1e6"] = values * 1e6
        for kind, array in made.items():
            yield Case(kind, np.ascontiguousarray(array, dtype=np.float32))
