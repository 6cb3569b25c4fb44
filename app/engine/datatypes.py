"""Tensor datatypes in their three spellings: ONNX Runtime's, the Open Inference Protocol's, numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.manifest import Datatype

_TYPES: tuple[tuple[str, Datatype, str], ...] = (
    ("bool", "BOOL", "bool"),
    ("uint8", "UINT8", "u1"),
    ("uint16", "UINT16", "<u2"),
    ("uint32", "UINT32", "<u4"),
    ("uint64", "UINT64", "<u8"),
    ("int8", "INT8", "i1"),
    ("int16", "INT16", "<i2"),
    ("int32", "INT32", "<i4"),
    ("int64", "INT64", "<i8"),
    ("float16", "FP16", "<f2"),
    ("float", "FP32", "<f4"),
    ("double", "FP64", "<f8"),
    ("string", "BYTES", "O"),
)

DATATYPES: dict[str, Datatype] = {f"tensor({onnx_name})": datatype for onnx_name, datatype, _ in _TYPES}
"""ONNX Runtime's type names -> the Open Inference Protocol's."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {datatype: np.dtype(numpy_name) for _, datatype, numpy_name in _TYPES}
"""The Open Inference Protocol's datatypes -> numpy's, little-endian."""
