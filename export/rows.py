"""Keeps tokens as the rows of a matrix between projections, instead of restoring their grid after each one."""

from __future__ import annotations

from onnxscript import ir

_POINTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Sigmoid", "Relu", "Tanh", "Erf", "Gelu"})


def _width_of_rows(value: ir.Value, made: dict[ir.Value, int]) -> int | None:
    """d if `value` is a matrix of rows (M, d) that a projection or this pass made."""
    if value in made:
        return made[value]
    node = value.producer()
    if node is None or node.op_type != "Gemm" or node.inputs[1] is None or node.inputs[1].shape is None:
        return None
    width = node.inputs[1].shape[0 if node.attributes.get_int("transB", 0) else 1]
    return width if isinstance(width, int) else None


def _acts_on_rows(node: ir.Node) -> bool:
    if node.domain != "" or len(node.outputs) != 1:
        return False
    if node.op_type == "LayerNormalization":
        return bool(node.attributes.get_int("axis", -1) == -1)
    return node.op_type in _POINTWISE


def _named(shape: ir.Shape | None) -> list[int | str] | None:
    """The sizes, when each is a number or has a name."""
    if shape is None:
        return None
    sizes = [dim if isinstance(dim, int) else dim.value for dim in shape]
    return None if None in sizes else [size if isinstance(size, int) else str(size) for size in sizes]


def _rows_behind(value: ir.Value, width: int, made: dict[ir.Value, int]) -> tuple[ir.Value, ir.Node] | None:
    """The rows that a Reshape turned into `value` without touching its last axis, and that Reshape."""
    node = value.producer()
    if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    return (node.inputs[0], node) if _width_of_rows(node.inputs[0], made) == width else None


def _flattened(value: ir.Value, width: int, before: ir.Node) -> ir.Value:
    """`value` as rows, by a Reshape in front of the node `before`."""
    target = ir.node("Constant", [], {"value_ints": [-1, width]})
    flat = ir.node("Reshape", [value, target.outputs[0]])
    assert before.graph is not None
    before.graph.insert_before(before, [target, flat])
    return flat.outputs[0]


def keep_rows(graph: ir.Graph) -> None:
    """Move a Reshape from rows (M, d) to a grid (..., d) behind the pointwise nodes and layer norms that follow it.

    A Linear is Reshape, Gemm, Reshape; what stands between two of them works on rows as well as on a grid. Moved behind
    it, the first one's second Reshape meets the second one's first, and both go.
    """
    made: dict[ir.Value, int] = {}
    for node in list(graph):
        if not _acts_on_rows(node) or node.outputs[0].is_graph_output():
            continue
        data = [
            (index, value)
            for index, value in enumerate(node.inputs)
            if value is not None and (value.shape is None or value.shape.rank() > 1)
        ]
        shape = data[0][1].shape if data else None
        if shape is None or not isinstance(width := shape[-1], int):
            continue
        if not all(_named(value.shape) == _named(shape) is not None for _, value in data):
            continue  # unknown sizes, or broadcasting between grids
        found = [_rows_behind(value, width, made) for _, value in data]
        if not any(found):
            continue
        for (index, value), rows in zip(data, found, strict=True):
            node.replace_input_with(index, rows[0] if rows else _flattened(value, width, node))
        back = next(rows[1] for rows in found if rows)
        result = node.outputs[0]
        grid = ir.node("Reshape", [result, back.inputs[1]], {"allowzero": back.attributes.get_int("allowzero", 0)})
        grid.outputs[0].shape, grid.outputs[0].type = shape, data[0][1].type
        ir.convenience.replace_all_uses_with(result, grid.outputs[0])
        grid.replace_input_with(0, result)
        graph.insert_after(node, grid)
        result.shape, result.type = ir.Shape([None, width]), data[0][1].type
        made[result] = width
    _drop_identities(graph, made)


def _drop_identities(graph: ir.Graph, made: dict[ir.Value, int]) -> None:
    """Reshape(.., [-1, d]) of what has rows of width d, seen through any reshapes before it."""
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain != "":
            continue
        target = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        if target is None or target.size != 2:
            continue
        source = node.inputs[0]
        while source is not None and (before := source.producer()) is not None and before.op_type == "Reshape":
            source = before.inputs[0]
        if source is None or (width := _width_of_rows(source, made)) is None:
            continue
        if target.numpy().tolist() == [-1, width]:
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            graph.remove(node, safe=True)
