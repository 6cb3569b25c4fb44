"""Batches on a GPU: padded to powers of two, so that the device meets few shapes, all of them prepared.

Each bucket has its inputs and outputs at fixed places in the device's memory (ONNX Runtime's IO binding): nothing is
allocated for a batch, and what the GPU did for a bucket once can be replayed as a CUDA graph, which wants the same
shapes and addresses every time. onnxruntime.ai, "CUDA Execution Provider", "Using CUDA Graphs".
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

NO_GRAPH = "-1"
"""The graph id of a run that neither captures nor replays."""

CAPTURING_RUNS = 3
"""ONNX Runtime runs a graph as usual before it captures it; after so many runs it has been replayed once."""

Key = tuple[int, tuple[tuple[str, tuple[int, ...]], ...], tuple[str, ...]]
"""Bucket, the inputs' shapes past the batch, outputs."""


class Buckets:
    """Runs batches of one session. limit: rows of the largest bucket.

    Batches of one bucket take turns in its buffers. graphs: the session was made with CUDA graphs; ONNX Runtime forbids
    runs beside each other then, so all of them take turns. engine: the session of what is prepared, if it is another.
    """

    def __init__(
        self, session: ort.InferenceSession, limit: int, *, graphs: bool, engine: ort.InferenceSession | None = None
    ) -> None:
        self._session, self._limit, self._graphs = session, limit, graphs
        self._engine = session if engine is None else engine
        self._memory = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
        self._prepared: dict[Key, _Bound] = {}
        self._graph = 0
        self._turn = threading.Lock()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of every bucket."""
        powers = (1 << exponent for exponent in range(self._limit.bit_length()))
        return tuple(sorted({*(size for size in powers if size < self._limit), self._limit}))

    def limit_to(self, limit: int) -> None:
        """Have no bucket of more rows, and drop the buffers of those that were prepared."""
        self._limit = limit
        self._prepared = {key: bound for key, bound in self._prepared.items() if key[0] in self.sizes}

    def prepare(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> None:
        """Make the bucket of these inputs, a batch of one of `sizes`: buffers, and with graphs the captured graph.

        Strings have no place on a device; a model with any is run without buffers.
        """
        key = _key(len(next(iter(inputs.values()))), inputs, outputs)
        if key in self._prepared or any(tensor.dtype == object for tensor in inputs.values()):
            return
        with self._turn:
            results = self._engine.run(list(outputs), dict(inputs), self._options(NO_GRAPH))
            if any(result.dtype == object for result in results):
                return
            self._graph += 1
            options = self._options(str(self._graph))
            bound = _Bound(self._engine, inputs, dict(zip(outputs, results, strict=True)), self._memory, options)
            for _ in range(CAPTURING_RUNS if self._graphs else 1):
                bound.run(inputs)
            self._prepared[key] = bound

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """The outputs' rows. An empty batch is padded to one row: graphs that reshape cannot divide nothing."""
        rows = len(next(iter(inputs.values())))
        bucket = min(1 << max(0, rows - 1).bit_length(), self._limit)
        bound = self._prepared.get(_key(bucket, inputs, outputs))
        if bound is not None and rows <= bucket:
            with self._turn if self._graphs else bound.turn:
                return bound.run(inputs)
        missing = max(0, bucket - rows)
        padded = {name: _append_rows(tensor, missing) if missing else tensor for name, tensor in inputs.items()}
        return [tensor[:rows] for tensor in self.run_unpadded(padded, outputs)]

    def run_unpadded(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Run inputs of any shape as they are, without buffers of their own."""
        if not self._graphs:
            return list(self._session.run(list(outputs), dict(inputs)))
        with self._turn:
            return list(self._session.run(list(outputs), dict(inputs), self._options(NO_GRAPH)))

    def _options(self, graph: str) -> ort.RunOptions:
        options = ort.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", graph)
        return options


class _Bound:
    """One bucket's buffers and the run that is bound to them."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        memory: str,
        options: ort.RunOptions,
    ) -> None:
        self._session, self._options = session, options
        self.turn = threading.Lock()
        self._binding = session.io_binding()
        self._host = {name: np.zeros_like(tensor) for name, tensor in inputs.items()}
        self._inputs = {name: ort.OrtValue.ortvalue_from_numpy(self._host[name], memory) for name in inputs}
        self._outputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(tensor.shape, tensor.dtype.type, memory)
            for name, tensor in outputs.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs' rows for at most as many rows as the bucket has; what is missing is zero."""
        rows = len(next(iter(inputs.values())))
        for name, tensor in inputs.items():
            host = self._host[name]
            host[:rows] = tensor
            host[rows:] = 0
            self._inputs[name].update_inplace(host)
        self._session.run_with_iobinding(self._binding, self._options)
        # The buffers are the next batch's, too.
        return [value.numpy()[:rows].copy() for value in self._outputs.values()]


def _key(bucket: int, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Key:
    return bucket, tuple((name, tensor.shape[1:]) for name, tensor in inputs.items()), tuple(outputs)


def blank_rows(tensor: np.ndarray, count: int) -> np.ndarray:
    """So many rows of zeros or empty strings, like the tensor's own."""
    return np.full((count, *tensor.shape[1:]), "" if tensor.dtype == object else 0, tensor.dtype)


def _append_rows(tensor: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([tensor, blank_rows(tensor, count)])
