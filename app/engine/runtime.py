"""One loaded model: its signature, its ONNX Runtime session, its warm-up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import onnxruntime as ort
from pydantic import ValidationError

from app.engine.device import Device
from app.errors import DeviceFailed, InferenceFailed, KronserveError
from app.manifest import Datatype, Forecasting, Manifest, TensorSpec

MANIFEST, GRAPH = "manifest.json", "model.onnx"

CPU_BATCH_LIMIT, GPU_BATCH_LIMIT = 4, 64
"""Rows per batch: a few keep a CPU core busy, and more only cost latency and cache; a GPU wants many."""

_TYPES: tuple[tuple[str, Datatype, str], ...] = (
    ("bool", "BOOL", "bool"),
    ("uint8", "UINT8", "u1"),
    ("uint16", "UINT16", "<u2"),
    ("uint32", "UINT32", "<u4"),
    ("uint64", "UINT64", "<u8"),
    ("int8", "INT8", "i1"),
    ("int16", "INT16", "<i2"),
    ("int32", "INT32", "<i4"),
    ("int64", "INT64", "<i8"),
    ("float16", "FP16", "<f2"),
    ("float", "FP32", "<f4"),
    ("double", "FP64", "<f8"),
    ("string", "BYTES", "O"),
)

DATATYPES: dict[str, Datatype] = {f"tensor({onnx_name})": datatype for onnx_name, datatype, _ in _TYPES}
"""ONNX Runtime's type names -> the Open Inference Protocol's."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {datatype: np.dtype(numpy_name) for _, datatype, numpy_name in _TYPES}
"""The Open Inference Protocol's datatypes -> numpy's, little-endian."""

_DEVICE_FAILURES = ("CUDA failure", "CUDNN_STATUS", "CUBLAS_STATUS", "an illegal memory access", "device-side assert")


class BrokenBundle(KronserveError):
    """A version that cannot be loaded; the message says why."""


class Model:
    """One version of one model, ready to run. Safe to run from several threads at once.

    `manifest` is None for a folder with a bare model.onnx, whose signature is read from the graph.
    """

    serves: ClassVar[bool] = True

    def __init__(self, folder: Path, device: Device, *, max_batch: int = 0) -> None:
        """Load and check the bundle in `folder` (NAME/VERSION). Raises BrokenBundle."""
        self.name, self.version = folder.parent.name, folder.name
        self.device = device
        self.manifest = _read_manifest(folder)
        self._session = _open_session(folder / GRAPH, device)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        if self.manifest is not None:
            self._adopt_manifest(self.manifest)
        self.input_specs = {spec.name: spec for spec in self.inputs}
        self.output_names = tuple(spec.name for spec in self.outputs)
        self.batched = all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))
        default = GPU_BATCH_LIMIT if device.kind == "cuda" else CPU_BATCH_LIMIT
        self.batch_limit = (max_batch or default) if self.batched else 1
        self.seconds_per_element = 0.0

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], *, alone: bool) -> list[np.ndarray]:
        """Run one batch and return the named outputs in their order.

        Raises InferenceFailed when the graph refuses these inputs, DeviceFailed when the device is lost.
        """
        try:
            return cast("list[np.ndarray]", self._session.run(list(outputs), dict(inputs)))
        except Exception as error:
            text = str(error)
            if any(mark in text for mark in _DEVICE_FAILURES):
                raise DeviceFailed(f"the device failed while running {self.name}") from error
            raise InferenceFailed(f"{self.name} could not run this input: {_first_line(text)}") from error

    def warm_up(self) -> None:
        """Run every batch size once, so that no request pays for first-use allocations; measures the rate."""
        for rows in self._warm_up_sizes():
            inputs = {spec.name: self._example(spec, rows) for spec in self.inputs}
            self.run(inputs, self.output_names, alone=False)
            started = time.perf_counter()
            self.run(inputs, self.output_names, alone=False)
            elements = sum(tensor.size for tensor in inputs.values())
            self.seconds_per_element = (time.perf_counter() - started) / max(1, elements)

    def _warm_up_sizes(self) -> Iterator[int]:
        rows = 1
        while rows < self.batch_limit:
            yield rows
            rows *= 2
        yield self.batch_limit

    def _example(self, spec: TensorSpec, rows: int) -> np.ndarray:
        """A valid input: the batch axis as given, other dynamic axes at the training data's size or 1."""
        task = self.manifest.task if self.manifest else None
        other = max(1, len(task.variates)) if isinstance(task, Forecasting) else 1
        shape = [
            rows if axis == 0 and self.batched else (other if size < 0 else size)
            for axis, size in enumerate(spec.shape)
        ]
        if spec.datatype == "BYTES":
            return np.full(shape, b"", dtype=object)
        return np.zeros(shape, dtype=NUMPY_TYPES[spec.datatype])

    def _adopt_manifest(self, manifest: Manifest) -> None:
        """Take the manifest's axis names after checking that it and the graph say the same."""
        for kind, graph, declared in (
            ("input", self.inputs, manifest.inputs),
            ("output", self.outputs, manifest.outputs),
        ):
            found = [(spec.name, spec.datatype, spec.shape) for spec in graph]
            said = [(spec.name, spec.datatype, spec.shape) for spec in declared]
            if found != said:
                raise BrokenBundle(f"{MANIFEST} lists the {kind}s as {said}, but {GRAPH} has {found}")
        self.inputs, self.outputs = manifest.inputs, manifest.outputs


def _read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, with every listed file checked; None when there is only a model.onnx."""
    path = folder / MANIFEST
    if not (folder / GRAPH).is_file():
        raise BrokenBundle(f"{GRAPH} is missing")
    if not path.is_file():
        return None
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BrokenBundle(f"{MANIFEST} is not valid: {where}: {first['msg']}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise BrokenBundle(
            f"{MANIFEST} says {manifest.name}/{manifest.version}, the folder is {folder.parent.name}/{folder.name}"
        )
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise BrokenBundle(f"{name} is missing")
        if file.stat().st_size != expected.size:
            raise BrokenBundle(f"{name} has {file.stat().st_size} bytes instead of {expected.size}")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected.sha256:
                raise BrokenBundle(f"{name} does not have the SHA-256 that {MANIFEST} lists")
    return manifest


def _open_session(graph: Path, device: Device) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # One caller thread per core beats one session that spreads each batch; idle threads must not spin.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    try:
        return ort.InferenceSession(str(graph), options, providers=list(device.providers))
    except Exception as error:
        raise BrokenBundle(f"ONNX Runtime cannot load {GRAPH}: {_first_line(str(error))}") from error


def _spec(node: ort.NodeArg) -> TensorSpec:
    if node.type not in DATATYPES:
        raise BrokenBundle(f"{node.name} is a {node.type}, which no protocol here can carry")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(name=node.name, datatype=DATATYPES[node.type], shape=shape)


def _first_line(text: str) -> str:
    """What ONNX Runtime says, without file paths and without its later lines."""
    line = text.strip().splitlines()[0] if text.strip() else "unknown error"
    return " ".join(word for word in line.split() if "/" not in word)[:300]
