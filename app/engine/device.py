"""Which execution providers can really run here.

onnxruntime-gpu lists CUDAExecutionProvider on machines without a GPU too, so the driver itself is asked.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from app.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """Where models run. `executors`: threads that run batches; `providers`: what ONNX Runtime is given, best first."""

    kind: Literal["cpu", "cuda"]
    reason: str
    executors: int
    providers: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def reserve(self) -> int:
        """Shares of the work that batches leave waiting, beside one for each executor.

        An executor without work idles its core; a GPU has the other executor's batch meanwhile, and likes a full one.
        """
        return 1 if self.kind == "cpu" else 0


@functools.cache
def cuda_devices() -> tuple[int, str]:
    """Number of GPUs that the CUDA driver reports, and why it is that number."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "no CUDA driver (libcuda.so.1) on this machine"
    if (status := driver.cuInit(0)) != 0:
        return 0, f"the CUDA driver does not start (cuInit returned {status})"
    found = ctypes.c_int()
    if (status := driver.cuDeviceGetCount(ctypes.byref(found))) != 0:
        return 0, f"the CUDA driver lists no devices (cuDeviceGetCount returned {status})"
    return found.value, f"the CUDA driver reports {found.value} device(s)"


def _provider_fault() -> str | None:
    """Why ONNX Runtime's CUDA provider cannot be loaded, or None.

    Without its CUDA libraries ONNX Runtime would only print an error and run on the CPU.
    """
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime build has no CUDA provider"
    ort.preload_dlls()
    folder = Path(ort.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        library = str(error).split(":")[0].rsplit("/", 1)[-1]
        return f"the CUDA provider cannot be loaded ({library}); install kronserve[cuda]"
    return None


def choose(settings: Settings) -> Device:
    """CUDA when it is wanted and usable, else the CPU. ValueError when CUDA is demanded and cannot be had."""
    count, reason = cuda_devices()
    if count and settings.device != "cpu" and (missing := _provider_fault()):
        count, reason = 0, missing
    if settings.device == "cuda" and not count:
        raise ValueError(f"device is set to cuda, but {reason}")
    if count and settings.device != "cpu":
        options = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        if settings.gpu_memory_bytes:
            options["gpu_mem_limit"] = str(settings.gpu_memory_bytes)
        if settings.cuda_graphs:
            options["enable_cuda_graph"] = "1"
        cuda = ("CUDAExecutionProvider", options)
        return Device("cuda", reason, settings.executors or 2, (cuda, ("CPUExecutionProvider", {})))
    reason = "set by device=cpu" if settings.device == "cpu" else reason
    return Device("cpu", reason, settings.executors or settings.cpu_cores(), (("CPUExecutionProvider", {}),))
