"""Fewer bits, judged on the task's own metric: what hurts too much stays in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxscript import ir
from safetensors.numpy import load, save

from app.integrity import GRAPH
from app.manifest import Precision, PrecisionKind, TensorSpec
from export.checkpoint import WEIGHTS, ExportError
from export.graph_checks import open_session
from export.inputs import cases, shapes
from export.precision import State, projections, to_half, to_int8
from export.trace import with_functions
from export.weights import refer_to

Judge = Callable[[Path], dict[str, Any]]
"""From a bundle's folder to {"dataset", "split", "values"} on the validation split."""

_LOWER = {"int8": to_int8, "fp16": to_half}


@dataclass(frozen=True)
class Reduction:
    """What to reduce to, and by how many percent a metric may become worse at most."""

    kind: PrecisionKind
    judge: Judge
    max_loss_percent: float


def metrics_of(values: Mapping[str, Any]) -> dict[str, float]:
    """The figures that count, smaller being better: a forecaster's mean MSE and MAE, a classifier's AUC negated."""
    if "average" in values:
        return {name: float(values["average"][name]) for name in ("mse", "mae")}
    return {"auc": -float(values["auc"])}


def loss_percent(full: Mapping[str, float], reduced: Mapping[str, float]) -> float:
    """By how many percent of its size the metric that suffered most became worse; negative when all became better."""
    return max(100 * (reduced[name] - full[name]) / abs(full[name]) for name in full)


def reduce(
    model: ir.Model,
    weights: bytes,
    spec: TensorSpec,
    folder: Path,
    reduction: Reduction,
    write_manifest: Callable[[], None],
) -> Precision:
    """Replace the float32 bundle in `folder` (model.onnx, weights, manifest) by one of fewer bits within the bound.

    All projections are reduced at first; while the metric's loss is above the bound, those that change the output most
    when reduced alone go back to float32: the worst one, two, four, .. write_manifest: called before every judgement.
    ExportError: not within the bound while anything is reduced.
    """
    plain: State = load(weights)
    full = reduction.judge(folder)
    before, order, count = metrics_of(full["values"]), list[str](), 0
    names = projections(model.graph, plain)
    while count < len(names):
        if count:
            order = order or _worst_first(model, plain, spec, folder, reduction.kind)
        keep = order[:count]
        _write(model, plain, keep, folder, reduction.kind)
        write_manifest()
        after = metrics_of(reduction.judge(folder)["values"])
        loss = loss_percent(before, after)
        if loss <= reduction.max_loss_percent:
            return Precision(
                kind=reduction.kind,
                kept=tuple(sorted(keep)),
                dataset=full["dataset"],
                split=full["split"],
                full={name: abs(value) for name, value in before.items()},
                reduced={name: abs(value) for name, value in after.items()},
                loss_percent=loss,
                max_loss_percent=reduction.max_loss_percent,
            )
        count = max(1, 2 * count)
    raise ExportError(
        f"{reduction.kind} costs {loss:.2f} % of the validation metric, above the {reduction.max_loss_percent:g} % "
        f"of --max-metric-loss, however many of its {len(names)} projections stay in float32; nothing was written"
        if names
        else "the graph has no projections to reduce; nothing was written"
    )


def _write(model: ir.Model, plain: State, keep: list[str], folder: Path, kind: PrecisionKind) -> None:
    lowered = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    # Not save_file, whose errors are not OSErrors.
    (folder / WEIGHTS).write_bytes(save(_LOWER[kind](lowered, plain, keep)))
    refer_to(lowered, folder / WEIGHTS)
    onnx.save(with_functions(lowered), folder / GRAPH)


def _worst_first(model: ir.Model, plain: State, spec: TensorSpec, folder: Path, kind: PrecisionKind) -> list[str]:
    """The projections by how far the output moves when only they are reduced, on ordinary inputs."""
    names = list(projections(model.graph, plain))
    (case,) = [case for case in cases(spec, [shapes(spec)[-1]]) if case.kind == "random"]

    def output(keep: list[str]) -> np.ndarray:
        _write(model, plain, keep, folder, kind)
        result: np.ndarray = open_session(folder / GRAPH).run(None, {spec.name: case.input})[0]
        return result

    exact = output(names)
    moved = {name: float(np.abs(output([n for n in names if n != name]) - exact).mean()) for name in names}
    return sorted(names, key=lambda name: -moved[name])
