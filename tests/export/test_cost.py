"""The cost that `kronserve inspect` states, against torch's own counter and sums done by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from export.cost import cost, cost_of_one_row
from export.graph_checks import GraphError
from tests.export.conftest import Exported


def test_flops_and_weights_are_torchs(exported: Exported) -> None:
    found = cost_of_one_row(exported.folder, exported.manifest)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        exported.module(torch.zeros(found.shape))
    assert found.flops == counter.get_total_flops() > 0
    stored = sum(value.numel() * value.element_size() for value in exported.module.state_dict().values())
    assert stored <= found.weights_bytes <= stored + 2000  # and the folded constants


def test_activations_are_what_is_alive_at_once(tmp_path: Path) -> None:
    """x [2, 3] @ w [3, 5] -> a; relu(a) -> b; a + b -> y: a and b are alive together, and y beside them."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.ones((3, 5), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    found = cost(tmp_path / "model.onnx", (2, 3))
    assert (found.flops, found.weights_bytes, found.activations_bytes) == (2 * 2 * 3 * 5, 3 * 5 * 4, 3 * 2 * 5 * 4)
    with pytest.raises(GraphError, match="does not run on"):
        cost(tmp_path / "model.onnx", (2, 4))
