"""A second session of a model must not hold a second copy of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.engine.device import Device
from app.engine.sessions import Sessions
from app.settings import Settings

CPU = Device("cpu", "test", 2, (("CPUExecutionProvider", {}),))
WIDTH = 4096
WEIGHTS_MIB = WIDTH * WIDTH * 4 >> 20


def anonymous_mib() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_wide_session_maps_the_narrow_ones_weights(tmp_path: Path):
    weights = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(weights, "w")],
    )
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )
    settings = Settings(cache_dir=tmp_path / "cache")
    Sessions(folder, CPU, settings)  # compiles, which takes memory once
    before = anonymous_mib()
    sessions = Sessions(folder, CPU, settings)
    x = np.ones((1, WIDTH), np.float32)
    (narrow,) = sessions.narrow.run(None, {"x": x})
    (wide,) = sessions.wide(2).run(None, {"x": x})
    assert sessions.shared
    assert anonymous_mib() - before < WEIGHTS_MIB // 2
    np.testing.assert_allclose(wide, narrow, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(narrow, x @ weights, rtol=1e-3, atol=1e-2)
