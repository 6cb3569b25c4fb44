"""Writes a bundle NAME/VERSION: proven in a temporary folder beside its place, then visible by one rename."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnxscript import ir
from pydantic import TypeAdapter, ValidationError
from torch import nn

from app.errors import UnusableInput
from app.integrity import GRAPH, MANIFEST, SUM, sum_line
from app.manifest import (
    Check,
    File,
    Forecasting,
    Intervals,
    Manifest,
    Parity,
    ParityCase,
    Precision,
    PrecisionKind,
    Provenance,
    Resize,
    Serving,
    Task,
    TensorClassification,
    TensorSpec,
    VolumeClassification,
    fault,
)
from app.readers.calendar import parse_frequency
from export import verify
from export.checkpoint import WEIGHTS, Checkpoint, ExportError, load_module
from export.explain import attention_outputs, explained
from export.graph_checks import inlined
from export.reduce import Reduction, reduce
from export.sign import sign
from export.signature import (
    Description,
    OwnModule,
    class_count,
    forecasts,
    lookback_and_horizon,
    sample_shape,
    signature,
)
from export.trace import trace, with_functions
from export.weights import refer_to
from models.config import to_dict

EXPLAIN = "explain.onnx"


TOLERANCES: dict[PrecisionKind, float] = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}
"""Largest error against PyTorch's float32 and float64, relative to the output's scale."""


@dataclass(frozen=True)
class Request:
    """What to export as what. None and empty values are taken from the training or the bundle exported before."""

    name: str
    version: str
    repository: Path
    opset: int = 20
    tolerance: float | None = None
    """Relative to the output's scale; None: `TOLERANCES` of the precision."""
    labels: tuple[str, ...] = ()
    variates: tuple[str, ...] = ()
    frequency: str | None = None
    standardise: bool | None = None
    """Whether the service standardises a forecaster's windows (`app.manifest.Forecasting`)."""
    description: str | None = None
    data_licence: str | None = None
    intended_use: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    explain: bool | None = None
    """Add explain.onnx, with every block's mode attentions as outputs on request."""
    inline: bool = False
    """Write the functions' bodies in their nodes' place, for runtimes that know no model-local functions."""
    reduction: Reduction | None = None
    """Fewer bits than float32, judged on the task's metric."""
    sign: Path | None = None
    """PEM file of the private key that signs the manifest."""
    force: bool = False
    """Replace the version if it exists."""

    @property
    def allowed(self) -> float:
        """The tolerance of this export."""
        return (
            TOLERANCES[self.reduction.kind if self.reduction else "fp32"] if self.tolerance is None else self.tolerance
        )


def task(checkpoint: Checkpoint, request: Request) -> Task:
    """The manifest's task: the training's own, or one made of the config, with the request's values on top."""
    config = checkpoint.config
    if not forecasts(config) and class_count(config) < 2:
        raise ExportError(
            f"a classifier needs at least two logits, not {class_count(config)}; in place of one logit z, give 0 and z"
        )
    for kind, names in (("labels", request.labels), ("variates", request.variates)):
        if twice := [name for name in names if names.count(name) > 1]:
            raise ExportError(f"{kind}: {twice[0]!r} is there twice")
    if checkpoint.manifest is not None:
        base: Task = checkpoint.manifest.task
    elif "task" in checkpoint.training:
        try:
            base = TypeAdapter[Task](Task).validate_python(checkpoint.training["task"])
        except ValidationError as error:
            raise ExportError(f"training.json: task is not one a manifest can hold: {fault(error)}") from error
    elif forecasts(config):
        lookback, horizon = lookback_and_horizon(config)
        base = Forecasting(lookback=lookback, horizon=horizon)
    else:
        labels = request.labels or tuple(f"class {index}" for index in range(class_count(config)))
        base = _classification(labels, sample_shape(config))
    if isinstance(base, Forecasting):
        if request.labels:
            raise ExportError("labels belong to classifiers; this is a forecaster")
        measured = base.intervals is not None or (checkpoint.manifest is not None and bool(checkpoint.manifest.metrics))
        if measured and request.standardise not in (None, base.standardise):
            raise ExportError(
                "standardise: the bundle's metrics or intervals were measured the other way; export its checkpoint"
            )
        base = base.model_copy(
            update={
                "variates": request.variates or base.variates,
                "standardise": base.standardise if request.standardise is None else request.standardise,
                "intervals": _renamed(base.intervals, base.variates, request.variates),
                "frequency": base.frequency if request.frequency is None else _frequency(request.frequency),
            }
        )
    else:
        if request.variates or request.frequency is not None or request.standardise is not None:
            raise ExportError("variates, frequency and standardise belong to forecasters; this is a classifier")
        base = base.model_copy(update={"labels": request.labels or base.labels})
    _check_task(base, config)
    return base


def _renamed(intervals: Intervals | None, names: tuple[str, ...], others: tuple[str, ...]) -> Intervals | None:
    """The intervals with the errors of each variate under its new name."""
    if intervals is None or not others or intervals.errors.keys() <= {""}:
        return intervals
    if len(others) != len(names):
        raise ExportError(
            f"variates: {len(others)} for {len(names)} that the bundle has intervals of ({', '.join(names)})"
        )
    new = dict(zip(names, others, strict=True))
    return intervals.model_copy(
        update={"errors": {new.get(name, name): errors for name, errors in intervals.errors.items()}}
    )


def _frequency(text: str) -> str:
    """As the service writes the step that it finds in timestamps."""
    try:
        return parse_frequency(text).freqstr
    except UnusableInput as error:
        raise ExportError(error.message) from error


def _classification(labels: tuple[str, ...], shape: tuple[int, ...]) -> Task:
    """Of single-channel volumes, which the service reads from files, or of ready tensors."""
    if len(shape) != 4 or shape[0] != 1:
        return TensorClassification(labels=labels)
    return VolumeClassification(labels=labels, preprocessing=(Resize(shape=shape[1:]),))


def _check_task(base: Task, config: Description) -> None:
    if isinstance(base, Forecasting) is not forecasts(config):
        raise ExportError(f"the task {base.kind!r} does not fit a model of kind {config.kind!r}")
    if isinstance(base, Forecasting):
        lookback, horizon = lookback_and_horizon(config)
        if (base.lookback, base.horizon) != (lookback, horizon):
            raise ExportError(
                f"the task's lookback and horizon {base.lookback}, {base.horizon} are not the config's "
                f"{lookback}, {horizon}"
            )
        return
    if len(base.labels) != class_count(config):
        raise ExportError(f"{len(base.labels)} labels ({', '.join(base.labels)}) for {class_count(config)} classes")
    if isinstance(base, VolumeClassification):
        shape = sample_shape(config)[1:]
        sizes = [step.shape for step in base.preprocessing if isinstance(step, Resize)]
        if not sizes or sizes[-1] != shape:
            raise ExportError(f"the task's preprocessing does not end in a resize to the config's {shape}")


def versions() -> dict[str, str]:
    """Versions of the software that took part in the export."""
    found = {}
    for package in ("kronserve", "torch", "onnx", "onnxscript", "safetensors"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    import onnxruntime

    return {**found, "onnxruntime": onnxruntime.__version__}


def _file(path: Path) -> File:
    with path.open("rb") as file:
        return File(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)


def export_bundle(
    checkpoint: Checkpoint, request: Request, evaluate: Callable[[Path], dict[str, Any]] | None = None
) -> tuple[Path, Manifest]:
    """Trace, prove and write one version; returns its folder and manifest.

    evaluate: called with the finished bundle before it becomes visible, returns the manifest's metrics.
    ExportError (ParityError among them), OSError: nothing was written.
    """
    # Everything that can be refused without tracing comes first.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", request.name):
        raise ExportError(f"name {request.name!r}: letters, digits, '.', '_', '-', beginning with a letter or digit")
    if not re.fullmatch(r"[1-9][0-9]*", request.version):
        raise ExportError(f"version {request.version!r}: a whole number from 1 on, without leading zeros")
    target = request.repository / request.name / request.version
    if target.exists() and not request.force:
        raise ExportError(f"{target} exists; choose another version, or --force to replace it")
    if target.is_symlink():
        raise ExportError(f"{target} is a link to {target.readlink()}; remove it, or choose another version")
    _check_place(target)
    described, module, config = task(checkpoint, request), load_module(checkpoint), checkpoint.config
    sig = signature(config)
    before, explain = checkpoint.manifest, request.explain
    if explain is None:
        explain = before is not None and before.outputs[-1].on_request and request.reduction is None
    if request.reduction is not None and (explain or request.inline):
        raise ExportError("--explain and --inline write float32 graphs; leave them out with --precision")
    try:
        on_request = attention_outputs(config) if explain else ()
        model = trace(module, sig, request.opset)
    except ValueError as error:
        raise ExportError(str(error)) from error
    with _staged(target) as folder:
        (folder / WEIGHTS).write_bytes(checkpoint.weights)
        prove = partial(_write_graph, module=module, request=request)
        precision = Precision()
        if request.reduction is not None:
            precision = _reduced(model, checkpoint, request, described, folder)
        parity, checks = prove(model, folder / GRAPH, (sig.inputs, sig.outputs))
        further = None
        if on_request:
            with explained(module):
                model = trace(module, sig, request.opset, [spec.name for spec in on_request])
                every = sig.inputs, (*sig.outputs, *on_request)
                further, more = prove(model, folder / EXPLAIN, every)
                checks += more
        manifest = _manifest(checkpoint, request, described, on_request, (parity, further), folder)
        manifest = manifest.model_copy(update={"checks": tuple(checks), "precision": precision})
        _write(manifest, folder)
        if evaluate is not None:
            manifest = manifest.model_copy(update={"metrics": evaluate(folder)})
            _write(manifest, folder)
        if request.sign is not None:
            sign(folder, request.sign)
    return target, manifest


def _check_place(target: Path) -> None:
    """A bundle is traced for seconds before it is written, so what can be seen of its place is seen before."""
    there = next(parent for parent in target.parents if parent.exists())
    if not there.is_dir():
        raise ExportError(f"{there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ExportError(f"{there} cannot be written to")


def _write_graph(
    model: ir.Model,
    path: Path,
    signature: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    module: nn.Module,
    request: Request,
) -> tuple[Parity, list[Check]]:
    """Prove a graph of these inputs and outputs; one of full precision is saved first, beside its weights."""
    if request.reduction is None:
        _save(model, path, request.inline)
    parity = verify.measure(path, module, signature[0][0], request.allowed)
    return parity, verify.prove_graph(path, *signature, request.allowed)


def _save(model: ir.Model, path: Path, inline: bool = False) -> None:
    refer_to(model, path.with_name(WEIGHTS))
    proto = with_functions(model)
    onnx.save(inlined(proto) if inline else proto, path)


def _reduced(model: ir.Model, checkpoint: Checkpoint, request: Request, described: Task, folder: Path) -> Precision:
    """Write the float32 graph, judge it, and replace it by one of fewer bits that is judged as well."""
    assert request.reduction is not None
    none_yet = Parity(tolerance=request.allowed, cases=(ParityCase(shape=(), absolute=0.0, relative=0.0),))

    def write_manifest() -> None:
        """So that whoever judges the bundle finds its task and data set."""
        _write(_manifest(checkpoint, request, described, (), (none_yet, None), folder), folder)

    _save(model, folder / GRAPH)
    write_manifest()
    return reduce(
        model, checkpoint.weights, signature(checkpoint.config).inputs[0], folder, request.reduction, write_manifest
    )


def _manifest(
    checkpoint: Checkpoint,
    request: Request,
    described: Task,
    on_request: tuple[TensorSpec, ...],
    parities: tuple[Parity, Parity | None],
    folder: Path,
) -> Manifest:
    sig, before, training = signature(checkpoint.config), checkpoint.manifest, checkpoint.training
    texts = checkpoint.texts
    files = {name: _file(folder / name) for name in (GRAPH, WEIGHTS, *((EXPLAIN,) if on_request else ()))}
    return Manifest(
        name=request.name,
        version=request.version,
        description=_first(request.description, before and before.description, texts.get("description")),
        task=described,
        inputs=sig.inputs,
        outputs=(*sig.outputs, *on_request),
        provenance=Provenance(
            config=_config(checkpoint.config),
            weights_sha256=hashlib.sha256(checkpoint.weights).hexdigest(),
            training=training,
            versions=versions(),
            opset=request.opset,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        parity=parities[0],
        explain_parity=parities[1],
        metrics=request.metrics or (before.metrics if before is not None and request.reduction is None else {}),
        data_licence=_first(request.data_licence, before and before.data_licence, training.get("data_licence")),
        intended_use=_first(request.intended_use, before and before.intended_use, texts.get("intended_use")),
        files=files,
        serving=_serving(before, request.reduction),
    )


def _serving(before: Manifest | None, reduction: Reduction | None) -> Serving:
    """As in the bundle exported before; of an int8 graph one row, since activations have one scale for a batch."""
    if reduction is not None and reduction.kind == "int8":
        return Serving(max_batch=1)
    return before.serving if before is not None and before.precision.kind != "int8" else Serving()


def _config(description: Description) -> dict[str, Any]:
    if isinstance(description, OwnModule):
        return {"kind": description.kind, **json.loads(json.dumps(asdict(description)))}
    values: dict[str, Any] = json.loads(json.dumps(to_dict(description)))
    return values


def _first(*values: Any) -> str:
    return next((str(value) for value in values if value is not None), "")


def _write(manifest: Manifest, folder: Path) -> None:
    content = (manifest.model_dump_json(indent=2) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SUM).write_text(sum_line(content), encoding="ascii")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block succeeds and vanishes when it fails.

    Its name begins with a dot, so a service that scans the repository meanwhile does not see it as a version.
    """
    created = [parent for parent in (target.parent.parent, target.parent) if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's folder is for its owner alone; a service may run as somebody else
        replaced = None
        if target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            os.replace(target, replaced)
        try:
            os.rename(folder, target)
        except BaseException:
            if replaced is not None:
                os.replace(replaced, target)
            raise
        if replaced is not None:
            shutil.rmtree(replaced)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in reversed(created):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise
