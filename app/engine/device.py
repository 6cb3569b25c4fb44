"""Which execution providers can really run here.

onnxruntime-gpu lists CUDAExecutionProvider on machines without a GPU too, so the driver itself is asked.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from app.settings import Settings

logger = logging.getLogger(__name__)

TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class Device:
    """Where models run. `executors`: threads that run batches; `providers`: what ONNX Runtime is given, best first.

    identity: the GPU and the libraries that what is measured or built on it holds for.
    """

    kind: Literal["cpu", "cuda", "tensorrt"]
    reason: str
    executors: int
    providers: tuple[tuple[str, dict[str, Any]], ...]
    identity: str = ""

    @property
    def on_gpu(self) -> bool:
        """Whether batches run on a GPU, by whichever provider."""
        return self.kind != "cpu"

    @property
    def reserve(self) -> int:
        """Shares of the work that batches leave waiting, beside one for each executor.

        An executor without work idles its core; a GPU has the other executor's batch meanwhile, and likes a full one.
        """
        return 0 if self.on_gpu else 1

    @property
    def hold(self) -> float:
        """Seconds for which answers may wait for each other while there is work (`Scheduler` has the rest of it).

        The event loop takes its time from a CPU that computes, and less of it for several answers at once.
        """
        return 0.0 if self.on_gpu else 0.02

    @property
    def lone(self) -> float:
        """Seconds, as expected, for which the event loop may run a lone row itself, and hear nobody meanwhile.

        No thread has to be woken for it then. A GPU that hangs must not hang the event loop.
        """
        return 0.0 if self.on_gpu else 0.01


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


def gpu_identity() -> str:
    """Name of the first GPU and version of its driver, as the driver tells them; call after `cuda_devices`."""
    driver = ctypes.CDLL("libcuda.so.1")
    name, version, number = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if driver.cuDeviceGet(ctypes.byref(number), 0) == 0:
        driver.cuDeviceGetName(name, len(name), number)
    return f"{name.value.decode()} {version.value}"


def _provider_fault() -> str | None:
    """Why ONNX Runtime's CUDA provider cannot be loaded, or None.

    Without its CUDA libraries ONNX Runtime would only print an error and run on the CPU.
    """
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime build has no CUDA provider"
    ort.preload_dlls()
    if library := _missing_library(_provider("shared"), _provider("cuda")):
        return f"the CUDA provider cannot be loaded ({library}); install kronserve[cuda]"
    return None


def _tensorrt_fault() -> str | None:
    """Why ONNX Runtime's TensorRT provider cannot be loaded, or None; the CUDA provider has been."""
    if TENSORRT not in ort.get_available_providers():
        return "this onnxruntime build has no TensorRT provider"
    if library := _missing_library(*_tensorrt_libraries(), _provider("tensorrt")):
        return f"the TensorRT provider cannot be loaded ({library}); install TensorRT as this onnxruntime wants it"
    return None


def _tensorrt_libraries() -> list[Path]:
    """What NVIDIA's Python packages bring, in a folder that the loader does not search; none without them."""
    found = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found is not None else []
    names = ("libnvinfer.so.*", "libnvonnxparser.so.*")  # the parser needs the other
    return [library for folder in folders for name in names for library in sorted(folder.glob(name))]


def _provider(name: str) -> Path:
    return Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"


def _missing_library(*needed: Path) -> str | None:
    """Load a provider, the last of these, after what it needs: the name of the first that is not there, or None."""
    *libraries, provider = needed
    try:
        for library in libraries:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))  # providers have names in common, and must not find each other's
    except OSError as error:
        return str(error).split(":")[0].rsplit("/", 1)[-1]
    return None


def _tensorrt_version() -> int:
    """As TensorRT numbers itself; call after `_tensorrt_fault` has found none."""
    return int(ctypes.CDLL(str(_provider("tensorrt"))).getInferLibVersion())  # of a library that the provider needs


def choose(settings: Settings) -> Device:
    """A GPU when it is wanted and usable, else the CPU. ValueError when one is demanded and cannot be had."""
    wanted = settings.device
    count, reason = cuda_devices()
    if count and wanted != "cpu":
        fault = _provider_fault() or (_tensorrt_fault() if wanted == "tensorrt" else None)
        if fault is not None:
            count, reason = 0, fault
    if wanted in ("cuda", "tensorrt") and not count:
        raise ValueError(f"device is set to {wanted}, but {reason}")
    if count and wanted != "cpu":
        options = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        if settings.gpu_memory_bytes:
            options["gpu_mem_limit"] = str(settings.gpu_memory_bytes)
        if settings.cuda_graphs:
            options["enable_cuda_graph"] = "1"
        providers: tuple[tuple[str, dict[str, str]], ...] = (
            ("CUDAExecutionProvider", options),
            ("CPUExecutionProvider", {}),
        )
        executors = settings.executors or 2
        if wanted != "tensorrt":
            return Device("cuda", reason, executors, providers, gpu_identity())
        identity = f"{gpu_identity()} TensorRT {_tensorrt_version()}"
        return Device("tensorrt", reason, executors, ((TENSORRT, {}), *providers), identity)
    reason = "set by device=cpu" if wanted == "cpu" else reason
    return Device("cpu", reason, settings.executors or settings.cpu_cores(), (("CPUExecutionProvider", {}),))
