"""The classification extension: a tensor's largest values with their index and label.

Specification: triton-inference-server/server, "Classification extension".
"""

from __future__ import annotations

from math import prod

import numpy as np

from app.engine.runtime import Model
from app.errors import InvalidRequest
from app.manifest import TensorClassification, VolumeClassification


def top_classes(model: Model, name: str, tensor: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest values of each row as "value:index" or "value:index:label", largest first.

    Equal ones come in the order of their index, NaN last; a value is written so that it reads back the same. A row is
    everything past the batch axis, or the whole tensor of a model without one; a shorter row gives all it has. Shape
    (rows, count) or (count,), of bytes. Raises InvalidRequest for an output that has no order.
    """
    if tensor.dtype.kind not in "iuf":
        raise InvalidRequest(f"output {name!r} is not of numbers, which classification needs", field=name)
    rows = tensor.reshape(len(tensor), prod(tensor.shape[1:])) if model.batched else tensor.reshape(1, -1)
    labels = _labels(model, name, rows.shape[1])
    # Integers of 64 bits have no exact negative or float: the stable order of the mirrored row, mirrored back.
    order = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    if tensor.dtype.kind == "f":  # NaN sorts as the largest, and is the least of classes
        missing = np.isnan(np.take_along_axis(rows, order, axis=1))
        order = np.take_along_axis(order, np.argsort(missing, axis=1, kind="stable"), axis=1)
    best = order[:, :count]
    texts = np.empty(best.shape, dtype=object)
    for at, index in np.ndenumerate(best):
        label = f":{labels[index]}" if labels else ""
        texts[at] = f"{rows[at[0], index]}:{index}{label}".encode()
    return texts if model.batched else texts[0]


def _labels(model: Model, name: str, size: int) -> tuple[str, ...]:
    """The manifest's labels when this output is the classifier's own, one value a label."""
    task = None if model.manifest is None else model.manifest.task
    if not isinstance(task, VolumeClassification | TensorClassification) or name != model.output_names[0]:
        return ()
    return task.labels if size == len(task.labels) else ()
