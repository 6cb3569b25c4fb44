"""The proof that a bundle computes what the PyTorch module computes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.manifest import Answer, Check, Parity, ParityCase, TensorSpec
from export.checkpoint import ExportError
from export.graph_checks import GraphError, check_graph, distance, open_session, run
from export.inputs import Case, cases, shapes
from export.trace import failure

ANSWERS = 8
"""Values of PyTorch's output in float64 that the manifest keeps for each kind of inputs."""

ROUNDINGS = 4
"""What an output may differ by where float32 resolves too little, in distances of PyTorch's float32 from float64."""

NEXT_TO_NOTHING = 1e-3
"""Of the answer to ordinary inputs: an answer below it may be but rounding, as a forecast for a series of zeros is."""


class ParityError(ExportError):
    """The graph's output differs from the module's by more than the tolerance."""

    def __init__(self, parity: Parity) -> None:
        worst = parity.worst
        super().__init__(
            f"parity failed: relative error {worst.error:.3g} above the tolerance "
            f"{worst.allowed or parity.tolerance:g} for "
            f"{worst.inputs} inputs of shape {worst.shape}{f', output {worst.output}' if worst.output else ''} "
            f"(absolute {worst.absolute:.3g}); nothing was written"
        )
        self.parity = parity


@contextmanager
def _refusal() -> Iterator[None]:
    """What ONNX Runtime refuses or fails at, and what does not fit into memory, as an ExportError."""
    try:
        yield
    except (GraphError, MemoryError) as error:
        raise ExportError(f"{' '.join(str(error).split()) or 'out of memory'}; nothing was written") from error


@_refusal()
def prove_graph(
    path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], tolerance: float
) -> list[Check]:
    """The checks of `export.graph_checks`, none of them failed. ExportError: one did; it is named."""
    checks = check_graph(path, inputs, outputs, tolerance)
    failed = [f"{check.name}: {check.detail}" for check in checks if check.failed]
    if failed:
        raise ExportError(f"{path.name} failed {'; '.join(failed)}; nothing was written")
    return [check.model_copy(update={"name": f"{path.name}: {check.name}"}) for check in checks]


def _results(module: nn.Module, x: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    """The module's outputs; tensors that it makes are of x's datatype if it names none. ExportError: it fails."""
    given, before = torch.from_numpy(x), torch.get_default_dtype()
    torch.set_default_dtype(given.dtype)
    try:
        with torch.no_grad():
            results = module(given)
    except Exception as error:  # a user's own network raises anything
        datatype = str(given.dtype).removeprefix("torch.")
        message = (
            f"{type(module).__name__} does not run in {datatype} on inputs of shape {list(x.shape)}: "
            f"{failure(error, module)}"
        )
        if given.dtype == torch.float64 and "double" in str(error).lower():
            message += (
                "; the proof needs it in float64 too: make tensors in the input's datatype (dtype=x.dtype, no "
                ".float()) and keep constants as buffers"
            )
        raise ExportError(f"{message}; nothing was written") from error
    finally:
        torch.set_default_dtype(before)
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


def _answer(case: Case, truth: NDArray[np.floating]) -> Answer:
    places = np.linspace(0, truth.size - 1, ANSWERS).astype(int)
    return Answer(
        inputs=case.kind,
        shape=case.input.shape,
        input_crc32=zlib.crc32(case.input.tobytes()),
        scale=float(np.abs(truth).max()),
        values=tuple(map(float, truth.ravel()[places])),
    )


@_refusal()
def measure(path: Path, module: nn.Module, spec: TensorSpec, tolerance: float) -> Parity:
    """Compare ONNX Runtime on the CPU with the module in float32 and in float64 on every input of the grid.

    The first output must stay within `tolerance` of both, further ones of float32; where float32 itself resolves less,
    further ones and answers of next to nothing are allowed that (`app.manifest.Parity`). ParityError: a case is above
    what is allowed. ExportError: the module or the graph does not run on an input; its shape is named.
    """
    session = open_session(path)
    outputs = [node.name for node in session.get_outputs()]
    exact = deepcopy(module).double()
    measured: list[tuple[list[ParityCase], bool]] = []
    reach: dict[tuple[int, ...], float] = {}
    """Largest absolute value of the first output for the first kind of inputs, by shape."""
    rounding = {"pytorch": 0.0, "onnxruntime": 0.0}
    own: dict[tuple[str, bool], float] = {}
    """How far PyTorch's float32 is from float64, by the kind of inputs and whether it is an output on request."""
    answers, first = list[Answer](), next(shape for shape in shapes(spec) if shape[0] > 1)
    for case in cases(spec):
        references, truths = _results(module, case.input), _results(exact, case.input.astype(np.float64))
        computed, of_case = run(session, case), []
        for label, output, reference, truth in zip(outputs, computed, references, truths, strict=True):
            absolute, relative = distance(output, reference)
            distances = {"pytorch": distance(reference, truth)[1], "onnxruntime": distance(output, truth)[1]}
            of_case.append(
                ParityCase(
                    shape=case.input.shape,
                    absolute=absolute,
                    relative=relative,
                    exact=distances["onnxruntime"] if label == outputs[0] else None,
                    inputs=case.kind,
                    output=label if len(outputs) > 1 else "",
                )
            )
            rounding = {side: max(rounding[side], found) for side, found in distances.items()}
            kind = case.kind, label != outputs[0]
            own[kind] = max(own.get(kind, 0.0), distances["pytorch"])
        scale = float(np.abs(truths[0]).max())
        measured.append((of_case, scale < NEXT_TO_NOTHING * reach.setdefault(case.input.shape, scale)))
        if case.input.shape == first:
            answers.append(_answer(case, truths[0]))
    worst = []
    for of_case, is_nothing in measured:
        judged = []
        for number, found in enumerate(of_case):
            allowed = ROUNDINGS * own[found.inputs, number > 0]
            excused = (number > 0 or is_nothing) and tolerance * ROUNDINGS < allowed < float("inf")
            judged.append(found.model_copy(update={"allowed": allowed}) if excused else found)
        worst.append(Parity(tolerance=tolerance, cases=tuple(judged)).worst)
    parity = Parity(tolerance=tolerance, cases=tuple(worst), rounding=rounding, answers=tuple(answers))
    if not parity.worst.error <= (parity.worst.allowed or tolerance):
        raise ParityError(parity)
    return parity
