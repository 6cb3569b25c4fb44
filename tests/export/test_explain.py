"""Bundles that can explain themselves: explain.onnx gives the attention matrices, model.onnx is as without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from app.manifest import Manifest
from export import ops
from export.bundle import Request, export_bundle
from export.checkpoint import ExportError, load_module, read_checkpoint
from export.explain import explained
from export.verify import ParityError, measure
from models.config import build
from tests.explained import EXPLAINED, reference, sample, write_explained
from tests.export.conftest import CONFIGS, write_checkpoint

KINDS = list(EXPLAINED)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("explained"), dict[str, Path]()
    return lambda kind: made[kind] if kind in made else made.setdefault(kind, write_explained(root, kind))


def _manifest(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "manifest.json").read_bytes())


def _operators(graph: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_equal_the_papers_equations(bundle: Callable[[str], Path], kind: str) -> None:
    folder, x = bundle(kind), sample(kind, 3)
    session = ort.InferenceSession(folder / "explain.onnx", providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    found = dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))
    expected = reference(folder, kind, x)
    assert names[1:] == list(expected)
    for name, matrices in expected.items():
        np.testing.assert_allclose(found[name], matrices, rtol=0, atol=2e-6)
        np.testing.assert_allclose(found[name].sum(axis=-1), 1, rtol=0, atol=2e-6)
        # Far enough from each other that a mix-up of blocks, modes or heads would show.
        assert np.abs(matrices - 1 / matrices.shape[-1]).max() > 1e-3
    plain = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (ordinary,) = plain.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found[names[0]], ordinary, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ordinary_graph_is_as_without_explain(bundle: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    folder = bundle(kind)
    plain, manifest = export_bundle(read_checkpoint(folder), Request(kind, "1", tmp_path, explain=False))
    assert (plain / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    assert not (plain / "explain.onnx").exists()
    assert manifest.explain_parity is None
    # Queries and keys are computed once for the core and the matrix; what is added is the matrix itself.
    config, modes = EXPLAINED[kind], 2 if kind == "forecaster" else 3
    matrices = config.depth * modes
    added = {"Transpose": 2 * matrices, "MatMul": matrices, "Mul": matrices, "Softmax": matrices}
    assert _operators(folder / "explain.onnx") - _operators(folder / "model.onnx") == added
    graph = onnx.load(folder / "explain.onnx", load_external_data=False).graph
    assert len([node for node in graph.node if node.domain == ops.DOMAIN]) == config.depth
    external = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert {tensor.name for tensor in external} == build(config).state_dict().keys()
    assert (folder / "explain.onnx").stat().st_size < 60_000


def test_manifest_lists_them_on_request(bundle: Callable[[str], Path]) -> None:
    manifest = _manifest(bundle("forecaster"))
    assert [(spec.name, spec.on_request) for spec in manifest.outputs] == [
        ("forecast", False),
        *((f"attention.{block}.{mode}", True) for block in (0, 1) for mode in (0, 1)),
    ]
    variates, patches = manifest.outputs[1:3]
    assert (variates.axes, variates.shape) == (("batch", "head", "variate", "variate"), (-1, 2, -1, -1))
    assert (patches.axes, patches.shape) == (("batch", "head", "patch", "patch"), (-1, 2, 6, 6))
    assert manifest.files.keys() == {"model.onnx", "explain.onnx", "weights.safetensors"}
    parity = manifest.explain_parity
    assert parity is not None
    assert {case.shape for case in parity.cases} == {case.shape for case in manifest.parity.cases}
    assert all(case.output for case in parity.cases)
    assert all(case.relative <= (case.allowed or parity.tolerance) for case in parity.cases)
    assert parity.worst.relative > 0


def test_exporting_again_keeps_them(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    folder, manifest = export_bundle(read_checkpoint(bundle("forecaster")), Request("again", "2", tmp_path))
    assert (folder / "explain.onnx").read_bytes() == (bundle("forecaster") / "explain.onnx").read_bytes()
    assert manifest.outputs == _manifest(bundle("forecaster")).outputs


def test_a_wrong_matrix_fails_the_parity(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    """The last block's matrices differ while the graph that gives the forecast is not looked at."""
    folder = bundle("forecaster")
    module = load_module(read_checkpoint(folder))
    model = onnx.load(folder / "explain.onnx")
    # An order of variates that is not theirs: the matrix's last Softmax along the wrong axis.
    producers = {output: node for node in model.graph.node for output in node.output}
    (axis,) = producers["attention.1.0"].attribute
    axis.i = 2
    onnx.save(model, tmp_path / "explain.onnx")
    with explained(module), pytest.raises(ParityError, match=r"output attention\.1\.0"):
        measure(tmp_path / "explain.onnx", module, _manifest(folder).inputs[0], 1e-5)


def test_hooks_end_with_the_block(bundle: Callable[[str], Path]) -> None:
    import torch

    module, x = load_module(read_checkpoint(bundle("forecaster"))), torch.from_numpy(sample("forecaster", 2))
    with torch.no_grad():
        before = module(x)
        with explained(module):
            results = module(x)
            assert [len(module(x)), len(results)] == [5, 5]
        assert torch.equal(module(x), before)
        assert torch.equal(results[0], before)


def test_full_attention_has_nothing_to_explain(tmp_path: Path) -> None:
    config = replace(CONFIGS["forecaster-sum"], attention="full")
    source = read_checkpoint(write_checkpoint(tmp_path / "checkpoint", config))
    with pytest.raises(ExportError, match="no mode attentions"):
        export_bundle(source, Request("full", "1", tmp_path / "repository", explain=True))
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("fault", ["order", "first", "file", "input"])
def test_manifests_that_contradict_themselves_are_refused(bundle: Callable[[str], Path], fault: str) -> None:
    values = _manifest(bundle("forecaster")).model_dump(mode="json")
    if fault == "order":
        values["outputs"][2]["on_request"] = False
    elif fault == "first":
        values["outputs"][0]["on_request"] = True
    elif fault == "file":
        del values["files"]["explain.onnx"]
    else:
        values["inputs"][0]["on_request"] = True
    with pytest.raises(ValidationError, match="on request"):
        Manifest.model_validate(values)
