"""Graphs of fewer bits: half precision, or int8 weights with activations quantised as they come.

Both touch the projections alone, the Gemm nodes that read a whole weight matrix. Normalisation, softmax, position
tables, the attention cores, the first convolution and what undoes a forecaster's normalisation stay in float32.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnxscript import ir

Array = NDArray[np.generic]
State = dict[str, Array]

_LIMIT = 127
_POINTWISE = frozenset({"Sigmoid", "Mul", "Relu", "Reshape"})


def projections(graph: ir.Graph, state: State) -> dict[str, ir.Node]:
    """The Gemm nodes that read a weight as it is stored, by the weight's name; one that is read twice is left out."""
    found: dict[str, ir.Node] = {}
    for node in graph:
        weight = node.inputs[1] if node.op_type == "Gemm" and node.domain == "" else None
        if weight is None or weight.name not in state or len(list(weight.uses())) != 1:
            continue
        if node.attributes.get_int("transB", 0) == 1 and node.attributes.get_int("transA", 0) == 0:
            found[weight.name] = node
    return found


def to_int8(model: ir.Model, state: State, keep: Collection[str] = ()) -> State:
    """Quantise the projections of `model` in place, but for the weights in `keep`; the tensors that it reads then.

    y = x W^T + b becomes s_x s_j (x_q - z_x) W_q[:, j] + b_j: W_q in int8 with a scale s_j for every output channel,
    x_q in uint8 with one scale and zero point from the least and largest value at hand (DynamicQuantizeLinear).
    """
    graph, state = model.graph, dict(state)
    quantised: dict[ir.Value, ir.Node] = {}
    zero = _initializer(graph, "int8.zero", np.int8(0))
    for name, node in projections(graph, state).items():
        if name in keep:
            continue
        weight = state.pop(name).astype(np.float32)
        scales = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / _LIMIT
        state[f"{name}.int8"] = np.ascontiguousarray(np.rint(weight / scales[:, None]).astype(np.int8).T)
        state[f"{name}.scale"] = scales.astype(np.float32)
        x, out = node.inputs[0], node.outputs[0]
        assert x is not None
        if x not in quantised:
            quantised[x] = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            graph.insert_before(node, quantised[x])
        x_int8, x_scale, x_zero = quantised[x].outputs
        matrix = _initializer(graph, f"{name}.int8", state[f"{name}.int8"])
        channel = _initializer(graph, f"{name}.scale", state[f"{name}.scale"])
        product = ir.node("MatMulInteger", [x_int8, matrix, x_zero, zero])
        single = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT})
        scale = ir.node("Mul", [x_scale, channel])
        scaled = ir.node("Mul", [single.outputs[0], scale.outputs[0]])
        graph.insert_before(node, [product, single, scale, scaled])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            scaled = ir.node("Add", [scaled.outputs[0], bias])
            graph.insert_before(node, scaled)
        _replace(graph, node, out, scaled.outputs[0])
    return _finish(model, state)


def to_half(model: ir.Model, state: State, keep: Collection[str] = ()) -> State:
    """Let the projections of `model` and what is pointwise between them run in float16, in place.

    Returns the tensors that it reads then: those weights and biases in float16, the rest as it was.
    """
    graph, state = model.graph, dict(state)
    wide: dict[ir.Value, ir.Value] = {}  # a float32 value -> the half that it was cast from
    for name, node in projections(graph, state).items():
        if name in keep or not np.isfinite(state[name].astype(np.float16)).all():
            continue
        x, bias = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and bias.name not in state:
            continue
        assert x is not None
        half = ir.node("Cast", [x], {"to": ir.DataType.FLOAT16})
        graph.insert_before(node, half)
        node.replace_input_with(0, half.outputs[0])
        for index, value in ((1, node.inputs[1]), (2, bias)):
            if value is not None:
                assert value.name is not None
                state[f"{value.name}.half"] = state[value.name].astype(np.float16)
                node.replace_input_with(index, _initializer(graph, f"{value.name}.half", state[f"{value.name}.half"]))
        _widen(graph, node, wide)
    for node in list(graph):
        data = node.inputs[:1] if node.op_type == "Reshape" else node.inputs
        if node.op_type in _POINTWISE and node.domain == "" and all(value in wide for value in data):
            for index, value in enumerate(data):
                assert value is not None
                node.replace_input_with(index, wide[value])
            _widen(graph, node, wide)
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source in wide and node.attributes["to"].as_int() == ir.DataType.FLOAT16:
            assert source is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], wide[source])
    return _finish(model, state)


def _widen(graph: ir.Graph, node: ir.Node, wide: dict[ir.Value, ir.Value]) -> None:
    """Give what reads the node's output, now a half, a float32 again."""
    half = node.outputs[0]
    cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
    single = cast.outputs[0]
    single.shape, single.type = half.shape, half.type
    half.type = ir.TensorType(ir.DataType.FLOAT16)
    _hand_over(graph, half, single)
    cast.replace_input_with(0, half)
    graph.insert_after(node, cast)
    wide[single] = half


def _hand_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let readers of `old` read `new`; a graph output keeps its name."""
    if old.is_graph_output():
        graph.outputs[graph.outputs.index(old)] = new
        old.name, new.name = f"{old.name}.narrow", old.name
    ir.convenience.replace_all_uses_with(old, new)


def _replace(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    new.shape, new.type = old.shape, old.type
    _hand_over(graph, old, new)
    graph.remove(node, safe=True)


def _initializer(graph: ir.Graph, name: str, array: Array | np.generic) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _finish(model: ir.Model, state: State) -> State:
    passes.RemoveUnusedNodesPass()(model)
    passes.NameFixPass()(model)
    return {name: array for name, array in state.items() if name in model.graph.initializers}
