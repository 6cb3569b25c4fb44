"""The proof that a bundle computes what the PyTorch module computes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.manifest import Parity, ParityCase
from export.checkpoint import ExportError
from models.config import Config, ForecasterConfig, input_shape

BATCHES = (1, 2, 7)
VARIATES = (1, 7, 21)


ROUNDINGS = 4
"""What an output on request may differ by, in distances of PyTorch's own float32 from float64."""


class ParityError(ExportError):
    """The graph's output differs from the module's by more than the tolerance."""

    def __init__(self, parity: Parity) -> None:
        worst = parity.worst
        super().__init__(
            f"parity failed: relative error {worst.relative:.3g} above the tolerance "
            f"{worst.allowed or parity.tolerance:g} for "
            f"{worst.inputs} inputs of shape {worst.shape}{f', output {worst.output}' if worst.output else ''} "
            f"(absolute {worst.absolute:.3g}); nothing was written"
        )
        self.parity = parity


@dataclass(frozen=True)
class Case:
    """One input of the grid and what it is made of."""

    kind: str
    input: Tensor


def cases(config: Config) -> Iterator[Case]:
    """Ordinary and extreme inputs at every shape of the grid; the same ones for the same config.

    Each case has one scale, so that an error is measured against the outputs it belongs to. Forecasters are fed with
    noise, random walks far from zero, constant and zero series, and noise in small and large units; classifiers with
    grey values, masks, and empty, full, faint and bright volumes.
    """
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        if isinstance(config, ForecasterConfig):
            for variates in VARIATES:
                noise = torch.randn(batch, variates, config.lookback, generator=generator)
                yield Case("random", noise)
                yield Case("random walk", noise.cumsum(-1) + 100)
                yield Case("constant", noise[..., :1].expand_as(noise).contiguous())
                yield Case("zero", torch.zeros_like(noise))
                yield Case("scaled by 1e-6", noise * 1e-6)
                yield Case("scaled by 1e6", noise * 1e6)
        else:
            grey = torch.rand(batch, *input_shape(config), generator=generator)
            yield Case("random", grey)
            yield Case("mask", (grey > 0.7).float())
            yield Case("zero", torch.zeros_like(grey))
            yield Case("constant", torch.ones_like(grey))
            yield Case("scaled by 1e-6", grey * 1e-6)
            yield Case("scaled by 1e6", grey * 1e6)


def _distance(output: NDArray[np.floating], reference: NDArray[np.floating]) -> tuple[float, float]:
    """Largest absolute error, and the same over the reference's largest absolute value."""
    if output.shape != reference.shape or not np.isfinite(output).all():
        return float("inf"), float("inf")
    absolute = float(np.abs(output.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    return absolute, absolute / scale if scale else (0.0 if absolute == 0 else float("inf"))


def check_graph(path: Path) -> None:
    """ONNX's own checks of the file with its external data in place: format, schemas, strict shape inference."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error


def _results(module: nn.Module, x: Tensor) -> list[NDArray[np.floating]]:
    with torch.no_grad():
        results = module(x)
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


def measure(path: Path, module: nn.Module, config: Config, tolerance: float) -> Parity:
    """Compare ONNX Runtime on the CPU with the module in float32 over the grid; the worst case of every shape.

    Both are compared with the module in float64 too: when their distances from it are alike, what separates them is
    rounding. The first output must stay within `tolerance` everywhere, further ones where float32 resolves as much
    (`app.manifest.Parity`). ParityError: a case is above what is allowed.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, outputs = session.get_inputs()[0].name, [node.name for node in session.get_outputs()]
    exact = deepcopy(module).double()
    measured: list[ParityCase] = []
    rounding = {"pytorch": 0.0, "onnxruntime": 0.0}
    own: dict[str, float] = {}
    for case in cases(config):
        references, truths = _results(module, case.input), _results(exact, case.input.double())
        computed = session.run(outputs, {name: case.input.numpy()})
        for label, output, reference, truth in zip(outputs, computed, references, truths, strict=True):
            absolute, relative = _distance(output, reference)
            shape, label = tuple(case.input.shape), label if len(outputs) > 1 else ""
            measured.append(
                ParityCase(shape=shape, absolute=absolute, relative=relative, inputs=case.kind, output=label)
            )
            distances = {"pytorch": _distance(reference, truth)[1], "onnxruntime": _distance(output, truth)[1]}
            rounding = {side: max(rounding[side], distance) for side, distance in distances.items()}
            own[case.kind] = max(own.get(case.kind, 0.0), distances["pytorch"])
    judged: dict[tuple[int, ...], list[ParityCase]] = {}
    for found in measured:
        if found.output not in ("", outputs[0]) and tolerance < own[found.inputs] < float("inf"):
            found = found.model_copy(update={"allowed": ROUNDINGS * own[found.inputs]})
        judged.setdefault(found.shape, []).append(found)
    worst = [Parity(tolerance=tolerance, cases=tuple(found)).worst for found in judged.values()]
    parity = Parity(tolerance=tolerance, cases=tuple(worst), rounding=rounding)
    if not parity.worst.relative <= (parity.worst.allowed or tolerance):
        raise ParityError(parity)
    return parity
