"""The tensor task: named arrays checked against a model's signature. Protocol-neutral; no decoding here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite

import numpy as np

from app.engine.datatypes import NUMPY_TYPES
from app.engine.runtime import Model
from app.errors import InvalidRequest
from app.manifest import TensorSpec

VERY_FEW, FEW = 1 << 13, 1 << 16
"""Elements up to which BLAS multiplies in one thread, and up to which a mask costs less than summing with the warnings
of overflow turned off."""

SHOWN_NAME = 80
"""Characters of a stranger's name that a message repeats."""


def check_inputs(model: Model, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors in the model's order, or InvalidRequest naming the input at fault.

    Every input exactly once, each of the declared datatype, rank and fixed sizes, one batch size over all; floats must
    be finite, BYTES must be UTF-8 text: ONNX has no other strings.
    """
    for name in tensors:
        if name not in model.input_specs:
            raise unexpected_input(model, name)
    checked: dict[str, np.ndarray] = {}
    rows: int | None = None
    for name, spec in model.input_specs.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise InvalidRequest(f"input {name!r} is missing", field=name)
        if tensor.dtype != NUMPY_TYPES[spec.datatype]:
            raise InvalidRequest(f"input {name!r} must be {spec.datatype}", field=name)
        _check_shape(model, spec, tensor)
        if model.batched:
            if rows is not None and tensor.shape[0] != rows:
                raise InvalidRequest(f"input {name!r} has {tensor.shape[0]} rows, another has {rows}", field=name)
            rows = tensor.shape[0]
        if tensor.dtype.kind == "f" and not _finite(tensor):
            raise InvalidRequest(f"input {name!r} holds NaN or infinity", field=name)
        if tensor.dtype.kind == "O":
            tensor = _decoded(tensor, name)
        checked[name] = tensor
    return checked


def check_outputs(model: Model, names: Iterable[str]) -> tuple[str, ...]:
    """The requested output names, or the ordinary ones when none is named; InvalidRequest for an unknown one."""
    requested = tuple(dict.fromkeys(names))
    for name in requested:
        if name not in model.output_names:
            raise unknown_output(model, name)
    return requested or model.ordinary_outputs


def unexpected_input(model: Model, name: str) -> InvalidRequest:
    """For a name that is none of the model's inputs."""
    shown = name[:SHOWN_NAME]
    return InvalidRequest(f"unexpected input {shown!r}; {model.name} takes {', '.join(model.input_specs)}", field=shown)


def unknown_output(model: Model, name: str) -> InvalidRequest:
    """For a name that is none of the model's outputs."""
    shown = name[:SHOWN_NAME]
    return InvalidRequest(f"unknown output {shown!r}; {model.name} gives {', '.join(model.output_names)}", field=shown)


def _check_shape(model: Model, spec: TensorSpec, tensor: np.ndarray) -> None:
    max_axis = model.max_axis
    expected, actual = spec.shape, tensor.shape
    fits = len(expected) == len(actual)
    for size, given in zip(expected, actual, strict=False):
        fits = fits and size in (-1, given)
    # A graph of unknown making may take an empty axis; the tasks that manifests speak of have no use for one.
    if not fits or (model.manifest is not None and 0 in actual[1:]):
        raise InvalidRequest(
            f"input {spec.name!r} must have shape {list(expected)}, got {list(actual)}", field=spec.name
        )
    # Rows without elements cost their sender nothing, and no queue could reckon with them.
    if 0 in actual[1:] and actual[0] > max_axis:
        raise InvalidRequest(
            f"input {spec.name!r} has shape {list(actual)}: beside an empty axis the first may have at most {max_axis}",
            field=spec.name,
        )
    # Attention over an axis costs its square, so a small body could ask for all of the memory.
    if max(actual[1:], default=0) > max_axis and any(
        size == -1 and given > max_axis for size, given in zip(expected[1:], actual[1:], strict=True)
    ):
        raise InvalidRequest(
            f"input {spec.name!r} has shape {list(actual)}; a dynamic axis may have at most {max_axis}", field=spec.name
        )


def _decoded(tensor: np.ndarray, name: str) -> np.ndarray:
    """Strings for bytes, which ONNX Runtime would take for their Python spelling."""
    texts = np.empty(tensor.shape, dtype=object)
    try:
        for at, value in np.ndenumerate(tensor):
            texts[at] = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {name!r} holds bytes that are not UTF-8 text", field=name) from error
    return texts


def _finite(tensor: np.ndarray) -> bool:
    """Whether every value is finite. Of many, a finite sum proves it in one pass and without a mask in memory.

    Of few, a finite sum of squares does: with caches that are cold from a model's run, what counts is how much of numpy
    that goes through.
    """
    if tensor.size <= VERY_FEW and isfinite(_sum_of_squares(tensor)):
        return True
    if tensor.size <= FEW:
        return bool(np.isfinite(tensor).all())
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(tensor.sum())) or bool(np.isfinite(tensor).all())


@np.errstate(over="ignore")
def _sum_of_squares(tensor: np.ndarray) -> float:
    flat = tensor.reshape(-1)
    return float(flat.dot(flat))
