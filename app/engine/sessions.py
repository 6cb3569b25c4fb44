"""The ONNX Runtime sessions behind one model.

On a CPU there are up to two on the same weights in memory: a narrow one that runs on its caller's core, for throughput,
and a wide one that spreads a lone request over several. On a GPU there is one, and with TensorRT another for the
batches that it was compiled for; inputs of any other shape would have it compile anew, and go to the first.

Outputs on request have a graph and a session of their own, since ONNX Runtime computes every output of a graph,
whichever are fetched: RunOptions.only_execute_path_to_fetches takes effect in its training builds alone.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from app.engine import compiled, memory
from app.engine.custom_ops import Kernels, KernelsRefused, KernelUse
from app.engine.device import TENSORRT, Device
from app.integrity import GRAPH, MANIFEST, BrokenBundle
from app.settings import Settings

logger = logging.getLogger(__name__)

EXPLAIN = "explain.onnx"

CUDA_GRAPHS = "enable_cuda_graph"
"""The CUDA provider's option; graphs whose nodes do not all run on the GPU are refused with it."""


class CannotCompile(Exception):
    """The graph is broken, or there is no room for its compiled form."""


class Sessions:
    """Opens what a model needs."""

    def __init__(self, folder: Path, device: Device, settings: Settings, kernels: Kernels | None = None) -> None:
        """Open the narrow session of the model in `folder`. Raises BrokenBundle when ONNX Runtime refuses it.

        kernels: for the operators of `ai.kronserve`; raises KernelsRefused when ONNX Runtime does not take them.
        """
        self.kernels = kernels
        self._graph, self._explain_graph, self._device = folder / GRAPH, folder / EXPLAIN, device
        self._compiled: Path | None = None
        self.cuda_graphs = any(CUDA_GRAPHS in options for _, options in device.providers)
        """Whether the narrow session captures CUDA graphs."""
        self.engine: ort.InferenceSession | None = None
        """TensorRT's, for the batches that `build_engine` was given."""
        self._explaining: ort.InferenceSession | None = None
        self._wide: dict[int, ort.InferenceSession] = {}
        self._lock = threading.Lock()
        self._cache, self._name = settings.cache_dir, ""
        self.plan_file: Path | None = None
        fault = None
        if device.on_gpu:
            self._name = compiled.key(self._files(folder), device.identity)
            graphs = "-graphs" if self.cuda_graphs else ""
            self.plan_file = self._cache / f"{self._name}-{device.kind}{graphs}-{device.executors}.plan.json"
        else:
            fault = self._use_compiled(folder, settings)
        self.narrow = self._open(1)  # which says so if it was the graph that could not be compiled
        if fault is not None:
            logger.warning("%s: no room for its compiled form (%s); every session packs its weights", folder, fault)

    def wide(self, threads: int) -> ort.InferenceSession:
        """The session that runs on `threads` cores, opened at its first use."""
        with self._lock:
            if threads not in self._wide:
                self._wide[threads] = self._open(threads)
            return self._wide[threads]

    @property
    def shared(self) -> bool:
        """Whether a second session would share the first one's weights."""
        return self._compiled is not None

    @property
    def mapped_bytes(self) -> int:
        """Memory that the weights take which the narrow and the wide sessions map."""
        return memory.mapped(self._compiled) if self._compiled is not None else 0

    def drop_wide(self) -> None:
        """Close the wide sessions and their threads."""
        with self._lock:
            self._wide.clear()

    def build_engine(
        self, least: Mapping[str, np.ndarray], most: Mapping[str, np.ndarray], building: Callable[[], None]
    ) -> None:
        """Have TensorRT compile the graph for inputs from the size of `least` to that of `most`, or find it compiled.

        building: called before it is compiled, which takes minutes. Of a graph that TensorRT cannot run a warning says
        why; all of its batches stay with the narrow session.
        """
        folder = self._cache / f"{self._name}-tensorrt-{len(next(iter(most.values())))}"
        (_, options), *others = self._device.providers
        options = options | {
            "trt_cuda_graph_enable": str(int(self.cuda_graphs)),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(self._cache),
            "trt_profile_min_shapes": _profile(least),
            "trt_profile_opt_shapes": _profile(most),
            "trt_profile_max_shapes": _profile(most),
        }
        if not any(folder.glob("*.engine")):
            building()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            session = ort.InferenceSession(
                str(self._graph), compiled.session_options(1), providers=[(TENSORRT, options), *_without_graphs(others)]
            )
            if session.get_providers()[0] != TENSORRT:
                raise BrokenBundle("ONNX Runtime could not use it and fell back")
            session.run(None, dict(least))
            if not any(folder.glob("*.engine")):
                raise BrokenBundle("it takes no part of the graph")
        except Exception as error:
            logger.warning("%s runs without TensorRT: %s", self._graph, first_line(str(error)))
        else:
            self.engine = session

    def explaining(self) -> ort.InferenceSession:
        """The session that gives every output, those on request too; opened at its first use. Raises BrokenBundle."""
        with self._lock:
            if self._explaining is None:
                graph = self._explain_graph
                if self._compiled is not None:
                    with contextlib.suppress(CannotCompile):  # a session of the graph itself says what is wrong with it
                        graph = self._compile(graph, self._compiled.with_name(f"{self._compiled.name}-explain"))
                self._explaining = self._open(1, graph)
            return self._explaining

    def drop_explaining(self) -> None:
        """Close that session until it is asked for again."""
        with self._lock:
            self._explaining = None

    def _use_compiled(self, folder: Path, settings: Settings) -> CannotCompile | None:
        """Replace the graph by its compiled form, from the cache, made now or for this run alone; or keep it: why."""
        cache, name = self._cache, compiled.key(self._files(folder))
        try:
            self._graph = self._compile(self._graph, cache / name)
            self._compiled = cache / name
            self.plan_file = cache / f"{name}-{self._device.executors}x{settings.cpu_cores()}.plan.json"
        except CannotCompile as error:
            try:
                temporary = Path(tempfile.mkdtemp(prefix="kronserve-"))
                weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
                self._graph = self._compile(self._graph, temporary / name)
            except (CannotCompile, OSError):
                return error
            self._compiled = temporary / name
            logger.warning("the cache %s cannot be written (%s); compiling for this run alone", cache, error)
        return None

    def _files(self, folder: Path) -> list[Path]:
        """What the model is made of: every file, as a graph may keep its weights anywhere below its folder."""
        files = [file for file in folder.rglob("*") if not file.name.startswith(MANIFEST) and file.is_file()]
        return [*files, *([self.kernels.path] if self.kernels is not None else [])]

    def _register_kernels(self, options: ort.SessionOptions) -> None:
        if self.kernels is not None:
            self.kernels.register(options)

    def _compile(self, graph: Path, folder: Path) -> Path:
        """The compiled form of `graph`, from `folder` or made there. Raises CannotCompile."""
        try:
            return compiled.find(folder) or compiled.build(graph, folder, self._register_kernels)
        except KernelsRefused:
            raise
        except Exception as error:  # ONNX Runtime's share no base of their own, those of a full disk among them
            raise CannotCompile(getattr(error, "strerror", None) or first_line(str(error))) from error

    def _open(self, threads: int, graph: Path | None = None) -> ort.InferenceSession:
        options = compiled.session_options(threads)
        self._register_kernels(options)
        source = graph or self._graph
        if self._compiled is not None and source.parent.name.startswith(self._compiled.name):  # optimised already
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = [(name, dict(settings)) for name, settings in self._device.providers if name != TENSORRT]
        if graph is not None or not self.cuda_graphs:
            providers = _without_graphs(providers)
        try:
            session = ort.InferenceSession(str(source), options, providers=providers)
        except Exception as error:
            if graph is None and self.cuda_graphs:
                logger.warning("%s runs without CUDA graphs: %s", self._graph, first_line(str(error)))
                self.cuda_graphs = False
                return self._open(threads)
            name = EXPLAIN if graph else GRAPH
            raise BrokenBundle(f"ONNX Runtime cannot load {name}: {first_line(str(error))}") from error
        if session.get_providers()[0] != providers[0][0]:
            raise BrokenBundle(f"ONNX Runtime could not use {providers[0][0]} and fell back")
        return session


def _without_graphs(providers: Iterable[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The providers, without CUDA's option to capture graphs."""
    return [(name, {k: v for k, v in given.items() if k != CUDA_GRAPHS}) for name, given in providers]


def _profile(inputs: Mapping[str, np.ndarray]) -> str:
    """Input shapes as the TensorRT provider's options spell them."""
    return ",".join(f"{name}:{'x'.join(map(str, tensor.shape))}" for name, tensor in inputs.items())


def open_sessions(folder: Path, device: Device, settings: Settings) -> tuple[Sessions, KernelUse | None]:
    """The sessions of the model in `folder`, with the kernels of the operator's library if it can be used.

    When it cannot, a warning says why and the operators run as their functions; None without a library.
    Raises BrokenBundle.
    """
    path = settings.custom_ops
    if path is None:
        return Sessions(folder, device, settings), None
    try:
        return Sessions(folder, device, settings, Kernels(path)), KernelUse(path.name)
    except (KernelsRefused, BrokenBundle) as error:
        reason = str(error)
    sessions = Sessions(folder, device, settings)  # a graph that is broken by itself ends here
    model = f"{folder.parent.name}/{folder.name}"
    logger.warning("%s runs without the kernels of %s: %s", model, path.name, reason)
    return sessions, KernelUse(path.name, reason=reason)


def first_line(text: str) -> str:
    """What ONNX Runtime says, without file paths and without its later lines."""
    line = text.strip().splitlines()[0] if text.strip() else "unknown error"
    return " ".join(word for word in line.split() if "/" not in word)[:300]
