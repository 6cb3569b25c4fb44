"""What a graph without a manifest does not say: sizes that it accepts, and whether its rows can share a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from app.engine.datatypes import NUMPY_TYPES
from app.manifest import TensorSpec

Tensors = dict[str, np.ndarray]
Run = Callable[[Tensors], Sequence[np.ndarray]]

SIZES = (1, 16, 64, 224)
"""Tried for dynamic axes past the batch, smallest first: a convolution wants more than one cell."""

ROWS = 3


def working_size(run: Run, example: Callable[[int], Tensors]) -> int | None:
    """The first of `SIZES` for which `example(size)` runs; None if it runs with none of them."""
    for size in SIZES:
        try:
            run(example(size))
        except Exception:  # noqa: S112  (whatever it is, this size is not it)
            continue
        return size
    return None


def rows_are_independent(run: Run, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], size: int) -> bool:
    """Whether the first axis is a batch: one name on every input and output, and each row's result its own.

    Tried with random rows, together against one by one; a graph that looks across its rows (a mean over the batch, a
    count of non-zeros) would mix strangers' data if their requests shared a run.
    """
    names = {spec.axes[0] if spec.axes and spec.shape[0] == -1 else "" for spec in (*inputs, *outputs)}
    if len(names) != 1 or names == {""}:
        return False
    rng = np.random.default_rng(0)
    rows = {spec.name: _random(rng, spec, size) for spec in inputs}
    try:
        whole = run(rows)
        single = [run({name: tensor[row : row + 1] for name, tensor in rows.items()}) for row in range(ROWS)]
    except Exception:  # a graph that refuses these rows is not batched; it may still serve
        return False
    for index, together in enumerate(whole):
        apart = [result[index] for result in single]
        if together.shape[:1] != (ROWS,) or any(part.shape != (1, *together.shape[1:]) for part in apart):
            return False
        joined = np.concatenate(apart)
        if together.dtype.kind == "f":
            if not np.allclose(together, joined, rtol=1e-3, atol=1e-4, equal_nan=True):
                return False
        elif not np.array_equal(together, joined):
            return False
    return True


def _random(rng: np.random.Generator, spec: TensorSpec, size: int) -> np.ndarray:
    shape = (ROWS, *(size if axis < 0 else axis for axis in spec.shape[1:]))
    if spec.datatype == "BYTES":
        return rng.choice(np.array(["a", "b", ""], dtype=object), shape)
    dtype = NUMPY_TYPES[spec.datatype]
    values = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
    return values.astype(dtype)
