"""Rewrites of a traced graph that keep every weight as it is stored and share the work of computing shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import onnx_ir.passes.common as passes
from onnxscript import ir, rewriter
from onnxscript.optimizer import fold_constants_ir

from export.rows import keep_rows


def rename_dimensions(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give symbolic dimensions their public names, inside expressions ("s0*s1") too."""
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")

    def renamed(dim: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int):
            return dim
        return dim.value if dim.value is None else symbol.sub(lambda found: names[found.group()], str(dim.value))

    for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def _share_dimensions(graph: ir.Graph) -> None:
    """Read a dynamic dimension from the graph's input, wherever it was read from.

    Every Reshape behind a projection asks for the shape of its own tensor; asked of the input, all of them are one
    common subexpression.
    """
    source: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                source.setdefault(str(dim.value), (value, axis))
    for node in list(graph):
        tensor = node.inputs[0] if node.op_type == "Shape" and node.domain == "" else None
        if tensor is None or tensor.shape is None or tensor in graph.inputs:
            continue
        start, end = (node.attributes[key].as_int() if key in node.attributes else None for key in ("start", "end"))
        dims = list(tensor.shape)[start:end]
        if not dims or not all(isinstance(dim, int) or str(dim.value) in source for dim in dims):
            continue
        parts: list[ir.Value] = []
        for dim in dims:
            if isinstance(dim, int):
                part = ir.node("Constant", [], {"value_ints": [dim]})
            else:
                value, axis = source[str(dim.value)]
                part = ir.node("Shape", [value], {"start": axis, "end": axis + 1})
            graph.insert_before(node, part)
            parts.append(part.outputs[0])
        shape = ir.node("Concat", parts, {"axis": 0})
        graph.insert_before(node, shape)
        ir.convenience.replace_all_uses_with(node.outputs[0], shape.outputs[0])
        graph.remove(node, safe=True)


def _copies_dimensions(reshape: ir.Node) -> bool:
    """Whether a 0 in the target shape may stand for the source's dimension."""
    if "allowzero" in reshape.attributes and reshape.attributes["allowzero"].as_int():
        return False
    target = ir.convenience.get_const_tensor(reshape.inputs[1]) if reshape.inputs[1] is not None else None
    return target is None or 0 in target.numpy()


def _merge_reshapes(graph: ir.Graph) -> None:
    """Reshape(Reshape(x)) is the second reshape of x; so is Reshape(Squeeze(x)). A Shape reshaped to [-1] is itself."""
    for node in list(graph):
        if node.op_type != "Reshape" or node.inputs[0] is None or _copies_dimensions(node):
            continue
        while (first := node.inputs[0].producer()) is not None and first.op_type in ("Reshape", "Squeeze"):
            node.replace_input_with(0, first.inputs[0])
        target = ir.convenience.get_const_tensor(node.inputs[1])
        if first is not None and first.op_type == "Shape" and target is not None and target.numpy().tolist() == [-1]:
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            graph.remove(node, safe=True)


def simplify(model: ir.Model, weights: Collection[str]) -> None:
    """Fold, deduplicate and prune `model` in place.

    weights: names of the initializers that must stay as stored. Nothing that reads one is folded: a slice or transpose
    of a weight, or a convolution merged with its batch normalisation, would become a second copy of it inside
    model.onnx. Such a node costs nothing when served, since ONNX Runtime folds it while loading.
    """
    with _hidden(model.graph, weights):
        _simplify(model, weights)
    _strip(model)


@contextmanager
def _hidden(graph: ir.Graph, weights: Collection[str]) -> Iterator[None]:
    """Inside the block the weights have no values, so that no rewrite can compute with them."""
    values = {value: value.const_value for name, value in graph.initializers.items() if name in weights}
    for value in values:
        value.const_value = None
    yield
    for value, tensor in values.items():
        value.const_value = tensor


def _simplify(model: ir.Model, weights: Collection[str]) -> None:

    def may_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    passes.CommonSubexpressionEliminationPass()(model)
    for _ in range(2):
        _share_dimensions(model.graph)
        fold_constants_ir(model, should_fold=may_fold)
        rewriter.rewrite(model)
        keep_rows(model.graph)
        _merge_reshapes(model.graph)
        passes.IdentityEliminationPass()(model)
        passes.RemoveUnusedNodesPass()(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _merge_equal_constants(model, weights)
        passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _merge_equal_constants(model: ir.Model, weights: Collection[str]) -> None:
    """One initializer per folded constant. Weights are left alone: two that are equal today are still two weights."""
    seen: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        if name in weights or value.const_value is None:
            continue
        tensor = value.const_value
        key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        if (first := seen.setdefault(key, value)) is not value:
            ir.convenience.replace_all_uses_with(value, first)
            model.graph.initializers.pop(name)


def _strip(model: ir.Model) -> None:
    """Drop documentation and metadata: torch.onnx writes stack traces with local paths there."""
    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    for value in values:  # the pass leaves values alone
        value.metadata_props.clear()
        value.doc_string = None
