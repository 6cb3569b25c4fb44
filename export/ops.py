"""The custom operators of an exported graph: schemas, translations from torch, and bodies in standard ONNX.

An attention core is one node of the domain `ai.kronserve`. Every model carries a model-local function of the same
name, written in standard operators, so any ONNX runtime can run it: ONNX Runtime inlines the body unless a kernel is
registered for the node. A registered library's schema is enforced by name, so each signature (operator and order) has
its own name.

A further core needs an entry in `CORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx.parser
import torch
from onnxscript import ir, values

import models.cores  # noqa: F401  (registers torch.ops.kronserve)

DOMAIN = "ai.kronserve"
VERSION = 1
ORDERS = range(1, 5)

_OPSET = values.Opset(DOMAIN, VERSION)
_SCALE = "Factor of q k^T, 1 / sqrt(e). A constant: read from a shape, it would be computed anew at every run."


@dataclass(frozen=True)
class Core:
    """One signature: `name`, its tensors and results in order (all of type T), and its body.

    `body` is a sequence of nodes in ONNX's textual syntax that assigns the outputs. `scaled`: the operator has the
    attribute `scale`, which the body finds as a scalar of that name.
    """

    name: str
    doc: str
    inputs: tuple[str, ...]
    body: tuple[str, ...]
    outputs: tuple[str, ...] = ("result",)
    scaled: bool = True

    def schema(self) -> onnx.defs.OpSchema:
        """What the exporter and a kernel library agree on."""
        parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
        return onnx.defs.OpSchema(
            self.name,
            DOMAIN,
            VERSION,
            doc=self.doc,
            inputs=[parameter(name, "T") for name in self.inputs],
            outputs=[parameter(name, "T") for name in self.outputs],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(double)"], "")],
            attributes=[attribute("scale", onnx.defs.OpSchema.AttrType.FLOAT, _SCALE)] if self.scaled else [],
        )

    def function(self, opset: int) -> onnx.FunctionProto:
        """The body as a model-local function over the default domain's `opset`."""
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
        attributes, scale = "", []
        if self.scaled:
            attributes = "<scale> "
            scale = [
                "given = Constant <value_float : float = @scale> ()",
                f"scale = CastLike (given, {self.inputs[0]})",
            ]
        head = f"{self.name} {attributes}({', '.join(self.inputs)}) => ({', '.join(self.outputs)})"
        return onnx.parser.parse_function("\n".join((header, head, "{", *scale, *self.body, "}")))


def _mode_attention(mode: int) -> list[str]:
    """a{mode} = softmax(q k^T / sqrt(e)): (b, Ni, h, e), (b, Ni, h, e) -> (b, h, Ni, Ni)."""
    return [
        f"query{mode} = Transpose <perm = [0, 2, 1, 3]> (q{mode})",
        f"key{mode} = Transpose <perm = [0, 2, 3, 1]> (k{mode})",
        f"score{mode} = MatMul (query{mode}, key{mode})",
        f"scaled{mode} = Mul (score{mode}, scale)",
        f"a{mode} = Softmax <axis = -1> (scaled{mode})",
    ]


def _along_mode(source: str, result: str, matrices: Sequence[str], mode: int, order: int) -> list[str]:
    """result = source x_mode (.. m2 m1) on (b, h, N1, ..., Nk, e), the first of the matrices applied first.

    The axes behind the mode are merged into the matrix product's columns; those before it stay batch axes, over which
    the matrices are broadcast. The last mode needs no merging.
    """
    lines, columns = [], source
    if mode > 1:
        axes = ", ".join(str(2 + before) for before in range(mode - 1))
        lines.append(f"axes{mode} = Constant <value_ints = [{axes}]> ()")
    if mode < order:
        merged = ", ".join(["0"] * (2 + mode) + ["-1"])
        columns = f"columns{mode}"
        lines += [
            f"merged{mode} = Constant <value_ints = [{merged}]> ()",
            f"{columns} = Reshape ({source}, merged{mode})",
        ]
    for step, matrix in enumerate(matrices):
        if mode > 1:
            lines.append(f"wide_{matrix} = Unsqueeze ({matrix}, axes{mode})")
            matrix = f"wide_{matrix}"
        product = result if mode == order and step == len(matrices) - 1 else f"product{mode}_{step}"
        lines.append(f"{product} = MatMul ({matrix}, {columns})")
        columns = product
    if mode < order:
        lines.append(f"{result} = Reshape ({columns}, shape)")
    return lines


Combine = Callable[[int, Callable[[int], Sequence[str]]], Iterable[str]]


def _hot(order: int, name: str, doc: str, combine: Combine, kernelised: bool = False) -> Core:
    modes = range(1, order + 1)
    to_heads = [0, order + 1, *modes, order + 2]  # (b, N1, ..., Nk, h, e) -> (b, h, N1, ..., Nk, e)
    to_grid = [0, *(1 + mode for mode in modes), 1, order + 2]  # and back
    body = [
        f"grid = Transpose <perm = {to_heads}> (value)",
        "shape = Shape (grid)",
    ]
    if kernelised:
        body.append("last = Constant <value_ints = [-1]> ()")
    for mode in modes:
        body += _kernel_factors(mode) if kernelised else _mode_attention(mode)
    body += combine(order, lambda mode: (f"features{mode}", f"a{mode}") if kernelised else (f"a{mode}",))
    body.append(f"result = Transpose <perm = {to_grid}> (mixed)")
    inputs = ("value", *(tensor for mode in modes for tensor in (f"q{mode}", f"k{mode}")))
    last = f"value: (b, N1, ..., N{order}, h, e); qi, ki: (b, Ni, h, {'m' if kernelised else 'e'})."
    return Core(
        f"{name}{order}", f"{doc} {last} Result: the shape of value.", inputs, tuple(body), scaled=not kernelised
    )


def _kernel_factors(mode: int) -> list[str]:
    """The factors of a mode's matrix: features{mode} = phi(k)^T, (b, h, m, Ni), and a{mode} = phi(q) over its sums."""
    return [
        f"query{mode} = Transpose <perm = [0, 2, 1, 3]> (q{mode})",
        f"features{mode} = Transpose <perm = [0, 2, 3, 1]> (k{mode})",
        f"sum{mode} = ReduceSum <keepdims = 1> (features{mode}, last)",
        f"total{mode} = MatMul (query{mode}, sum{mode})",
        f"a{mode} = Div (query{mode}, total{mode})",
    ]


def _one_after_another(order: int, matrices: Callable[[int], Sequence[str]]) -> list[str]:
    names = ["grid", *(f"along{mode}" for mode in range(1, order)), "mixed"]
    return [
        line
        for mode in range(1, order + 1)
        for line in _along_mode(names[mode - 1], names[mode], matrices(mode), mode, order)
    ]


def _added(order: int, matrices: Callable[[int], Sequence[str]]) -> list[str]:
    modes = range(1, order + 1)
    lines = [line for mode in modes for line in _along_mode("grid", f"along{mode}", matrices(mode), mode, order)]
    return [*lines, f"mixed = Sum ({', '.join(f'along{mode}' for mode in modes)})"]


def hot_product(order: int) -> Core:
    """value x_1 A_1 ... x_k A_k; arXiv 2412.02919, section 4.1."""
    return _hot(order, "HotProduct", "HOT attention, Kronecker product of the mode attentions.", _one_after_another)


def hot_sum(order: int) -> Core:
    """value x_1 A_1 + ... + value x_k A_k; arXiv 2412.02919, section 4.1."""
    return _hot(order, "HotSum", "HOT attention, plain sum of the mode attentions.", _added)


def hot_kernelised(order: int) -> Core:
    """The product with A_i = phi(q_i) phi(k_i)^T over its row sums, never formed; arXiv 2412.02919v1, section 4.3."""
    doc = "HOT attention, product of kernelised mode attentions; qi, ki are positive features."
    return _hot(order, "HotKernelised", doc, _one_after_another, kernelised=True)


def _attended(query: str, suffix: str = "") -> list[str]:
    """attended = softmax(q k^T / sqrt(e)) v over (b, n, h, e) and the means: (b, n, h, e)."""
    return [
        f"query{suffix} = Transpose <perm = [0, 2, 1, 3]> ({query})",
        f"score{suffix} = MatMul (query{suffix}, columns)",
        f"scaled{suffix} = Mul (score{suffix}, scale)",
        f"attention{suffix} = Softmax <axis = -1> (scaled{suffix})",
        f"mixed{suffix} = MatMul (attention{suffix}, rows)",
    ]


_MEANS = [
    "columns = Transpose <perm = [0, 2, 3, 1]> (key)",
    "rows = Transpose <perm = [0, 2, 1, 3]> (value)",
]


def kao_kv(order: int) -> Core:
    """attn(X, C, C), every token attending to the mode means; arXiv 2007.08442, section 3.3."""
    body = [
        "shape = Shape (query)",
        "batch = Shape <start = 0, end = 1> (query)",
        "heads = Shape <start = -2> (query)",
        "all = Constant <value_ints = [-1]> ()",
        "flattened = Concat <axis = 0> (batch, all, heads)",
        "tokens = Reshape (query, flattened)",
        *_MEANS,
        *_attended("tokens", "_"),
        "unfolded = Transpose <perm = [0, 2, 1, 3]> (mixed_)",
        "result = Reshape (unfolded, shape)",
    ]
    doc = (
        f"KAO_KV: tokens attend to mode means. query: (b, N1, ..., N{order}, h, e); key, value: "
        f"(b, N1 + ... + N{order}, h, e). Result: the shape of query."
    )
    return Core(f"KaoKv{order}", doc, ("query", "key", "value"), tuple(body))


def kao_qkv(order: int) -> Core:
    """attn(C, C, C) in its modes' parts, mode means attending to mode means; arXiv 2007.08442, section 3.3."""
    modes = range(1, order + 1)
    body = [*_MEANS]
    for mode in modes:
        body += _attended(f"q{mode}", str(mode))
        body.append(f"result{mode} = Transpose <perm = [0, 2, 1, 3]> (mixed{mode})")
    doc = (
        f"KAO_QKV: mode means attend to mode means. qi: (b, Ni, h, e); key, value: (b, N1 + ... + N{order}, h, e). "
        "Result i: the shape of qi; their outer sum is the operator's map."
    )
    inputs = (*(f"q{mode}" for mode in modes), "key", "value")
    return Core(f"KaoQkv{order}", doc, inputs, tuple(body), outputs=tuple(f"result{mode}" for mode in modes))


def _of_modes(value: ir.Value, queries: list[ir.Value], keys: list[ir.Value]) -> tuple[int, list[ir.Value]]:
    return len(queries), [value, *(tensor for pair in zip(queries, keys, strict=True) for tensor in pair)]


def _of_tokens(query: ir.Value, key: ir.Value, value: ir.Value) -> tuple[int, list[ir.Value]]:
    assert query.shape is not None
    return query.shape.rank() - 3, [query, key, value]


def _of_means(queries: list[ir.Value], key: ir.Value, value: ir.Value) -> tuple[int, list[ir.Value]]:
    return len(queries), [*queries, key, value]


Arrange = Callable[..., tuple[int, list[ir.Value]]]

CORES: dict[Any, tuple[Callable[[int], Core], Arrange]] = {
    torch.ops.kronserve.hot_product.default: (hot_product, _of_modes),
    torch.ops.kronserve.hot_sum.default: (hot_sum, _of_modes),
    torch.ops.kronserve.hot_kernelised.default: (hot_kernelised, _of_modes),
    torch.ops.kronserve.kao_kv.default: (kao_kv, _of_tokens),
    torch.ops.kronserve.kao_qkv.default: (kao_qkv, _of_means),
}
"""Torch overload -> the core of a given order, and from the overload's arguments to the order and the core's inputs."""


@cache
def cores() -> dict[str, Core]:
    """Every signature by operator name."""
    return {core.name: core for build, _ in CORES.values() for core in map(build, ORDERS)}


def _translation(build: Callable[[int], Core], arrange: Arrange, several: bool) -> Callable[..., Any]:
    def translate(*arguments: Any) -> Any:
        order, tensors = arrange(*arguments)
        if order not in ORDERS:
            raise ValueError(f"attention of order {order} has no ONNX operator; orders are 1 to {ORDERS[-1]}")
        core, attributes = build(order), {}
        if core.scaled:
            width = tensors[0].shape[-1] if tensors[0].shape is not None else None
            if not isinstance(width, int):
                raise ValueError("the head width must be static")
            attributes["scale"] = width**-0.5
        results = values.Op(_OPSET, core.name, core.schema())(*tensors, **attributes)
        return [results] if several and isinstance(results, ir.Value) else results

    return translate


def translations() -> dict[Any, Callable[..., Any]]:
    """The cores' part of torch.onnx.export's `custom_translation_table`."""
    return {
        overload: _translation(build, arrange, several="[]" in str(overload._schema.returns[0].type))
        for overload, (build, arrange) in CORES.items()
    }


def attach_functions(model: onnx.ModelProto) -> None:
    """Give `model` the function of every custom operator that its graph uses, over the model's own opset."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    present = {function.name for function in model.functions if function.domain == DOMAIN}
    for name in sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN} - present):
        model.functions.append(cores()[name].function(opset))
