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
from models.config import Config, ForecasterConfig

BATCHES = (1, 2, 7)
VARIATES = (1, 7, 21)


class ParityError(ExportError):
    """The graph's output differs from the module's by more than the tolerance."""

    def __init__(self, parity: Parity) -> None:
        worst = parity.worst
        super().__init__(
            f"parity failed: relative error {worst.relative:.3g} above the tolerance {parity.tolerance:g} for "
            f"{worst.inputs} inputs of shape {worst.shape} (absolute {worst.absolute:.3g}); nothing was written"
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
            grey = torch.rand(batch, 1, *config.volume, generator=generator)
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


def measure(path: Path, module: nn.Module, config: Config, tolerance: float) -> Parity:
    """Compare ONNX Runtime on the CPU with the module in float32 over the grid; the worst case of every shape.

    Both are compared with the module in float64 too: when their distances from it are alike, what separates them is
    rounding. ParityError: a case is above `tolerance`.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    exact = deepcopy(module).double()
    worst: dict[tuple[int, ...], ParityCase] = {}
    rounding = {"pytorch": 0.0, "onnxruntime": 0.0}
    for case in cases(config):
        with torch.no_grad():
            reference, truth = module(case.input).numpy(), exact(case.input.double()).numpy()
        output = session.run(None, {name: case.input.numpy()})[0]
        absolute, relative = _distance(output, reference)
        found = ParityCase(shape=tuple(case.input.shape), absolute=absolute, relative=relative, inputs=case.kind)
        if found.shape not in worst or relative > worst[found.shape].relative:
            worst[found.shape] = found
        for side, values in (("pytorch", reference), ("onnxruntime", output)):
            rounding[side] = max(rounding[side], _distance(values, truth)[1])
    parity = Parity(tolerance=tolerance, cases=tuple(worst.values()), rounding=rounding)
    if not parity.worst.relative <= tolerance:
        raise ParityError(parity)
    return parity
