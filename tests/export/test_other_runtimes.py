"""The same files in runtimes that know nothing of Kronserve."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from app.integrity import BrokenBundle, read_manifest
from export.bundle import Request, export_bundle
from export.bundle_cli import verify
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


def test_a_recorded_answer_that_is_not_the_graphs_fails(
    exports: Callable[[str], Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    parity = exported.manifest.parity.model_dump(mode="json")
    parity["answers"][0]["values"][3] += 1e-3
    rewrite_manifest(folder, parity=parity)
    assert [check.name for check in verify_bundle(folder) if check.failed] == ["PyTorch's answers"]
    parity["answers"][0]["input_crc32"] += 1  # another NumPy's numbers say nothing
    rewrite_manifest(folder, parity=parity)
    last = verify_bundle(folder)[-1]
    assert last.passed is None
    assert "not compared" in last.detail
    rewrite_manifest(folder, parity={**parity, "answers": []})
    assert verify([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("skipped  PyTorch's answers")


def test_a_recorded_nan_passes_nothing(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    parity = exported.manifest.parity.model_dump(mode="json")
    parity["cases"][0]["exact"] = parity["answers"][0]["values"][3] = float("nan")
    rewrite_manifest(folder, parity=parity)
    assert [check.name for check in verify_bundle(folder) if check.failed] == ["export's proof", "PyTorch's answers"]


def test_verifying_writes_nothing_into_the_bundle(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    """Whose folder may be read-only, or watched by a service."""
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    os.utime(folder, (1, 1))
    assert [check for check in verify_bundle(folder) if not check.passed] == []
    assert folder.stat().st_mtime == 1  # a file that comes and goes would set it


@pytest.mark.parametrize("place", ["branch", "function"])
def test_a_weight_outside_the_listed_files_is_found_wherever_the_graph_has_it(
    exports: Callable[[str], Exported], tmp_path: Path, place: str
) -> None:
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    branch = helper.make_graph([helper.make_node("Identity", ["shift"], ["chosen"])], "branch", [], [])
    branch.output.add(name="chosen").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    shift = branch.initializer.add(name="shift", data_type=onnx.TensorProto.FLOAT, dims=[1])
    shift.data_location = onnx.TensorProto.EXTERNAL
    shift.external_data.add(key="location", value="hidden.bin")
    choice = helper.make_node("If", ["always"], ["shifted"], then_branch=branch, else_branch=branch)
    always = helper.make_node("Constant", [], ["always"], value=numpy_helper.from_array(np.array(True)))
    holder = model.graph if place == "branch" else model.functions[0]
    holder.node.extend([always, choice])
    onnx.save(model, folder / "model.onnx")
    graph = (folder / "model.onnx").read_bytes()
    files = exported.manifest.model_dump(mode="json")["files"]
    files["model.onnx"] = {"sha256": hashlib.sha256(graph).hexdigest(), "size": len(graph)}
    rewrite_manifest(folder, files=files)
    failed = [(check.name, check.detail) for check in verify_bundle(folder) if check.failed]
    assert failed == [("model.onnx: weights", "in files the manifest does not list: hidden.bin")]
    (folder / "hidden.bin").write_bytes(bytes(4))
    ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(
        BrokenBundle, match=r"model\.onnx names the file hidden\.bin, which manifest\.json does not list"
    ):
        read_manifest(folder)


def test_files_that_nobody_listed_are_named(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = exports("forecaster-sum")
    folder = Path(shutil.copytree(exported.folder, tmp_path / exported.folder.parent.name / exported.folder.name))
    (folder / "notes.txt").write_text("")
    failed = [check for check in verify_bundle(folder) if not check.passed]
    assert [(check.name, check.detail) for check in failed] == [("other files", "not in the manifest: notes.txt")]
