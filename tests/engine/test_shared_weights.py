"""A second session of a model must not hold a second copy of its weights."""

from __future__ import annotations

import subprocess
import sys
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


COMPARE = """
import sys
import subprocess
import sys
from pathlib import Path
import numpy as np, onnxruntime as ort
from app.engine import compiled
graph, folder = Path(sys.argv[1]), Path(sys.argv[2])
built = compiled.build(graph, folder)
options = compiled.session_options(1)
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
x = np.random.default_rng(0).random((5, 18, 72), np.float32)
plain, kept = (ort.InferenceSession(path, given) for path, given in ((graph, None), (built, options)))
print(np.abs(plain.run(None, {"x": x})[0] - kept.run(None, {"x": x})[0]).max())
"""


@pytest.mark.parametrize("channels", [16, 18])
def test_weights_of_odd_sizes_do_not_kill_the_process(channels: int, tmp_path: Path):
    """18 kernels of 108 values take 7,776 bytes, so that what follows in the file is off the cache lines; 16 do not.

    In a process of its own, which used to die of it.
    """
    draw = np.random.default_rng(0).standard_normal
    constants = {
        "kernels": draw((channels, 18, 6)).astype(np.float32),
        "first": draw((72, 72)).astype(np.float32),
        "second": draw((72, 72)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernels"], ["mixed"], pads=[2, 3]),
        helper.make_node("MatMul", ["mixed", "first"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 18, 72])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels, 72])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(path), str(tmp_path / "compiled")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4
