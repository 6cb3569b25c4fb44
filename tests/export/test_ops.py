"""The operators' bodies against attention with the full N x N matrix, in float64."""

from __future__ import annotations

from functools import reduce

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from export import ops

Array = NDArray[np.float64]
GRIDS = {1: (5,), 2: (3, 4), 3: (2, 3, 4), 4: (2, 3, 1, 2)}
HEADS, WIDTH = 2, 4


def _tensors(grid: tuple[int, ...], batch: int) -> dict[str, Array]:
    draw = np.random.default_rng(len(grid)).standard_normal
    tensors = {"value": draw((batch, *grid, HEADS, WIDTH))}
    for mode, size in enumerate(grid, start=1):
        tensors[f"q{mode}"] = draw((batch, size, HEADS, WIDTH))
        tensors[f"k{mode}"] = draw((batch, size, HEADS, WIDTH))
    return tensors


def _full_matrix(name: str, matrices: list[Array]) -> Array:
    """The N x N matrix: the modes' Kronecker product, or the sum of each one's product with identities."""
    if name == "HotProduct":
        return reduce(np.kron, matrices)
    total = np.zeros(2 * (int(np.prod([len(matrix) for matrix in matrices])),))
    for mode in range(len(matrices)):
        factors = [matrix if other == mode else np.eye(len(matrix)) for other, matrix in enumerate(matrices)]
        total += reduce(np.kron, factors)
    return total


def _naive(name: str, tensors: dict[str, Array], grid: tuple[int, ...]) -> Array:
    value = tensors["value"]
    result = np.empty_like(value)
    for sample in range(len(value)):
        for head in range(HEADS):
            matrices = []
            for mode in range(1, len(grid) + 1):
                query, key = tensors[f"q{mode}"][sample, :, head], tensors[f"k{mode}"][sample, :, head]
                scores = np.exp(query @ key.T / np.sqrt(WIDTH))
                matrices.append(scores / scores.sum(axis=1, keepdims=True))
            tokens = value[sample, ..., head, :].reshape(-1, WIDTH)
            result[sample, ..., head, :] = (_full_matrix(name, matrices) @ tokens).reshape(*grid, WIDTH)
    return result


def _model(core: ops.Core, opset: int, element: int) -> onnx.ModelProto:
    """A graph of one node, every dimension dynamic; only a tensor over the grid has more than four axes."""
    order = int(core.name[-1])

    def described(name: str) -> onnx.ValueInfoProto:
        over_grid = name == "result" or name == ("value" if core.name.startswith("Hot") else "query")
        return onnx.helper.make_tensor_value_info(name, element, [None] * (3 + order if over_grid else 4))

    attributes = {"scale": WIDTH**-0.5} if core.scaled else {}
    node = onnx.helper.make_node(core.name, core.inputs, core.outputs, domain=ops.DOMAIN, **attributes)
    graph = onnx.helper.make_graph(
        [node], "one", [described(name) for name in core.inputs], [described(name) for name in core.outputs]
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    ops.attach_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("name", ["HotProduct", "HotSum"])
@pytest.mark.parametrize("order", GRIDS)
def test_body_is_attention_with_the_full_matrix(name: str, order: int) -> None:
    grid, core = GRIDS[order], ops.cores()[f"{name}{order}"]
    for batch in (1, 3):
        tensors = _tensors(grid, batch)
        expected = _naive(name, tensors, grid)
        evaluator = ReferenceEvaluator(_model(core, 20, onnx.TensorProto.DOUBLE))
        np.testing.assert_allclose(evaluator.run(None, tensors)[0], expected, rtol=1e-12, atol=1e-12)
        session = ort.InferenceSession(
            _model(core, 20, onnx.TensorProto.FLOAT).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        single = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        np.testing.assert_allclose(session.run(None, single)[0], expected, rtol=1e-5, atol=1e-6)


def _both_runtimes(core: ops.Core, tensors: dict[str, Array], expected: list[Array]) -> None:
    results = ReferenceEvaluator(_model(core, 20, onnx.TensorProto.DOUBLE)).run(None, tensors)
    session = ort.InferenceSession(
        _model(core, 20, onnx.TensorProto.FLOAT).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    singles = session.run(None, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})
    for result, single, value in zip(results, singles, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(single, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", GRIDS)
def test_kernelised_body_is_the_full_matrix_of_features(order: int) -> None:
    """Five features a vector, another number than the head width."""
    grid = GRIDS[order]
    for batch in (1, 3):
        draw = np.random.default_rng(order)
        tensors = {"value": draw.standard_normal((batch, *grid, HEADS, WIDTH))}
        for mode, size in enumerate(grid, start=1):
            tensors |= {f"{name}{mode}": draw.random((batch, size, HEADS, 5)) + 0.1 for name in "qk"}
        expected = np.empty_like(tensors["value"])
        for sample, head in np.ndindex(batch, HEADS):
            matrices = []
            for mode in range(1, order + 1):
                scores = tensors[f"q{mode}"][sample, :, head] @ tensors[f"k{mode}"][sample, :, head].T
                matrices.append(scores / scores.sum(axis=1, keepdims=True))
            tokens = tensors["value"][sample, ..., head, :].reshape(-1, WIDTH)
            expected[sample, ..., head, :] = (reduce(np.kron, matrices) @ tokens).reshape(*grid, WIDTH)
        _both_runtimes(ops.cores()[f"HotKernelised{order}"], tensors, [expected])


def _attended(query: Array, key: Array, value: Array) -> Array:
    """(b, n, h, e), (b, s, h, e) -> (b, n, h, e), one vector at a time."""
    result = np.empty_like(query)
    for sample, row, head in np.ndindex(query.shape[:3]):
        scores = np.exp(key[sample, :, head] @ query[sample, row, head] / np.sqrt(WIDTH))
        result[sample, row, head] = scores / scores.sum() @ value[sample, :, head]
    return result


@pytest.mark.parametrize("order", GRIDS)
def test_kao_bodies_attend_to_the_means(order: int) -> None:
    grid = GRIDS[order]
    for batch in (1, 3):
        draw = np.random.default_rng(order).standard_normal
        means = {name: draw((batch, sum(grid), HEADS, WIDTH)) for name in ("key", "value")}
        query = draw((batch, *grid, HEADS, WIDTH))
        tokens = query.reshape(batch, -1, HEADS, WIDTH)
        expected = _attended(tokens, means["key"], means["value"]).reshape(query.shape)
        _both_runtimes(ops.cores()[f"KaoKv{order}"], {"query": query, **means}, [expected])
        queries = {f"q{mode}": draw((batch, size, HEADS, WIDTH)) for mode, size in enumerate(grid, start=1)}
        parts = [_attended(part, means["key"], means["value"]) for part in queries.values()]
        _both_runtimes(ops.cores()[f"KaoQkv{order}"], {**queries, **means}, parts)


@pytest.mark.parametrize("core", ops.cores().values(), ids=ops.cores().keys())
def test_schema_and_function_have_one_signature(core: ops.Core) -> None:
    schema, function = core.schema(), core.function(20)
    assert [parameter.name for parameter in schema.inputs] == list(function.input)
    assert [parameter.name for parameter in schema.outputs] == list(function.output)
    assert list(schema.attributes) == list(function.attribute) == (["scale"] if core.scaled else [])
    assert all(attribute.required for attribute in schema.attributes.values())
    assert (schema.name, schema.domain) == (function.name, function.domain)


def test_functions_follow_the_opset_of_their_model_and_are_attached_once() -> None:
    model = _model(ops.cores()["HotSum3"], 22, onnx.TensorProto.FLOAT)
    ops.attach_functions(model)
    assert [(function.name, function.opset_import[0].version) for function in model.functions] == [("HotSum3", 22)]
