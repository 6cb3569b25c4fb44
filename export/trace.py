"""From a PyTorch module to an ONNX graph: torch.export, the translation to ONNX, the rewrites that follow."""

from __future__ import annotations

import io
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir
from onnxscript import opset20 as op
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from export import ops
from export.checkpoint import ExportError
from export.signature import Signature
from export.simplify import rename_dimensions, simplify

OPSETS = range(20, 24)
"""Default-domain opsets this exporter can write."""
_REASON = 300
"""Characters of torch's own words in a message."""
_LOGGERS = ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """aten.linear as one Gemm over rows: the weight is read as stored, the bias is added inside the product.

    x: (..., in), weight: (out, in), bias: (out). torch.onnx's own translation transposes the weight and adds the bias
    in a node of its own.
    """
    if len(x.shape) == 2:
        return op.Gemm(x, weight, bias, transB=1)
    rows = op.Reshape(x, op.Constant(value_ints=[-1, weight.shape[1]]))
    leading = op.Shape(x, start=0, end=-1)
    shape = op.Concat(leading, op.Constant(value_ints=[weight.shape[0]]), axis=0)
    return op.Reshape(op.Gemm(rows, weight, bias, transB=1), shape, allowzero=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on optional packages and its own deprecated calls."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _in_short(module: nn.Module) -> Iterator[None]:
    """What torch raises as one line, with the line of the module's own code where it happened; no graph printed."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except Exception as error:  # torch.export and torch.onnx raise anything, a module's own exceptions among them
        message = f"{type(module).__name__} cannot be traced to ONNX: {failure(error, module)}"
        raise ExportError(message) from error
    sys.stderr.write(said.getvalue())


def failure(error: Exception, module: nn.Module) -> str:
    """What a run of the module raised as one line, with the line of its own code where it happened."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    if isinstance(error, GuardOnDataDependentSymNode):
        reason = "what it computes depends on the values it is given"
    return f"{type(cause).__name__}: {reason[:_REASON]}{_place(error, module)}"


def _place(error: Exception, module: nn.Module) -> str:
    """The innermost line of the files that the module's classes are written in."""
    classes = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
    files = {getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in classes}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def trace(module: nn.Module, sig: Signature, opset: int = 20, further_outputs: Sequence[str] = ()) -> ir.Model:
    """The module's inference graph with its initializers named as in its state dict.

    Axes of size -1 in `sig` are dynamic. further_outputs: names of what the module gives beside its
    output. ValueError: an opset outside `OPSETS`. ExportError: the module cannot be captured as a graph, or has an
    operator that ONNX lacks.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset {opset} is not supported; use {OPSETS[0]} to {OPSETS[-1]}")
    # Sizes 0 and 1 are specialised by torch.export; distinct ones above them keep the dynamic axes apart.
    sizes = [size if size > 0 else 3 + 2 * axis for axis, size in enumerate(sig.input_shape)]
    dynamic = {
        axis: torch.export.Dim(name)
        for axis, (name, size) in enumerate(zip(sig.input_axes, sig.input_shape, strict=True))
        if size < 0
    }
    module = module.eval()
    with _quiet(), _in_short(module), torch.no_grad():
        program = torch.export.export(module, (torch.zeros(sizes),), dynamic_shapes=(dynamic,), strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=opset,
            input_names=[sig.input],
            output_names=[sig.output, *further_outputs],
            custom_translation_table={**ops.translations(), torch.ops.aten.linear.default: _linear},
        )
    assert exported is not None
    model: ir.Model = exported.model
    traced = model.graph.inputs[0].shape
    assert traced is not None
    rename_dimensions(
        model,
        {
            str(dim.value): name
            for dim, name in zip(traced, sig.input_axes, strict=True)
            if isinstance(dim, ir.SymbolicDim)
        },
    )
    simplify(model, set(module.state_dict()))
    model.producer_name, model.producer_version = "kronserve", None
    return model


def with_functions(model: ir.Model) -> onnx.ModelProto:
    """The model as a protobuf, with the bodies of its custom operators.

    They are attached here, after every rewrite, because torch.onnx and the rewrites would inline or drop them.
    """
    proto: onnx.ModelProto = ir.serde.serialize_model(model)
    ops.attach_functions(proto)
    return proto
