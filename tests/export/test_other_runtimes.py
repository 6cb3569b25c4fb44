"""The same files in runtimes that know nothing of Kronserve."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.bundle import Request, export_bundle
from export.checkpoint import read_checkpoint
from export.inputs import cases
from export.verification import verify_bundle
from tests.export.conftest import Exported
from tests.manifests import rewrite_manifest


@pytest.fixture(scope="module", params=["forecaster-product", "classifier-sum"])
def inline(
    request: pytest.FixtureRequest, exports: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Exported, Path]:
    """A bundle and the graph of the same checkpoint exported with --inline."""
    exported = exports(request.param)
    target = Request("flat", "1", tmp_path_factory.mktemp("flat"), inline=True)
    folder, _ = export_bundle(read_checkpoint(exported.folder), target)
    return exported, folder / "model.onnx"


def test_an_inline_graph_is_standard_onnx_alone(inline: tuple[Exported, Path]) -> None:
    exported, path = inline
    model = onnx.load(path, load_external_data=False)
    assert not model.functions
    assert [entry.domain for entry in model.opset_import] == [""]
    assert not any(node.domain for node in model.graph.node)
    given = list(
        cases(exported.manifest.inputs[0], [(2, *(7 if n < 0 else n for n in exported.manifest.inputs[0].shape[1:]))])
    )
    sessions = [ort.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (path, exported.graph)]
    for case in given:
        flat, own = (session.run(None, {exported.manifest.inputs[0].name: case.input})[0] for session in sessions)
        np.testing.assert_array_equal(flat, own)


def test_openvino_gives_the_same_answers(inline: tuple[Exported, Path]) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed for this Python")
    exported, path = inline
    spec = exported.manifest.inputs[0]
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1})
    session = ort.InferenceSession(exported.graph, providers=["CPUExecutionProvider"])
    for batch, size in ((1, 7), (7, 21), (33, 1)):
        shape = (batch, *(size if n < 0 else n for n in spec.shape[1:]))
        x = next(cases(spec, [shape])).input
        answer, expected = compiled(x)[0], session.run(None, {spec.name: x})[0]
        assert answer.shape == expected.shape
        assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["hot-etth1", "hot-adrenal"])
def test_shipped_bundles_verify(repository: Path, name: str) -> None:
    """Files, graphs in two runtimes, every shape of the grid, and PyTorch's recorded answers."""
    checks = verify_bundle(repository / name / "1")
    assert [check for check in checks if not check.passed] == []
    assert "6 recorded in float64" in checks[-1].detail


def test_a_recorded_answer_that_is_not_the_graphs_fails(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    parity = exported.manifest.parity.model_dump(mode="json")
    parity["answers"][0]["values"][3] += 1e-3
    rewrite_manifest(folder, parity=parity)
    assert [check.name for check in verify_bundle(folder) if not check.passed] == ["PyTorch's answers"]
    parity["answers"][0]["input_crc32"] += 1  # another NumPy's numbers say nothing
    rewrite_manifest(folder, parity=parity)
    assert "not compared" in verify_bundle(folder)[-1].detail


def test_verifying_writes_nothing_into_the_bundle(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    """Whose folder may be read-only, or watched by a service."""
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    os.utime(folder, (1, 1))
    assert [check for check in verify_bundle(folder) if not check.passed] == []
    assert folder.stat().st_mtime == 1  # a file that comes and goes would set it


def test_files_that_nobody_listed_are_named(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    (folder / "notes.txt").write_text("")
    failed = [check for check in verify_bundle(folder) if not check.passed]
    assert [(check.name, check.detail) for check in failed] == [("other files", "not in the manifest: notes.txt")]
