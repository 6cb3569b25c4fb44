"""What one run of a graph costs, from the shapes that its values really have. Needs onnx and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from app.manifest import Forecasting, Manifest
from export.graph_checks import GraphError, inlined

_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger")
_CONVOLUTIONS = ("Conv", "ConvInteger")


@dataclass(frozen=True)
class Cost:
    """Of one run on an input of `shape`.

    flops: of matrix products and convolutions, a multiplication and an addition counting as two. activations: bytes of
    the values that exist at once, at most, when the nodes run in their order; a runtime that fuses nodes needs less.
    """

    shape: tuple[int, ...]
    flops: int
    weights_bytes: int
    activations_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape)}


def cost_of_one_row(folder: Path, manifest: Manifest) -> Cost:
    """The cost of model.onnx for a batch of one row, as many variates wide as the model was trained on."""
    width = max(1, len(manifest.task.variates)) if isinstance(manifest.task, Forecasting) else 1
    spec = manifest.inputs[0]
    return cost(
        folder / "model.onnx",
        tuple(size if size >= 0 else width if axis else 1 for axis, size in enumerate(spec.shape)),
    )


def cost(path: Path, shape: tuple[int, ...]) -> Cost:
    """Run the graph once on zeros of `shape`, with every value fetched. GraphError: it does not run."""
    flat = inlined(onnx.load(path, load_external_data=False))
    weights = {tensor.name: prod(tensor.dims) * _itemsize(tensor.data_type) for tensor in flat.graph.initializer}
    given = [value.name for value in flat.graph.input if value.name not in weights]
    (name,) = given
    nodes = list(flat.graph.node)
    results = [output for node in nodes for output in node.output if output]
    wanted = {value.name for value in flat.graph.output}
    kept = list(wanted)
    flat.graph.output.extend(onnx.ValueInfoProto(name=output) for output in results if output not in wanted)
    values = _run(flat, path, name, shape)
    sizes = {output: array.nbytes for output, array in values.items()}
    shapes = {output: array.shape for output, array in values.items()} | {name: shape}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in flat.graph.initializer}
    sizes[name] = prod(shape) * np.dtype(np.float32).itemsize
    flops = sum(_flops(node, shapes) for node in nodes)
    return Cost(shape, flops, sum(weights.values()), _peak(nodes, sizes, kept))


def _run(model: onnx.ModelProto, path: Path, name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = [node.name for node in session.get_outputs()]
        return dict(zip(outputs, session.run(outputs, {name: np.zeros(shape, np.float32)}), strict=True))
    except Exception as error:  # its exceptions share no base of their own
        raise GraphError(f"{path.name} does not run on {shape}: {error}") from error


def _itemsize(element: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)


def _flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Twice the multiplications: every element of the result is one sum over the contracted axes."""
    if node.domain:
        return 0
    result = prod(shapes[node.output[0]])
    if node.op_type in _PRODUCTS:
        first = shapes[node.input[0]]
        transposed = node.op_type == "Gemm" and any(entry.name == "transA" and entry.i for entry in node.attribute)
        return 2 * result * first[0 if transposed else -1]
    if node.op_type in _CONVOLUTIONS:
        return 2 * result * prod(shapes[node.input[1]][1:])
    return 0


def _peak(nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, int], kept: Sequence[str]) -> int:
    """Most bytes alive at once: a value lives from the node that makes it to the last one that reads it."""
    last = {name: index for index, node in enumerate(nodes) for name in node.input if name in sizes}
    last |= dict.fromkeys(kept, len(nodes))
    given = [name for name in last if not any(name in node.output for node in nodes)]
    alive = sum(sizes[name] for name in given)
    peak = alive
    for index, node in enumerate(nodes):
        alive += sum(sizes[output] for output in node.output if output)
        peak = max(peak, alive)
        done = {name for name in (*node.input, *node.output) if name in sizes and last.get(name, index) == index}
        alive -= sum(sizes[name] for name in done)
    return peak
