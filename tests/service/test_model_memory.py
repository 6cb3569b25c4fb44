"""What a model is said to take of the memory: weights that are mapped, and room that its runs need."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from app.engine.device import Device
from app.engine.runtime import Model
from app.settings import Settings
from tests.service.process import Server

CPU = Device("cpu", "test", 1, (("CPUExecutionProvider", {}),))
MIB = 1 << 20
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")


def loaded(folder: Path, nodes: list[NodeProto], width: int, constants: dict[str, np.ndarray]) -> Model:
    """A model of x (n, width) -> y, loaded a second time: the first compiles, which takes memory once."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    bundle = folder / "m" / "1"
    bundle.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, bundle / "model.onnx")
    settings = Settings(cache_dir=folder / "cache", max_batch=1)
    Model(bundle, CPU, settings)
    return Model(bundle, CPU, settings)


def test_weights_are_mapped(tmp_path: Path) -> None:
    weights = np.ones((2048, 4096), np.float32)
    model = loaded(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], 2048, {"w": weights})
    assert weights.nbytes <= model.memory.mapped < weights.nbytes + MIB
    assert model.memory.anonymous < weights.nbytes // 2


def test_what_a_run_needs_is_anonymous(tmp_path: Path) -> None:
    wide = np.ones((1, 16 * MIB), np.float32)
    nodes = [helper.make_node("Mul", ["x", "w"], ["h"]), helper.make_node("ReduceMax", ["h"], ["y"])]
    model = loaded(tmp_path, nodes, 1, {"w": wide})
    assert model.memory.anonymous >= wide.nbytes


def test_it_is_told(server: Server) -> None:
    page = {family.name: family for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)}
    told = {(s.labels["model"], s.labels["kind"]): s.value for s in page["kronserve_model_memory_bytes"].samples}
    config = httpx.get(f"{server.url}/v2/models/hot-etth1/config").json()
    memory = json.loads(config["parameters"]["memory"]["string_value"])
    assert {kind: told["hot-etth1", kind] for kind in memory} == memory
    assert memory["mapped"] > 0
