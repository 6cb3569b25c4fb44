"""What `kronserve verify` checks of a finished bundle, wherever it came from. Needs no torch."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, Message

from app.integrity import MANIFEST, SIGNATURE, SUM, BrokenBundle, read_manifest
from app.manifest import Check, Manifest, Parity, TensorSpec
from export.graph_checks import GraphError, check_graph, distance, open_session, run
from export.inputs import cases, shapes


def verify_bundle(folder: Path, trusted: Path | None = None) -> list[Check]:
    """Every check of the bundle in `folder` (NAME/VERSION); one that fails hides only those that need what it found.

    trusted: PEM file of public keys, one of which must have signed the manifest.
    """
    try:
        manifest = read_manifest(folder.resolve(), trusted)
    except BrokenBundle as error:
        return [Check(name="files", passed=False, detail=str(error))]
    if manifest is None:
        return [Check(name="files", passed=False, detail=f"{MANIFEST} is missing")]
    checks = [
        Check(name="files", detail="sizes and SHA-256 as listed" + ("; signed by a trusted key" if trusted else "")),
        _nothing_else(folder, manifest),
        _recorded(manifest),
    ]
    ordinary = tuple(spec for spec in manifest.outputs if not spec.on_request)
    graphs = {"model.onnx": ordinary} | ({"explain.onnx": manifest.outputs} if "explain.onnx" in manifest.files else {})
    for name, outputs in graphs.items():
        found = [_external_data(folder / name, manifest)]
        if not found[0].failed:
            try:
                found += check_graph(folder / name, manifest.inputs, outputs, manifest.parity.tolerance)
                found.append(_every_shape(open_session(folder / name), outputs, manifest.inputs[0]))
            except GraphError as error:
                found.append(Check(name="loads", passed=False, detail=str(error)))
        checks += [check.model_copy(update={"name": f"{name}: {check.name}"}) for check in found]
        if any(check.failed for check in found):
            return checks
    return [*checks, _answers(folder, manifest)]


def _nothing_else(folder: Path, manifest: Manifest) -> Check:
    known = {MANIFEST, SUM, SIGNATURE, *manifest.files}
    others = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    others = [name for name in others if name not in known]
    detail = f"not in the manifest: {', '.join(others)}" if others else "none beside those listed"
    return Check(name="other files", passed=not others, detail=detail)


def _recorded(manifest: Manifest) -> Check:
    """What the exporter wrote down of its own proof."""
    failed = [check.name for check in manifest.checks if check.failed]
    failed += [
        f"parity: {parity.worst.error:.2e} above {parity.tolerance:g}"
        for parity in (manifest.parity, manifest.explain_parity)
        if parity is not None and not _within(parity)
    ]
    count = len(manifest.checks) + len(manifest.parity.cases)
    return Check(
        name="export's proof",
        passed=not failed,
        detail="; ".join(failed) or f"{count} checks and comparisons, none failed",
    )


def _within(parity: Parity) -> bool:
    """Whether every case is within what it is allowed; one that is NaN is not."""
    return all(
        found <= (case.allowed or parity.tolerance)
        for case in parity.cases
        for found in (case.relative, case.exact or 0.0)
    )


def _external_data(path: Path, manifest: Manifest) -> Check:
    """Every weight lies in a listed file, so its bytes have been checked."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        return Check(name="weights", passed=False, detail=f"{path.name} is not ONNX: {error}")
    places = {
        entry.value
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == "location" and tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    unknown = sorted(places - manifest.files.keys())
    detail = f"in files the manifest does not list: {', '.join(unknown)}" if unknown else ", ".join(sorted(places))
    return Check(name="weights", passed=not unknown, detail=detail or "inside the graph")


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Wherever ONNX has a tensor: initializers, attributes, branches and bodies of control flow, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Iterable) else (value,):
                yield from _tensors(part)


def _every_shape(session: ort.InferenceSession, outputs: tuple[TensorSpec, ...], spec: TensorSpec) -> Check:
    """Finite outputs of the declared shape on every input of the grid."""
    name = "shapes and extremes"
    for case in cases(spec):
        try:
            results = run(session, case)
        except GraphError as error:
            return Check(name=name, passed=False, detail=str(error))
        for output, result in zip(outputs, results, strict=True):
            fits = len(result.shape) == len(output.shape) and len(result) == len(case.input)
            fits = fits and all(size in (-1, got) for size, got in zip(output.shape, result.shape, strict=True))
            if not (fits and np.isfinite(result).all()):
                where = f"{case.kind} inputs of shape {list(case.input.shape)}"
                return Check(
                    name=name, passed=False, detail=f"{where}: {output.name} is {list(result.shape)} or not finite"
                )
    return Check(name=name, detail=f"{len(shapes(spec))} input shapes, finite and of the declared shape")


def _answers(folder: Path, manifest: Manifest) -> Check:
    """PyTorch's answers in float64, recorded at the export, against ONNX Runtime here."""
    name, parity, spec = "PyTorch's answers", manifest.parity, manifest.inputs[0]
    if not parity.answers:
        return Check(name=name, passed=None, detail="none recorded")
    session, worst, passed = open_session(folder / "model.onnx"), 0.0, True
    for answer in parity.answers:
        case = next(case for case in cases(spec, [answer.shape]) if case.kind == answer.inputs)
        if zlib.crc32(case.input.tobytes()) != answer.input_crc32:
            detail = "not compared: this NumPy draws other numbers than the export's"
            return Check(name=name, passed=None, detail=detail)
        output = run(session, case)[0].ravel()
        values = output[np.linspace(0, output.size - 1, len(answer.values)).astype(int)]
        absolute = distance(values, np.array(answer.values))[0]
        found = absolute / (answer.scale or 1.0) if np.isfinite(answer.scale) else float("inf")
        allowed = [case.allowed or 0.0 for case in parity.cases if case.inputs == answer.inputs]
        worst, passed = max(worst, found), passed and found <= max([parity.tolerance, *allowed])
    return Check(
        name=name,
        passed=passed,
        detail=f"{len(parity.answers)} recorded in float64; ONNX Runtime {ort.__version__} differs by {worst:.2e}",
    )
