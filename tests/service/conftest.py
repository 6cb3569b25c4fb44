"""One real server for the tests of this folder, on the shipped bundles and one bare ONNX model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.manifests import rewrite_manifest
from tests.service.process import Server, serving
from tests.tiny_models import write_offset_model


def write_add_model(folder: Path) -> None:
    """A bare model.onnx: c = a + b over [batch, 3], and a scalar-free second output, with no manifest."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        "add",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 3]) for name in ("a", "b")],
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 3]) for name in ("sum", "difference")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def write_identity_model(folder: Path, types: Mapping[str, TensorProto.DataType], columns: int) -> None:
    """Each input [batch, columns] is the output of its name with _out."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in types],
        "identity",
        [helper.make_tensor_value_info(name, kind, ["batch", columns]) for name, kind in types.items()],
        [helper.make_tensor_value_info(f"{name}_out", kind, ["batch", columns]) for name, kind in types.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


KINDS = {"half": TensorProto.FLOAT16, "flag": TensorProto.BOOL, "text": TensorProto.STRING}
"""What JSON treats in a way of its own; `half` can travel only in binary."""

NUMBERS = {
    **{f"UINT{bits}": getattr(TensorProto, f"UINT{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": getattr(TensorProto, f"INT{bits}") for bits in (8, 16, 32, 64)},
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}
"""Datatypes of numbers that JSON and binary can carry, each the name of an input."""


def write_log_model(folder: Path) -> None:
    """y = log x over [batch, 3]: NaN below 0, minus infinity at 0."""
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"])],
        "log",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


@pytest.fixture(scope="session")
def mixed_repository(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundles beside bare models and a bundle with one byte changed."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(repository, root, dirs_exist_ok=True)
    write_add_model(root / "add" / "1")
    write_identity_model(root / "kinds" / "1", KINDS, 2)
    write_identity_model(root / "numbers" / "1", NUMBERS, 3)
    write_log_model(root / "log" / "1")
    write_offset_model(root / "offset" / "1", 1)
    broken = root / "broken" / "1"
    shutil.copytree(repository / "hot-etth1" / "1", broken)
    rewrite_manifest(broken, name="broken")
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-100] ^= 1
    (broken / "weights.safetensors").write_bytes(weights)
    return root


@pytest.fixture(scope="session")
def server(mixed_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(mixed_repository, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    """A request for hot-etth1, [3, 5, 96]."""
    return np.random.default_rng(0).normal(size=(3, 5, 96)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(repository: Path, series: np.ndarray) -> np.ndarray:
    """What bare ONNX Runtime answers to it."""
    session = ort.InferenceSession(repository / "hot-etth1/1/model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["forecast"], {"series": series})[0]
