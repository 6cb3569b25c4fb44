"""Bundles whose answers are known in closed form, so that their figures can be worked out by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.manifest import (
    Binarise,
    File,
    Forecasting,
    Manifest,
    Parity,
    ParityCase,
    Provenance,
    Reorient,
    Resize,
    TensorSpec,
    VolumeClassification,
)

LOOKBACK, HORIZON = 96, 720


def _write(
    folder: Path, graph: onnx.GraphProto, task: Forecasting | VolumeClassification, training: dict[str, Any]
) -> Path:
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        dims = value.type.tensor_type.shape.dim
        return TensorSpec(name=value.name, datatype="FP32", shape=tuple(dim.dim_value or -1 for dim in dims))

    manifest = Manifest(
        name=folder.parent.name,
        version=folder.name,
        task=task,
        inputs=tuple(spec(value) for value in graph.input),
        outputs=tuple(spec(value) for value in graph.output),
        provenance=Provenance(
            config={}, weights_sha256="", training=training, versions={}, opset=20, created="2026-01-01T00:00:00Z"
        ),
        parity=Parity(tolerance=0.0, cases=(ParityCase(shape=(1,), absolute=0.0, relative=0.0),)),
        files={"model.onnx": File(sha256=hashlib.sha256(content).hexdigest(), size=len(content))},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def last_value(folder: Path, dataset: str | None = "etth1", horizon: int = HORIZON, **training: Any) -> Path:
    """A forecaster that repeats the window's last value 720 times, or as often as the horizon says."""
    matrix = np.zeros((LOOKBACK, horizon), np.float32)
    matrix[-1] = 1
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "repeat"], ["forecast"])],
        "last-value",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "variates", LOOKBACK])],
        [helper.make_tensor_value_info("forecast", TensorProto.FLOAT, ["batch", "variates", horizon])],
        [numpy_helper.from_array(matrix, "repeat")],
    )
    if dataset is not None:
        training["dataset"] = dataset
    return _write(folder, graph, Forecasting(lookback=LOOKBACK, horizon=horizon), training)


def mask_size(folder: Path, side: int = 32, **training: Any) -> Path:
    """A classifier whose logits are (0, 40 x filled share of the volume - 1)."""
    weight = np.zeros((side**3, 2), np.float32)
    weight[:, 1] = 40 / side**3
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["voxels"], axis=1),
            helper.make_node("Gemm", ["voxels", "weight", "bias"], ["logits"]),
        ],
        "mask-size",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, side, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32([0, -1]), "bias")],
    )
    task = VolumeClassification(
        labels=("normal", "hyperplasia"), preprocessing=(Reorient(), Binarise(), Resize(shape=(side, side, side)))
    )
    return _write(folder, graph, task, {"dataset": "adrenalmnist3d", **training})
