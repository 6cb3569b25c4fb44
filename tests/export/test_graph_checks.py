"""Each check of a graph, on a small graph that fails it and on one that passes all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from app.manifest import TensorSpec
from export.checkpoint import ExportError
from export.graph_checks import GraphError, check_graph, distance, open_session
from export.inputs import BATCHES, LARGEST_INPUT, SIZES, cases, shapes
from export.verify import prove_graph

SERIES = TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 4), axes=("batch", "variate", "lookback"))
RESULT = TensorSpec(name="y", datatype="FP32", shape=(-1, -1, 4), axes=("batch", "variate", "horizon"))


def _graph(path: Path, nodes: Sequence[NodeProto], domains: Sequence[str] = ("",)) -> Path:
    """y = f(x) over [batch, variate, 4]."""
    graph = helper.make_graph(
        nodes,
        "checked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "variate", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "variate", 4])],
    )
    imports = [helper.make_opsetid(domain, 1 if domain else 20) for domain in domains]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def _failed(path: Path, output: TensorSpec = RESULT) -> list[str]:
    return [check.name for check in check_graph(path, (SERIES,), (output,), 1e-6) if not check.passed]


def test_a_sound_graph_passes_every_check(tmp_path: Path) -> None:
    path = _graph(tmp_path / "model.onnx", [helper.make_node("Neg", ["x"], ["y"])])
    checks = check_graph(path, (SERIES,), (RESULT,), 1e-6)
    assert all(check.passed for check in checks)
    assert [check.name for check in checks] == [
        "onnx.checker",
        "signature",
        "inlined graph",
        "reference evaluator",
        "determinism",
        "independent rows",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("check", "nodes"),
    [
        (
            "determinism",
            [helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["y"])],
        ),
        (
            "independent rows",
            [
                helper.make_node("Constant", [], ["axes"], value_ints=[0]),
                helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
                helper.make_node("Sub", ["x", "mean"], ["y"]),
            ],
        ),
        ("onnx.checker", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)]),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, check: str, nodes: list[NodeProto]) -> None:
    assert check in _failed(_graph(tmp_path / "model.onnx", nodes))


def test_a_declaration_that_is_not_the_graphs_is_found(tmp_path: Path) -> None:
    path = _graph(tmp_path / "model.onnx", [helper.make_node("Neg", ["x"], ["y"])])
    assert _failed(path, RESULT.model_copy(update={"shape": (-1, -1, 5)})) == ["signature"]
    assert _failed(path, RESULT.model_copy(update={"name": "z"})) == ["signature"]


def test_a_runtimes_own_operator_is_no_standard_graph(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]
    assert "reference evaluator" in _failed(_graph(tmp_path / "model.onnx", nodes, ("", "com.microsoft")))


def test_a_wrong_function_body_is_found_beside_the_reference(tmp_path: Path) -> None:
    """The body that runtimes without a kernel run is what every check runs."""
    path = _graph(tmp_path / "model.onnx", [helper.make_node("Twice", ["x"], ["y"], domain="own")], ("", "own"))
    model = onnx.load(path)
    for body, failed in (("y = Add(x, x)", []), ("d = ReduceMax(x)  y = Sub(x, d)", ["independent rows"])):
        function = onnx.parser.parse_function(f'<domain: "own", opset_import: ["" : 20]> Twice (x) => (y) {{ {body} }}')
        del model.functions[:]
        model.functions.append(function)
        onnx.save(model, path)
        assert _failed(path) == failed


def test_an_unknown_operator_is_refused_with_its_name(tmp_path: Path) -> None:
    path = _graph(tmp_path / "model.onnx", [helper.make_node("Oracle", ["x"], ["y"], domain="own")], ("", "own"))
    with pytest.raises(GraphError, match="own:Oracle"):
        open_session(path)
    with pytest.raises(ExportError, match=r"own:Oracle.*nothing was written"):
        prove_graph(path, (SERIES,), (RESULT,), 1e-6)


def test_a_failed_check_ends_the_proof(tmp_path: Path) -> None:
    path = _graph(tmp_path / "model.onnx", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)])
    with pytest.raises(ExportError, match=r"model\.onnx failed onnx\.checker: .*; nothing was written"):
        prove_graph(path, (SERIES,), (RESULT,), 1e-6)


def test_a_graph_that_fails_at_a_shape_ends_the_proof(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["fifth"], value_ints=[5]),
        helper.make_node("Gather", ["x", "fifth"], ["variate"], axis=1),
        helper.make_node("Add", ["x", "variate"], ["y"]),
    ]
    with pytest.raises(
        ExportError, match=r"^ONNX Runtime fails on random inputs of shape \[2, 1, 4\]: .*; nothing was"
    ):
        prove_graph(_graph(tmp_path / "model.onnx", nodes), (SERIES,), (RESULT,), 1e-6)


def test_what_is_not_finite_is_infinitely_far() -> None:
    one = np.ones(2, np.float32)
    for value in (np.nan, np.inf):
        other = np.array([1, value], np.float32)
        for pair in ((one, other), (other, one), (other, other)):
            assert distance(*pair) == (np.inf, np.inf)


def test_the_grid_meets_every_batch_and_size() -> None:
    found = shapes(SERIES)
    assert {shape[0] for shape in found} == set(BATCHES) == {1, 2, 7, 33}
    assert {shape[1] for shape in found} == set(SIZES) == {1, 7, 21, 321}
    assert {shape[2] for shape in found} == {4}
    volume = TensorSpec(name="v", datatype="FP32", shape=(-1, 1, 2, 3, 4), axes=("batch", "channel", "d", "h", "w"))
    assert shapes(volume) == [(batch, 1, 2, 3, 4) for batch in BATCHES]


@pytest.mark.parametrize(("side", "batches"), [(32, BATCHES), (64, (1, 2, 7)), (128, (1, 2)), (512, (1, 2))])
def test_large_samples_are_met_in_fewer_rows(side: int, batches: tuple[int, ...]) -> None:
    axes = ("batch", "channel", "depth", "height", "width")
    volume = TensorSpec(name="v", datatype="FP32", shape=(-1, 1, side, side, side), axes=axes)
    assert shapes(volume) == [(batch, 1, side, side, side) for batch in batches]
    series = SERIES.model_copy(update={"shape": (-1, -1, LARGEST_INPUT)})
    assert shapes(series) == [(1, 1, LARGEST_INPUT), (2, 1, LARGEST_INPUT)]


def test_inputs_are_the_same_every_time_and_what_their_names_say() -> None:
    shape = (2, 7, 4)
    first, again = ({case.kind: case.input for case in cases(SERIES, [shape])} for _ in range(2))
    assert all(np.array_equal(first[kind], again[kind]) for kind in first)
    assert all(array.dtype == np.float32 and array.shape == shape for array in first.values())
    assert not first["zero"].any()
    assert np.ptp(first["constant"], axis=-1).max() == 0 < np.ptp(first["constant"])
    np.testing.assert_allclose(first["scaled by 1e6"], first["random"] * 1e6, rtol=1e-6)
    np.testing.assert_allclose(first["scaled by 1e-6"], first["random"] * 1e-6, rtol=1e-6)
    assert first["random walk"].min() > 50
