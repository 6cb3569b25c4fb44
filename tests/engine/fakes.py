"""A runtime of known behaviour, for tests of the line and the scheduler that need failures and long runs on demand."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from app.engine.runtime import Model
from app.errors import DeviceFailed, InferenceFailed

POISON, FATAL = -1.0, -2.0
"""Input values that make a batch fail, or the device."""


class Line:
    """Notes which models a repository makes known and retires."""

    def __init__(self) -> None:
        self.known: list[Model] = []

    def register(self, model: Model) -> None:
        self.known.append(model)

    def retire(self, model: Model) -> None:
        self.known.remove(model)


class DoublingModel:
    """Input "x" (rows, 3) -> output "y" = 2 x. Rows holding POISON fail their whole batch, as a graph would."""

    def __init__(self, name: str = "double", *, batch_limit: int = 4) -> None:
        self.name, self.version = name, "1"
        self.batch_rows = batch_limit
        self.batch_elements, self.batched, self.seconds_per_element = 3 * batch_limit, True, 1e-4
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], *, alone: bool) -> list[np.ndarray]:
        self.gate.wait(10)
        x = inputs["x"]
        self.batches.append(len(x))
        if (x == FATAL).any():
            raise DeviceFailed("the device is lost")
        if (x == POISON).any():
            raise InferenceFailed("poisoned")
        return [x * 2 for _ in outputs]


class DyingModel(DoublingModel):
    """Ends the thread that runs it."""

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], *, alone: bool) -> list[np.ndarray]:
        raise SystemExit
