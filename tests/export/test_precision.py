"""Fewer bits: what is computed, what is stored, and that the task's metric decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file

from app.manifest import Manifest
from export.bundle import Request, export_bundle
from export.checkpoint import ExportError, read_checkpoint
from export.reduce import Reduction, loss_percent, metrics_of
from tests.export.conftest import CONFIGS, Exported, write_checkpoint

Writer = Callable[[str], Path]


def _answers(folder: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def _inputs(exported: Exported) -> np.ndarray:
    shape = [3, *(5 if size < 0 else size for size in exported.manifest.inputs[0].shape[1:])]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Judge:
    """The mean error against the float32 bundle's own answers, as a metric whose value in float32 is `offset`."""

    def __init__(self, exported: Exported, offset: float) -> None:
        self.x, self.exact, self.offset = _inputs(exported), _answers(exported.folder, _inputs(exported)), offset
        self.found: list[float] = []

    def __call__(self, folder: Path) -> dict[str, Any]:
        assert Manifest.model_validate_json((folder / "manifest.json").read_bytes()).task is not None
        self.found.append(self.offset + float(np.abs(_answers(folder, self.x) - self.exact).mean()))
        return {
            "dataset": "made up",
            "split": "val",
            "values": {"average": {"mse": self.found[-1], "mae": self.offset}},
        }


def _reduced(exported: Exported, kind: Any, judge: Judge, percent: float, root: Path) -> tuple[Path, Manifest]:
    source = read_checkpoint(exported.folder)
    return export_bundle(source, Request("less", "1", root, reduction=Reduction(kind, judge, percent)))


@pytest.mark.parametrize("kind", ["forecaster-sum", "classifier-sum"])
def test_int8_weights_have_a_scale_for_every_channel(
    exports: Callable[[str], Exported], kind: str, tmp_path: Path
) -> None:
    exported, judge = exports(kind), Judge(exports(kind), 1.0)
    folder, manifest = _reduced(exported, "int8", judge, 50, tmp_path)
    full, less = load_file(exported.folder / "weights.safetensors"), load_file(folder / "weights.safetensors")
    depth = exported.config.depth
    quantised = [name.removesuffix(".int8") for name in less if name.endswith(".int8")]
    # Value, output and the three of SwiGLU in every block, and the head; queries and keys are slices of a weight.
    assert len(quantised) == 5 * depth + 1
    for name in quantised:
        assert name not in less
        assert less[f"{name}.int8"].dtype == np.int8
        restored = (less[f"{name}.int8"] * less[f"{name}.scale"]).T
        half_a_step = np.abs(full[name]).max(axis=1, keepdims=True) / 127 / 2
        assert (np.abs(restored - full[name]) <= half_a_step * 1.001).all()
    operators = Counter(node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node)
    assert operators["MatMulInteger"] == len(quantised)
    assert operators["DynamicQuantizeLinear"] < len(quantised), "what reads the same activations shares them"
    assert (folder / "weights.safetensors").stat().st_size < (exported.folder / "weights.safetensors").stat().st_size
    assert manifest.serving.max_batch == 1
    assert manifest.precision.kind == "int8"
    assert manifest.precision.full == {"mse": 1.0, "mae": 1.0}
    assert manifest.precision.reduced["mse"] == pytest.approx(judge.found[-1])
    assert manifest.precision.loss_percent == pytest.approx(100 * (judge.found[-1] - 1.0))
    assert 0 < manifest.precision.loss_percent < 50
    assert manifest.parity.tolerance == 0.1 > manifest.parity.worst.error > 1e-4
    with pytest.raises(ExportError, match="weights in int8"):
        read_checkpoint(folder)


def test_layers_that_hurt_stay_in_float32(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = exports("forecaster-sum")
    everything = Judge(exported, 1.0)
    whole = _reduced(exported, "int8", everything, 50, tmp_path / "all")[1]
    assert whole.precision.kept == ()
    assert whole.precision.loss_percent is not None
    bound = whole.precision.loss_percent * 0.7
    judge = Judge(exported, 1.0)
    folder, manifest = _reduced(exported, "int8", judge, bound, tmp_path / "some")
    assert manifest.precision.kept
    assert manifest.precision.loss_percent is not None
    assert manifest.precision.loss_percent <= bound
    less = load_file(folder / "weights.safetensors")
    for name in manifest.precision.kept:
        assert less[name].dtype == np.float32
        assert f"{name}.int8" not in less
    assert any(name.endswith(".int8") for name in less)
    assert judge.found[0] == 1.0, "float32 is judged first"


def test_above_the_bound_nothing_is_written(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = exports("forecaster-sum")
    with pytest.raises(ExportError, match=r"int8 costs .* % of the validation metric, above the 0 %"):
        _reduced(exported, "int8", Judge(exported, 1e-6), 0, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("kind", ["forecaster-sum", "classifier-sum"])
def test_half_precision_keeps_normalisation_and_softmax_in_float32(
    exports: Callable[[str], Exported], kind: str, tmp_path: Path
) -> None:
    exported = exports(kind)
    folder, manifest = _reduced(exported, "fp16", Judge(exported, 1.0), 5, tmp_path)
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "model.onnx"), data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    halves, singles = Counter[str](), Counter[str]()
    for node in model.graph.node:
        if node.op_type != "Cast":
            kinds = {types.get(name) for name in (*node.input, *node.output)}
            (halves if onnx.TensorProto.FLOAT16 in kinds else singles)[node.op_type] += 1
    assert halves["Gemm"] == 5 * exported.config.depth + 1
    assert halves["Mul"] >= exported.config.depth, "SwiGLU stays between its projections in half"
    assert not halves.keys() & {"LayerNormalization", "HotSum2", "HotSum3", "ReduceMean", "Conv", "Div"}
    assert singles["LayerNormalization"]
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert manifest.serving.max_batch is None
    assert manifest.parity.worst.error < 1e-2
    x = _inputs(exported)
    assert np.abs(_answers(folder, x) - _answers(exported.folder, x)).max() > 0


def test_the_metrics_that_count() -> None:
    series = {"96": {"mse": 9.0, "mae": 9.0}, "average": {"mse": 2.0, "mae": 1.0}}
    worse = {"average": {"mse": 2.02, "mae": 1.001}}
    assert loss_percent(metrics_of(series), metrics_of(worse)) == pytest.approx(1.0)
    assert loss_percent(metrics_of({"auc": 0.8, "acc": 0.9}), metrics_of({"auc": 0.796})) == pytest.approx(0.5)
    assert loss_percent(metrics_of({"auc": 0.8}), metrics_of({"auc": 0.81})) < 0


def test_options_that_do_not_go_together(checkpoint: Writer, tmp_path: Path) -> None:
    source = read_checkpoint(write_checkpoint(tmp_path / "c", CONFIGS["forecaster-sum"]))
    reduction = Reduction("int8", lambda _: {}, 0.5)
    for options in ({"explain": True}, {"inline": True}):
        with pytest.raises(ExportError, match="leave them out with --precision"):
            export_bundle(source, Request("m", "1", tmp_path / "r", reduction=reduction, **options))
