"""Bare graphs: which may share batches, and at which sizes they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.engine.device import Device
from app.engine.runtime import Model
from app.settings import Settings

CPU = Device("cpu", "test", 2, (("CPUExecutionProvider", {}),))


def bare(folder: Path, nodes: list, inputs: dict, outputs: dict, constants: list = ()) -> Path:  # type: ignore[assignment]
    def values(described: dict) -> list:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in described.items()]

    graph = helper.make_graph(nodes, "bare", values(inputs), values(outputs), list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder


FLOAT, INT, TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
AXES = helper.make_tensor("axes", INT, [1], [0])


def graph(kind: str, folder: Path) -> Path:
    match kind:
        case "row by row":
            return bare(
                folder, [helper.make_node("Exp", ["x"], ["y"])], {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])}
            )
        case "strings row by row":
            return bare(
                folder, [helper.make_node("Identity", ["x"], ["y"])], {"x": (TEXT, ["n", 2])}, {"y": (TEXT, ["n", 2])}
            )
        case "mean over the batch":
            nodes = [
                helper.make_node("ReduceMean", ["x", "axes"], ["m"]),
                helper.make_node("Sub", ["x", "m"], ["y"]),
            ]
            return bare(folder, nodes, {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])}, [AXES])
        case "as many rows as non-zeros":
            nodes = [helper.make_node("NonZero", ["x"], ["z"]), helper.make_node("Transpose", ["z"], ["y"])]
            return bare(folder, nodes, {"x": (FLOAT, ["n", 3])}, {"y": (INT, ["m", 2])})
        case "axes of different names":
            nodes = [helper.make_node("Identity", ["x"], ["y"])]
            return bare(folder, nodes, {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["k", 3])})
        case "convolution over any size":
            weight = helper.make_tensor("w", FLOAT, [1, 1, 3, 3], [1.0] * 9)
            nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
            return bare(folder, nodes, {"x": (FLOAT, ["n", 1, "h", "w"])}, {"y": (FLOAT, ["n", 1, "a", "b"])}, [weight])
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "batched"),
    [
        ("row by row", True),
        ("strings row by row", True),
        ("mean over the batch", False),
        ("as many rows as non-zeros", False),
        ("axes of different names", False),
        ("convolution over any size", True),
    ],
)
def test_only_graphs_with_independent_rows_are_batched(tmp_path: Path, kind: str, batched: bool):
    model = Model(graph(kind, tmp_path / "m" / "1"), CPU, Settings(cache_dir=tmp_path / "cache", plan_seconds=0.05))
    assert model.batched is batched
    assert batched or model.plan.source == "not batched"


def test_convolution_runs_at_the_callers_size(tmp_path: Path):
    folder = graph("convolution over any size", tmp_path / "m" / "1")
    model = Model(folder, CPU, Settings(cache_dir=tmp_path / "cache", plan_seconds=0.05))
    (answer,) = model.run({"x": np.ones((2, 1, 5, 7), np.float32)}, ["y"], alone=False)
    np.testing.assert_array_equal(answer, np.full((2, 1, 3, 5), 9.0))
