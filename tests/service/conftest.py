"""One real server for the tests of this folder, on the shipped bundles and one bare ONNX model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

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


def write_kinds_model(folder: Path) -> None:
    """Every kind of datatype that JSON treats in its own way, passed through; `half` can travel only in binary."""
    kinds = {"half": TensorProto.FLOAT16, "flag": TensorProto.BOOL, "text": TensorProto.STRING}
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        "kinds",
        [helper.make_tensor_value_info(name, kind, ["batch", 2]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info(f"{name}_out", kind, ["batch", 2]) for name, kind in kinds.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


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
    write_kinds_model(root / "kinds" / "1")
    write_log_model(root / "log" / "1")
    write_offset_model(root / "offset" / "1", 1)
    broken = root / "broken" / "1"
    shutil.copytree(repository / "hot-etth1" / "1", broken)
    manifest = (broken / "manifest.json").read_text().replace('"hot-etth1"', '"broken"', 1)
    (broken / "manifest.json").write_text(manifest)
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-100] ^= 1
    (broken / "weights.safetensors").write_bytes(weights)
    return root


@pytest.fixture(scope="session")
def server(mixed_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(mixed_repository, tmp_path_factory.mktemp("server") / "log") as running:
        yield running
