"""A library with kernels for the operators of `ai.kronserve`, which otherwise run as their functions.

Such a library has ONNX Runtime's own entry point RegisterCustomOps, and two functions of ours:
kronserve_kernels_version, the version of the operators it knows, and kronserve_kernels_calls, how often a kernel has
run in the calling thread. `kernels/` is one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

DOMAIN_VERSION = 1
"""Of `ai.kronserve`, in every graph that the exporter writes."""


class KernelsRefused(Exception):
    """The library cannot be used; the message says why."""


@dataclass(frozen=True)
class KernelUse:
    """What became of the library in one model: kernels that run in one run of it, or why none does."""

    library: str
    calls_per_run: int = 0
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Kernels:
    """An opened library, to be registered in the options of sessions."""

    def __init__(self, path: Path) -> None:
        """Raises KernelsRefused: no such file, not a library, without our functions, or for another version."""
        self.path = path.resolve()
        if not self.path.is_file():
            raise KernelsRefused("there is no such file")
        try:
            library = ctypes.CDLL(str(self.path))
            version = library.kronserve_kernels_version
            self._calls = library.kronserve_kernels_calls
        except OSError as error:
            raise KernelsRefused(f"it cannot be loaded: {_without_paths(str(error))}") from error
        except AttributeError as error:
            raise KernelsRefused("it lacks kronserve_kernels_version or kronserve_kernels_calls") from error
        version.restype, self._calls.restype = ctypes.c_int, ctypes.c_uint64
        if (found := version()) != DOMAIN_VERSION:
            raise KernelsRefused(f"its kernels are for version {found} of ai.kronserve, models have {DOMAIN_VERSION}")

    def register(self, options: ort.SessionOptions) -> None:
        """Let a session use the kernels. Raises KernelsRefused when ONNX Runtime does not take the library."""
        try:
            options.register_custom_ops_library(str(self.path))
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise KernelsRefused(f"ONNX Runtime refuses it: {_without_paths(str(error))}") from error

    def calls_during(self, run: Callable[[], object]) -> int:
        """Kernels that ran in this thread while `run` did."""
        before = self._calls()
        run()
        return int(self._calls() - before)


def _without_paths(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "unknown error"
    return " ".join(word for word in line.split() if "/" not in word)[:300]
