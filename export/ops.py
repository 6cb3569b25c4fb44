"""The custom operators of an exported graph: schemas, translations from torch, and bodies in standard ONNX.

An attention core is one node of the domain `ai.kronserve`. Every model carries a model-local function of the same
name, written in standard operators, so any ONNX runtime can run it: ONNX Runtime inlines the body unless a kernel is
registered for the node. A registered library's schema is enforced by name, so each signature (operator and order) has
its own name.

A further core needs an entry in `CORES`: its torch overload and a function from the order to `Core`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """One signature: `name`, its tensors in order (all of type T, the result has the first one's shape), and its body.

    `body` is a sequence of nodes in ONNX's textual syntax that assigns `result`; `@scale` is the node's attribute.
    """

    name: str
    doc: str
    inputs: tuple[str, ...]
    body: tuple[str, ...]

    def schema(self) -> onnx.defs.OpSchema:
        """What the exporter and a kernel library agree on."""
        return onnx.defs.OpSchema(
            self.name,
            DOMAIN,
            VERSION,
            doc=self.doc,
            inputs=[onnx.defs.OpSchema.FormalParameter(name, "T") for name in self.inputs],
            outputs=[onnx.defs.OpSchema.FormalParameter("result", "T")],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(double)"], "")],
            attributes=[onnx.defs.OpSchema.Attribute("scale", onnx.defs.OpSchema.AttrType.FLOAT, _SCALE)],
        )

    def function(self, opset: int) -> onnx.FunctionProto:
        """The body as a model-local function over the default domain's `opset`."""
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
        head = f"{self.name} <scale> ({', '.join(self.inputs)}) => (result)"
        return onnx.parser.parse_function("\n".join((header, head, "{", *self.body, "}")))


def _mode_attention(mode: int) -> list[str]:
    """a{mode} = softmax(q k^T / sqrt(e)): (b, Ni, h, e), (b, Ni, h, e) -> (b, h, Ni, Ni)."""
    return [
        f"query{mode} = Transpose <perm = [0, 2, 1, 3]> (q{mode})",
        f"key{mode} = Transpose <perm = [0, 2, 3, 1]> (k{mode})",
        f"score{mode} = MatMul (query{mode}, key{mode})",
        f"scaled{mode} = Mul (score{mode}, scale)",
        f"a{mode} = Softmax <axis = -1> (scaled{mode})",
    ]


def _along_mode(source: str, result: str, mode: int, order: int) -> list[str]:
    """result = source x_mode a{mode} on (b, h, N1, ..., Nk, e).

    The axes behind the mode are merged into the matrix product's columns; those before it stay batch axes, over which
    the attention matrix is broadcast. The last mode needs no merging.
    """
    lines, matrix = [], f"a{mode}"
    if mode > 1:
        axes = ", ".join(str(2 + before) for before in range(mode - 1))
        lines += [
            f"axes{mode} = Constant <value_ints = [{axes}]> ()",
            f"wide{mode} = Unsqueeze (a{mode}, axes{mode})",
        ]
        matrix = f"wide{mode}"
    if mode == order:
        return [*lines, f"{result} = MatMul ({matrix}, {source})"]
    merged = ", ".join(["0"] * (2 + mode) + ["-1"])
    return [
        *lines,
        f"merged{mode} = Constant <value_ints = [{merged}]> ()",
        f"columns{mode} = Reshape ({source}, merged{mode})",
        f"product{mode} = MatMul ({matrix}, columns{mode})",
        f"{result} = Reshape (product{mode}, shape)",
    ]


def _hot(order: int, name: str, doc: str, combine: Callable[[int], Iterable[str]]) -> Core:
    modes = range(1, order + 1)
    to_heads = [0, order + 1, *modes, order + 2]  # (b, N1, ..., Nk, h, e) -> (b, h, N1, ..., Nk, e)
    to_grid = [0, *(1 + mode for mode in modes), 1, order + 2]  # and back
    body = [
        f"grid = Transpose <perm = {to_heads}> (value)",
        "shape = Shape (grid)",
        "given = Constant <value_float : float = @scale> ()",
        "scale = CastLike (given, value)",
    ]
    for mode in modes:
        body += _mode_attention(mode)
    body += combine(order)
    body.append(f"result = Transpose <perm = {to_grid}> (mixed)")
    inputs = ("value", *(tensor for mode in modes for tensor in (f"q{mode}", f"k{mode}")))
    shapes = f" value: (b, N1, ..., N{order}, h, e); qi, ki: (b, Ni, h, e). Result: the shape of value."
    return Core(f"{name}{order}", doc + shapes, inputs, tuple(body))


def _one_after_another(order: int) -> list[str]:
    names = ["grid", *(f"along{mode}" for mode in range(1, order)), "mixed"]
    return [line for mode in range(1, order + 1) for line in _along_mode(names[mode - 1], names[mode], mode, order)]


def _added(order: int) -> list[str]:
    lines = [line for mode in range(1, order + 1) for line in _along_mode("grid", f"along{mode}", mode, order)]
    return [*lines, f"mixed = Sum ({', '.join(f'along{mode}' for mode in range(1, order + 1))})"]


def hot_product(order: int) -> Core:
    """value x_1 A_1 ... x_k A_k; arXiv 2412.02919, section 4.1."""
    return _hot(order, "HotProduct", "HOT attention, Kronecker product of the mode attentions.", _one_after_another)


def hot_sum(order: int) -> Core:
    """value x_1 A_1 + ... + value x_k A_k; arXiv 2412.02919, section 4.1."""
    return _hot(order, "HotSum", "HOT attention, plain sum of the mode attentions.", _added)


CORES: dict[Any, Callable[[int], Core]] = {
    torch.ops.kronserve.hot_product.default: hot_product,
    torch.ops.kronserve.hot_sum.default: hot_sum,
}
"""Torch overload -> the core of a given order. Overloads take (value, queries, keys)."""


@cache
def cores() -> dict[str, Core]:
    """Every signature by operator name."""
    return {core.name: core for build in CORES.values() for core in map(build, ORDERS)}


def _translation(build: Callable[[int], Core]) -> Callable[..., ir.Value]:
    def translate(value: ir.Value, queries: list[ir.Value], keys: list[ir.Value]) -> ir.Value:
        if len(queries) not in ORDERS:
            raise ValueError(f"attention of order {len(queries)} has no ONNX operator; orders are 1 to {ORDERS[-1]}")
        core = build(len(queries))
        tensors = [tensor for pair in zip(queries, keys, strict=True) for tensor in pair]
        width = value.shape[-1] if value.shape is not None else None
        if not isinstance(width, int):
            raise ValueError("the head width must be static")
        return values.Op(_OPSET, core.name, core.schema())(value, *tensors, scale=width**-0.5)

    return translate


def translations() -> dict[Any, Callable[..., ir.Value]]:
    """The cores' part of torch.onnx.export's `custom_translation_table`."""
    return {overload: _translation(build) for overload, build in CORES.items()}


def attach_functions(model: onnx.ModelProto) -> None:
    """Give `model` the function of every custom operator that its graph uses, over the model's own opset."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    present = {function.name for function in model.functions if function.domain == DOMAIN}
    for name in sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN} - present):
        model.functions.append(cores()[name].function(opset))
