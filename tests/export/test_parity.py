"""The bundle computes what the module computes, in two ONNX runtimes, at every batch size and number of variates."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.bundle import Request, export_bundle
from export.checkpoint import read_checkpoint
from export.inputs import cases
from export.verify import ParityError, measure
from models.config import ForecasterConfig
from tests.export.conftest import Exported


def _inputs(exported: Exported, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    if isinstance(exported.config, ForecasterConfig):
        lookback = exported.config.lookback
        return [torch.randn(batch, variates, lookback, generator=generator) for variates in (1, 7, 21)]
    return [torch.rand(batch, 1, *exported.config.volume, generator=generator)]


def _relative(output: np.ndarray, reference: np.ndarray) -> float:
    assert output.shape == reference.shape
    return float(np.abs(output - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
def test_onnx_runtime_agrees_with_the_module(exported: Exported, batch: int) -> None:
    session = ort.InferenceSession(exported.graph, providers=["CPUExecutionProvider"])
    exact = deepcopy(exported.module).double()
    for x in _inputs(exported, batch):
        with torch.no_grad():
            reference = exact(x.double()).numpy()
        output = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert output.dtype == np.float32
        assert _relative(output, reference) < 5e-6


def test_reference_evaluator_agrees_with_onnx_runtime(exported: Exported) -> None:
    evaluator = ReferenceEvaluator(onnx.load(exported.graph))
    session = ort.InferenceSession(exported.graph, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for x in _inputs(exported, 2):
        expected = session.run(None, {name: x.numpy()})[0]
        assert _relative(evaluator.run(None, {name: x.numpy()})[0], expected) < 5e-6


def test_rows_of_a_batch_do_not_see_each_other(exported: Exported) -> None:
    session = ort.InferenceSession(exported.graph, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for x in _inputs(exported, 7):
        together = session.run(None, {name: x.numpy()})[0]
        for row in range(7):
            alone = session.run(None, {name: x[row : row + 1].numpy()})[0]
            assert _relative(together[row : row + 1], alone) < 5e-6


def test_manifest_states_the_measured_parity(exported: Exported) -> None:
    parity = exported.manifest.parity
    assert [(case.shape, case.inputs) for case in parity.cases] == [
        (case.input.shape, case.kind) for case in cases(exported.manifest.inputs[0])
    ]
    assert 0 < parity.worst.relative <= parity.tolerance == 1e-5
    assert all(case.exact is not None and case.exact <= parity.tolerance for case in parity.cases)
    # Both sides are about as far from float64 as from each other: the difference is float32's rounding.
    assert parity.rounding.keys() == {"pytorch", "onnxruntime"}
    assert all(0 < distance < 1e-5 for distance in parity.rounding.values())
    assert parity.worst.relative <= sum(parity.rounding.values()) * 1.01
    assert len(exported.manifest.checks) == 6
    assert all(check.passed for check in exported.manifest.checks)


def test_opset_23_passes_the_same_proof(exported: Exported, tmp_path: Path) -> None:
    """Whatever fails, at any shape or on any inputs, would raise."""
    folder, manifest = export_bundle(read_checkpoint(exported.folder), Request("m", "1", tmp_path, opset=23))
    assert {entry.domain: entry.version for entry in onnx.load(folder / "model.onnx").opset_import}[""] == 23
    assert manifest.parity.worst.error <= 1e-5
    assert [(case.shape, case.inputs) for case in manifest.parity.cases] == [
        (case.shape, case.inputs) for case in exported.manifest.parity.cases
    ]


def test_a_slightly_wrong_weight_fails(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(exported.graph.read_bytes())
    weights = load_file(exported.folder / "weights.safetensors")
    weights["blocks.0.mlp.w2.weight"] *= 1.001
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ParityError, match=r"above the tolerance 1e-05 for .* inputs of shape \("):
        measure(tmp_path / "model.onnx", exported.module, exported.manifest.inputs[0], 1e-5)
