"""The safetensors file as ONNX external data: initializers that point at the tensors where they lie.

A safetensors file is an 8-byte little-endian header length, a JSON header, and the tensors as raw little-endian bytes
at the offsets that the header gives, counted from its end (github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxscript import ir

from export.checkpoint import ExportError

_DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "I16": ir.DataType.INT16,
    "I8": ir.DataType.INT8,
    "U8": ir.DataType.UINT8,
    "BOOL": ir.DataType.BOOL,
}
_TORCH_DTYPES = frozenset(str(dtype.numpy()) for dtype in _DTYPES.values())
"""The same as PyTorch calls them."""
EXPORTED = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
"""Those that a network may have: it is exported in float32, and only a bundle of fewer bits holds half precision."""


@dataclass(frozen=True)
class Stored:
    """One tensor of the file: bytes [offset, offset + length) from the file's start."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int
    length: int


def check_dtype(path: Path, name: str, dtype: str) -> None:
    """ExportError for a tensor of a datatype, as safetensors or PyTorch calls it, that no bundle holds."""
    if dtype not in _DTYPES and dtype.removeprefix("torch.") not in _TORCH_DTYPES:
        raise ExportError(f"{path}: the tensor {name} is {dtype}; what can be exported is {', '.join(EXPORTED)}")


def layout(path: Path) -> dict[str, Stored]:
    """Where each tensor of a safetensors file lies.

    ExportError: the file is not one, is cut short, or has a tensor of a datatype that no bundle holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8 or (length := struct.unpack("<Q", prefix)[0]) > size - 8:
            raise ExportError(f"{path} is not a safetensors file: its header is longer than the file")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            for name, entry in entries.items():
                check_dtype(path, name, entry["dtype"])
            return {name: _stored(entry, 8 + length, size) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{path} is not a safetensors file: {error}") from error


def _stored(entry: dict[str, Any], start: int, size: int) -> Stored:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= size - start:
        raise ValueError(f"data_offsets {begin}, {end} lie outside the file")
    return Stored(_DTYPES[entry["dtype"]], tuple(entry["shape"]), start + begin, end - begin)


def refer_to(model: ir.Model, path: Path) -> None:
    """Let every initializer of `model` that is a tensor of the file `path` be read from there.

    The reference holds the file's name alone, so the two files must lie in one folder. Other initializers stay inline.
    """
    for name, stored in layout(path).items():
        value = model.graph.initializers.get(name)
        if value is None:
            continue
        value.const_value = ir.ExternalTensor(
            path.name,
            stored.offset,
            stored.length,
            stored.dtype,
            shape=ir.Shape(stored.shape),
            name=name,
            base_dir=path.parent,
        )
