"""Bare ONNX models that load in milliseconds and whose answers tell which of them gave it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_offset_model(folder: Path, offset: float, *, weights: int = 0) -> None:
    """NAME/VERSION with y = x + offset over [batch, 3]; visible by one rename.

    weights: floats of ballast, of which each row reads one, so that no optimiser can do without them.
    """
    ballast = np.arange(max(3, weights), dtype=np.float32)
    nodes = [
        helper.make_node("ArgMax", ["x"], ["largest"], axis=1, keepdims=1),
        helper.make_node("Gather", ["ballast", "largest"], ["read"]),
        helper.make_node("Mul", ["read", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "offset"], ["shifted"]),
        helper.make_node("Add", ["shifted", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "offset",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(ballast, "ballast"),
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.float32(offset), "offset"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    partial = folder.with_name(f".{folder.name}-partial")
    partial.mkdir(parents=True)
    onnx.save(model, partial / "model.onnx")
    os.rename(partial, folder)


IDENTITY_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def write_identity_model(folder: Path, datatype: str, width: int | str = 3) -> None:
    """NAME/VERSION with y = x over [batch, width] of a datatype of the Open Inference Protocol."""
    kind = IDENTITY_TYPES[datatype]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", kind, ["batch", width])],
        [helper.make_tensor_value_info("y", kind, ["batch", width])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def write_lookup_model(folder: Path, size: int) -> None:
    """NAME/VERSION with y = x and half = FP16 of x, x = the index looked up among 0 to size-1; others make it fail."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "index"], ["y"]),
            helper.make_node("Cast", ["y"], ["half"], to=TensorProto.FLOAT16),
        ],
        "lookup",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["batch", 2])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["batch", 2]),
        ],
        [numpy_helper.from_array(np.arange(size, dtype=np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def write_argmax_model(folder: Path) -> None:
    """NAME/VERSION with y = argmax of x over [batch, width], which an empty row does not have."""
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
        "argmax",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
