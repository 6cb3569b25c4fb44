"""One loaded model: its signature, its plan, its warm-up, and how a batch is run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import onnxruntime as ort

from app.engine import memory
from app.engine.buckets import Buckets, blank_rows
from app.engine.datatypes import DATATYPES, NUMPY_TYPES
from app.engine.device import Device
from app.engine.memory import Footprint
from app.engine.plan import CPU_SIZES, GPU_SIZES, Plan, keep, measure, recall
from app.engine.probe import rows_are_independent, working_size
from app.engine.sessions import EXPLAIN, first_line, open_sessions
from app.errors import DeviceFailed, InferenceFailed
from app.integrity import GRAPH, MANIFEST, BrokenBundle, read_manifest
from app.manifest import Forecasting, Manifest, TensorSpec
from app.settings import Settings

logger = logging.getLogger(__name__)

BEING_LOADED = "it is being loaded"

_DEVICE_FAILURES = (
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "device-side assert",
    "unspecified launch failure",
    "uncorrectable ECC",
    "context is destroyed",
)
"""CUDA errors after which the process cannot use the device again; running out of memory is not one of them."""


class Model:
    """One version of one model, ready to run. Safe to run from several threads at once.

    `manifest` is None for a folder with a bare model.onnx, whose signature is read from the graph. `plan` says how it
    is run: batch limit, and whether a lone request takes all cores.
    """

    serves: ClassVar[bool] = True

    def __init__(
        self, folder: Path, device: Device, settings: Settings, doing: Callable[[str], None] = lambda _: None
    ) -> None:
        """Load, check, plan and warm up the bundle in `folder` (NAME/VERSION). Raises BrokenBundle.

        doing: told what is done before something that takes minutes, and when it is over.
        """
        self.name, self.version = folder.parent.name, folder.name
        self.device = device
        before = memory.anonymous()
        self.manifest = read_manifest(folder, settings.trusted_keys)
        self._sessions, self.kernel_use = open_sessions(folder, device, settings)
        session = self._sessions.narrow
        self._buckets = self._make_buckets() if device.on_gpu else None
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        if self.manifest is not None:
            self._adopt_manifest(self.manifest)
        self.input_specs = {spec.name: spec for spec in self.inputs}
        self.output_names = tuple(spec.name for spec in self.outputs)
        """Every output that may be asked for."""
        self.ordinary_outputs = tuple(spec.name for spec in self.outputs if not spec.on_request)
        """Those of a request that names none."""
        self._ordinary = frozenset(self.ordinary_outputs)
        self.max_axis = settings.max_axis
        self.bundle_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        self._free_axis: int | None = None
        self.batched = self._find_batch_axis()
        if device.kind == "tensorrt" and self.batched:
            self._build_engine(settings, doing)
        self.plan = self._make_plan(settings)
        self.batch_elements = _elements(self._example(self.batch_limit))
        """Input elements that fill a batch."""
        self.batch_rows = self.batch_limit if device.on_gpu else 1 << 31
        """Most rows of a batch, however narrow: on a GPU, where every size is warmed up, the limit itself."""
        self.seconds_per_element = self._warm_up()
        self._count_kernels()
        self.memory = Footprint(self._sessions.mapped_bytes, max(0, memory.anonymous() - before))

    @property
    def batch_limit(self) -> int:
        """Most rows, of the width that the plan was measured at, that one batch takes."""
        return self.plan.batch_limit

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], *, alone: bool) -> list[np.ndarray]:
        """Run one batch and return the named outputs in their order; `alone`: no other batch is waiting or running.

        Raises InferenceFailed when the graph refuses these inputs, DeviceFailed when the device is lost.
        """
        try:
            session = self._session(outputs, alone=alone)
            if self._buckets is not None and session is self._sessions.narrow:
                buckets = self._buckets
                results = (buckets.run if self.batched else buckets.run_unpadded)(inputs, outputs)
            elif self.batched and len(next(iter(inputs.values()))) == 0:  # graphs that reshape cannot divide nothing
                row = {name: blank_rows(tensor, 1) for name, tensor in inputs.items()}
                results = [tensor[:0] for tensor in session.run(list(outputs), row)]
            else:
                # A row wider than a whole batch grows the arena to its size: the run gives that back when it ends.
                options = _shrinking() if _elements(inputs) > self.batch_elements else None
                results = session.run(list(outputs), dict(inputs), options)
        except Exception as error:
            text = str(error)
            if any(mark in text for mark in _DEVICE_FAILURES):
                raise DeviceFailed(f"the device failed while running {self.name}") from error
            raise InferenceFailed(f"{self.name} could not run this input: {first_line(text)}") from error
        if self.batched:
            rows = len(next(iter(inputs.values())))
            if any(len(result) != rows for result in results):
                raise InferenceFailed(f"{self.name} did not give one result a row")
        return results

    def _session(self, outputs: Sequence[str], *, alone: bool) -> ort.InferenceSession:
        if not self._ordinary.issuperset(outputs):
            return self._sessions.explaining()
        if alone and self.plan.threads_alone > 1:
            return self._sessions.wide(self.plan.threads_alone)
        return self._sessions.narrow

    def _find_batch_axis(self) -> bool:
        """Whether requests can share a batch. A manifest says so by the shapes; a bare graph is tried."""
        if self.manifest is not None:
            task = self.manifest.task
            self._free_axis = max(1, len(task.variates)) if isinstance(task, Forecasting) else 1
            return all(spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs))
        session, names, buckets = self._sessions.narrow, [spec.name for spec in self.outputs], self._buckets

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            if buckets is not None:
                return buckets.run_unpadded(inputs, names)
            return cast("list[np.ndarray]", session.run(names, inputs))

        self.batched = False
        self._free_axis = working_size(run, lambda size: self._example(1, size))
        if self._free_axis is None:
            logger.warning("%s/%s runs with no size tried; it is served without warm-up", self.name, self.version)
            return False
        return rows_are_independent(run, self.inputs, self.outputs, self._free_axis)

    def _make_buckets(self) -> Buckets:
        sessions = self._sessions
        return Buckets(sessions.narrow, GPU_SIZES[-1], graphs=sessions.cuda_graphs, engine=sessions.engine)

    def _build_engine(self, settings: Settings, doing: Callable[[str], None]) -> None:
        """Have TensorRT run every batch size that may come, if it can run this graph."""
        most = max(GPU_SIZES[-1], self._fixed_limit(settings))
        self._sessions.build_engine(
            self._example(1), self._example(most), lambda: doing("its TensorRT engine is being built")
        )
        doing(BEING_LOADED)
        if self._sessions.engine is not None:
            self._buckets = self._make_buckets()
            self.providers = tuple(self._sessions.engine.get_providers())

    def _fixed_limit(self, settings: Settings) -> int:
        """The batch limit that the operator or the manifest sets, 0 without one."""
        serving = self.manifest.serving.max_batch if self.manifest is not None else None
        return settings.max_batch or serving or 0

    def _make_plan(self, settings: Settings) -> Plan:
        """The plan: set by the operator or the manifest, remembered, or measured now and kept."""
        fixed = self._fixed_limit(settings)
        if not self.batched:
            return Plan(1, source="not batched")
        plan = self._measured_plan(settings)
        return replace(plan, batch_limit=fixed, source="set") if fixed else plan

    def _measured_plan(self, settings: Settings) -> Plan:
        file = self._sessions.plan_file
        remembered = recall(file) if file is not None else None
        if remembered is not None:
            return remembered
        cpu, cores = not self.device.on_gpu, settings.cpu_cores()
        sizes = CPU_SIZES if cpu else GPU_SIZES
        requests = cycle([self._example(1) for _ in range(sizes[-1])])
        narrow, names, buckets = self._sessions.narrow, list(self.ordinary_outputs), self._buckets

        def batch(rows: int) -> dict[str, np.ndarray]:
            """The next `rows` requests put together, as the scheduler has to: large inputs make large batches dear."""
            taken = [next(requests) for _ in range(rows)]
            if rows == 1:
                return taken[0]
            return {name: np.concatenate([request[name] for request in taken]) for name in taken[0]}

        def run(rows: int) -> object:
            inputs = batch(rows)
            if buckets is None:
                return narrow.run(names, inputs)
            buckets.prepare(inputs, names)
            return buckets.run(inputs, names)

        wide = self._sessions.wide(cores) if cpu and cores > 1 and self._sessions.shared else None
        plan = measure(
            run,
            None if wide is None else lambda rows: wide.run(names, batch(rows)),
            sizes=sizes,
            executors=self.device.executors,
            threads=cores,
            budget=settings.plan_seconds,
        )
        if plan.threads_alone == 1:
            self._sessions.drop_wide()
        if file is not None:
            keep(plan, file)
        return plan

    def _warm_up(self) -> float:
        """Run every batch size that will come, so that no request pays for a first use; seconds per input element."""
        if self._free_axis is None:
            return 0.0
        sizes: Sequence[int] = sorted({1, self.batch_limit})
        if self._buckets is not None and self.batched:
            self._buckets.limit_to(self.batch_limit)
            sizes = self._buckets.sizes
        seconds = 0.0
        for rows in sizes:
            inputs = self._example(rows)
            if self._buckets is not None and self.batched:
                self._buckets.prepare(inputs, self.ordinary_outputs)
            self.run(inputs, self.ordinary_outputs, alone=True)
            started = time.perf_counter()
            self.run(inputs, self.ordinary_outputs, alone=False)
            seconds = (time.perf_counter() - started) / max(1, _elements(inputs))
        return seconds

    def _count_kernels(self) -> None:
        """Find out whether the library's kernels are what runs: a graph need not have an operator that it knows."""
        kernels, use = self._sessions.kernels, self.kernel_use
        if kernels is None or use is None or self._free_axis is None:
            return
        names, example = list(self.ordinary_outputs), self._example(1)
        calls = kernels.calls_during(lambda: self._sessions.narrow.run(names, example))
        reason = "" if calls else "it has no kernel for an operator of this graph"
        self.kernel_use = replace(use, calls_per_run=calls, reason=reason)

    def _example(self, rows: int, size: int | None = None) -> dict[str, np.ndarray]:
        """Valid inputs: the batch axis as given, other dynamic axes of `size`, or of the size that is known to run."""
        free = size or self._free_axis or 1
        example = {}
        for spec in self.inputs:
            shape = [axis if axis >= 0 else free for axis in spec.shape]
            if spec.shape[:1] == (-1,):
                shape[0] = rows
            if spec.datatype == "BYTES":
                example[spec.name] = np.full(shape, "", dtype=object)
            else:
                example[spec.name] = np.zeros(shape, dtype=NUMPY_TYPES[spec.datatype])
        return example

    def _adopt_manifest(self, manifest: Manifest) -> None:
        """Take the manifest's axis names after checking that it and the graphs say the same."""
        ordinary = tuple(spec for spec in manifest.outputs if not spec.on_request)
        _compare(GRAPH, "input", self.inputs, manifest.inputs)
        _compare(GRAPH, "output", self.outputs, ordinary)
        if ordinary != manifest.outputs:
            session = self._sessions.explaining()
            _compare(EXPLAIN, "input", map(_spec, session.get_inputs()), manifest.inputs)
            _compare(EXPLAIN, "output", map(_spec, session.get_outputs()), manifest.outputs)
            self._sessions.drop_explaining()
        self.inputs, self.outputs = manifest.inputs, manifest.outputs


def _compare(graph: str, kind: str, specs: Iterable[TensorSpec], declared: Iterable[TensorSpec]) -> None:
    """Raises BrokenBundle when the manifest's declaration is not what the graph has."""
    found = [(spec.name, spec.datatype, spec.shape) for spec in specs]
    said = [(spec.name, spec.datatype, spec.shape) for spec in declared]
    if found != said:
        raise BrokenBundle(f"{MANIFEST} lists the {kind}s as {said}, but {graph} has {found}")


def _elements(inputs: Mapping[str, np.ndarray]) -> int:
    return sum(tensor.size for tensor in inputs.values())


def _shrinking() -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _spec(node: ort.NodeArg) -> TensorSpec:
    if node.type not in DATATYPES:
        raise BrokenBundle(f"{node.name} is a {node.type}, which no protocol here can carry")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    axes = tuple(size if isinstance(size, str) else "" for size in node.shape)
    return TensorSpec(name=node.name, datatype=DATATYPES[node.type], shape=shape, axes=axes)
