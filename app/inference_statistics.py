"""Counts and times per model, for the protocol's statistics extension (triton-inference-server, "Statistics").

Totals of a name and version go on when its files are replaced; they end with the process.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.engine.queueing import Batch
    from app.engine.scheduler import BatchTimes, Runnable
    from app.errors import KronserveError


@dataclass(slots=True)
class _Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass(slots=True)
class _Phases:
    compute_input: _Duration = field(default_factory=_Duration)
    compute_infer: _Duration = field(default_factory=_Duration)
    compute_output: _Duration = field(default_factory=_Duration)

    def add(self, times: BatchTimes, count: int) -> None:
        self.compute_input.add(times.stack * count, count)
        self.compute_infer.add(times.infer * count, count)
        self.compute_output.add(times.split * count, count)

    def as_dict(self) -> dict[str, Any]:
        return {
            "compute_input": self.compute_input.as_dict(),
            "compute_infer": self.compute_infer.as_dict(),
            "compute_output": self.compute_output.as_dict(),
        }


@dataclass(slots=True)
class _OfModel:
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    phases: _Phases = field(default_factory=_Phases)
    batches: dict[int, _Phases] = field(default_factory=dict)
    inferences: int = 0
    executions: int = 0
    last: float = 0.0


class InferenceStatistics:
    """An observer of the scheduler; every method may be called from any thread."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], _OfModel] = {}
        self._lock = threading.Lock()

    def batch_done(self, batch: Batch, waited: list[float], times: BatchTimes) -> None:
        """Count one executed batch: `waited` holds the seconds in the queue of each request that began in it."""
        model, rows = batch.model, batch.rows
        with self._lock:
            of_model = self._of(model.name, model.version)
            of_model.inferences += rows
            of_model.executions += 1
            of_model.last = time.time()
            of_model.queue.add(sum(waited), len(waited))
            # As the extension has it: a request's time is that of the whole batch it was in.
            of_model.phases.add(times, len(waited))
            if rows not in of_model.batches:
                of_model.batches[rows] = _Phases()
            of_model.batches[rows].add(times, 1)

    def request_done(self, model: Runnable, seconds: float, error: KronserveError | None) -> None:
        """Count one request that ended, `seconds` after it arrived; one refused at admission took none."""
        with self._lock:
            of_model = self._of(model.name, model.version)
            (of_model.success if error is None else of_model.fail).add(seconds)

    def of(self, name: str, version: str) -> dict[str, Any]:
        """One model's entry of `model_stats`."""
        with self._lock:
            of_model = self._of(name, version)
            return {
                "name": name,
                "version": version,
                "last_inference": int(of_model.last * 1000),
                "inference_count": of_model.inferences,
                "execution_count": of_model.executions,
                "inference_stats": {
                    "success": of_model.success.as_dict(),
                    "fail": of_model.fail.as_dict(),
                    "queue": of_model.queue.as_dict(),
                    **of_model.phases.as_dict(),
                },
                "batch_stats": [
                    {"batch_size": rows, **of_model.batches[rows].as_dict()} for rows in sorted(of_model.batches)
                ],
            }

    def _of(self, name: str, version: str) -> _OfModel:
        key = name, version
        of_model = self._models.get(key)
        if of_model is None:
            of_model = self._models[key] = _OfModel()
        return of_model
