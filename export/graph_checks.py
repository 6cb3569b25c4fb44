"""What can be proven of a bundle's graph without PyTorch. Needs onnx and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from app.manifest import Check, TensorSpec
from export.inputs import Case, cases, shapes

Outputs = list[NDArray[np.floating]]
_ROWS = 7


class GraphError(Exception):
    """The file is not a graph that can be checked."""


def distance(output: NDArray[np.floating], reference: NDArray[np.floating]) -> tuple[float, float]:
    """Largest absolute error, and the same over the reference's largest absolute value.

    Both are infinite where the shapes differ or a value of either is not finite, and never NaN.
    """
    if output.shape != reference.shape or not (np.isfinite(output).all() and np.isfinite(reference).all()):
        return float("inf"), float("inf")
    absolute = float(np.abs(output.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    return absolute, absolute / scale if scale else (0.0 if absolute == 0 else float("inf"))


def open_session(path: Path, model: onnx.ModelProto | None = None) -> ort.InferenceSession:
    """The graph in plain ONNX Runtime on the CPU. GraphError: it is refused.

    model: what to open in place of the file's own content, with its weights where the file has them.
    """
    options = ort.SessionOptions()
    if model is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    graph = path if model is None else model.SerializeToString()
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base of their own
        raise GraphError(f"ONNX Runtime cannot load {path.name}: {error}") from error


def check_graph(
    path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], tolerance: float
) -> list[Check]:
    """Every check of the graph at `path`, with its external data beside it; a failed one does not stop the others.

    tolerance: largest difference between two ways of running the graph, relative to the output's scale. GraphError:
    ONNX Runtime refuses the graph or cannot run it, so that nothing else can be said about it.
    """
    structure = _structure(path)
    if not structure.passed:
        return [structure]
    session, model = open_session(path), onnx.load(path, load_external_data=False)
    small = shapes(inputs[0])
    few = next((shape for shape in small if shape[0] == 2 and -1 not in shape), small[0])
    ordinary = list(cases(inputs[0], [few]))
    many = next((shape for shape in small if shape[0] == _ROWS), few)
    return [
        structure,
        _signature(path, inputs, outputs),
        _inlined(path, model, session, ordinary, tolerance),
        _reference(path, session, ordinary[0], tolerance),
        _deterministic(path, session, ordinary),
        _rows(session, next(cases(inputs[0], [many])), tolerance),
    ]


def run(session: ort.InferenceSession, case: Case) -> Outputs:
    """Every output of the graph. GraphError: ONNX Runtime fails, be it for want of memory."""
    try:
        results: Outputs = session.run(None, {session.get_inputs()[0].name: case.input})
    except Exception as error:  # its exceptions share no base of their own
        where = f"{case.kind} inputs of shape {list(case.input.shape)}"
        raise GraphError(f"ONNX Runtime fails on {where}: {' '.join(str(error).split())}") from error
    return results


def _farthest(found: Outputs, expected: Outputs) -> float:
    return max(distance(*pair)[1] for pair in zip(found, expected, strict=True))


def _structure(path: Path) -> Check:
    """ONNX's own checks of the file with its external data in place: format, schemas, strict shape inference."""
    name = "onnx.checker"
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check(name=name, passed=False, detail=f"not valid ONNX: {' '.join(str(error).split())}")
    return Check(name=name, detail="full check with strict shape inference")


def _signature(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Check:
    """Names and shapes as the manifest has them; outputs as shape inference finds them."""
    faults = []
    try:
        inferred = onnx.shape_inference.infer_shapes(_with_vectors(path), strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, OSError, ValueError) as error:
        detail = f"shape inference fails: {' '.join(str(error).split())}"
        return Check(name="signature", passed=False, detail=detail)
    for kind, specs, values in (("input", inputs, inferred.graph.input), ("output", outputs, inferred.graph.output)):
        found = {value.name: _dims(value) for value in values}
        said = {spec.name: spec.shape for spec in specs}
        if found != said:
            faults.append(f"{kind}s are {found}, not {said}")
    return Check(name="signature", passed=not faults, detail="; ".join(faults) or "names and shapes as declared")


def _with_vectors(path: Path) -> onnx.ModelProto:
    """The graph with its scalars and vectors inside: inference computes with them, and reads no external data."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and len(tensor.dims) <= 1:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the bodies of its functions in their nodes' place, and no domain but ONNX's own left."""
    flat = onnx.inliner.inline_local_functions(model)
    used = {node.domain for node in flat.graph.node}
    for entry in [entry for entry in flat.opset_import if entry.domain not in ("", "ai.onnx", *used)]:
        flat.opset_import.remove(entry)
    return flat


def _inlined(
    path: Path, model: onnx.ModelProto, session: ort.InferenceSession, inputs: list[Case], tolerance: float
) -> Check:
    name = "inlined graph"
    if not model.functions:
        return Check(name=name, detail="the graph has no functions")
    try:
        other = open_session(path, inlined(model))  # never as a file beside the weights: the bundle may be read-only
        worst = max(_farthest(run(other, case), run(session, case)) for case in inputs)
    except GraphError as error:
        return Check(name=name, passed=False, detail=str(error))
    return Check(name=name, passed=worst <= tolerance, detail=f"differs by {worst:.2e} from the graph with functions")


def _reference(path: Path, session: ort.InferenceSession, case: Case, tolerance: float) -> Check:
    """onnx's evaluator, written in numpy, shares no code with ONNX Runtime."""
    name = "reference evaluator"
    try:
        found = ReferenceEvaluator(onnx.load(path)).run(None, {session.get_inputs()[0].name: case.input})
    except Exception as error:  # its operators are plain numpy, which raises anything, and some lack cases of ONNX
        detail = f"not compared: it cannot run the graph: {type(error).__name__}: {' '.join(str(error).split())}"
        return Check(name=name, passed=None, detail=detail)
    worst = _farthest([np.asarray(output) for output in found], run(session, case))
    return Check(name=name, passed=worst <= tolerance, detail=f"differs by {worst:.2e} from ONNX Runtime")


def _deterministic(path: Path, session: ort.InferenceSession, inputs: list[Case]) -> Check:
    fresh = open_session(path)
    for case in inputs:
        first = [output.tobytes() for output in run(session, case)]
        for other in (session, fresh):
            if [output.tobytes() for output in run(other, case)] != first:
                return Check(name="determinism", passed=False, detail=f"two runs on {case.kind} inputs differ")
    return Check(name="determinism", detail="the same bits run after run, and in a second session")


def _rows(session: ort.InferenceSession, case: Case, tolerance: float) -> Check:
    together = run(session, case)
    worst = 0.0
    for row in range(len(case.input)):
        alone = run(session, Case(case.kind, case.input[row : row + 1]))
        worst = max(worst, _farthest([output[row : row + 1] for output in together], alone))
    return Check(
        name="independent rows", passed=worst <= tolerance, detail=f"a row differs by {worst:.2e} from itself alone"
    )
