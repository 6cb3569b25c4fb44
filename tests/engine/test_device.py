"""Choosing the device: what is asked for, what the driver says, what ONNX Runtime can load."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from app.engine import device
from app.settings import Settings


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that reports a GPU."""
    monkeypatch.setattr(device, "cuda_devices", lambda: (1, "the CUDA driver reports 1 device(s)"))
    monkeypatch.setattr(device, "gpu_identity", lambda: "a GPU 13000")


def test_cpu_when_it_is_asked_for(with_gpu: None):
    chosen = device.choose(Settings(device="cpu"))
    assert (chosen.kind, chosen.providers) == ("cpu", (("CPUExecutionProvider", {}),))
    assert (chosen.executors, chosen.reserve) == (Settings().cpu_cores(), 1)


def test_cpu_when_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "cuda_devices", lambda: (0, "no CUDA driver"))
    assert device.choose(Settings(device="auto")).kind == "cpu"
    with pytest.raises(ValueError, match="no CUDA driver"):
        device.choose(Settings(device="cuda"))


def test_gpu_whose_libraries_are_missing_is_said_not_hidden(with_gpu: None, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime itself would print an error and run on the CPU under the name of CUDA."""
    monkeypatch.setattr(device, "_provider_fault", lambda: "the CUDA provider cannot be loaded (libcublasLt.so.13)")
    chosen = device.choose(Settings(device="auto"))
    assert (chosen.kind, chosen.reason) == ("cpu", "the CUDA provider cannot be loaded (libcublasLt.so.13)")
    with pytest.raises(ValueError, match="libcublasLt"):
        device.choose(Settings(device="cuda"))


def test_gpu_when_its_libraries_load(with_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "_provider_fault", lambda: None)
    chosen = device.choose(Settings(device="auto"))
    assert (chosen.kind, chosen.executors, chosen.reserve) == ("cuda", 2, 0)
    assert [name for name, _ in chosen.providers] == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_tensorrt_comes_before_cuda_where_it_is_asked_for(with_gpu: None, monkeypatch: pytest.MonkeyPatch):
    """Engines hold for one GPU, one driver and one TensorRT."""
    monkeypatch.setattr(device, "_provider_fault", lambda: None)
    monkeypatch.setattr(device, "_tensorrt_fault", lambda: None)
    monkeypatch.setattr(device, "_tensorrt_version", lambda: 101300)
    chosen = device.choose(Settings(device="tensorrt"))
    assert (chosen.kind, chosen.on_gpu, chosen.identity) == ("tensorrt", True, "a GPU 13000 TensorRT 101300")
    assert [name for name, _ in chosen.providers] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]


def test_tensorrt_that_is_missing_ends_the_start(with_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "_provider_fault", lambda: None)
    monkeypatch.setattr(device, "_tensorrt_fault", lambda: "no libnvinfer.so.10")
    with pytest.raises(ValueError, match="device is set to tensorrt, but no libnvinfer"):
        device.choose(Settings(device="tensorrt"))
    assert device.choose(Settings(device="auto")).kind == "cuda"


def test_library_that_a_provider_needs_is_named(tmp_path: Path):
    present = device._provider("shared")
    assert device._missing_library(present) is None
    assert device._missing_library(present, tmp_path / "libnvinfer.so.10", present) == "libnvinfer.so.10"


def test_tensorrt_of_the_python_packages_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They keep their libraries in a package `tensorrt_libs`, without an __init__.py that would load them."""
    assert device._tensorrt_libraries() == []
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    for name in ("libnvonnxparser.so.10", "libnvinfer.so.10", "libnvinfer_plugin.so.10"):
        (folder / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert device._tensorrt_libraries() == [folder / "libnvinfer.so.10", folder / "libnvonnxparser.so.10"]


def test_tensorrt_s_version_is_asked_through_its_provider(monkeypatch: pytest.MonkeyPatch):
    """TensorRT may lie anywhere, and the loader looks for a name in all that a handle's library needs."""
    assert ctypes.CDLL(str(device._provider("shared"))).strlen(b"four") == 4  # of the C library

    class Needing:
        def __init__(self, path: str) -> None:
            assert path == str(device._provider("tensorrt"))

        def getInferLibVersion(self) -> int:  # noqa: N802
            return 101300

    monkeypatch.setattr(ctypes, "CDLL", Needing)
    assert device._tensorrt_version() == 101300


def test_gpu_is_identified_by_its_driver(monkeypatch: pytest.MonkeyPatch):
    """The driver API's calls (docs.nvidia.com, "CUDA Driver API"), as a driver would answer them."""

    class Driver:
        @staticmethod
        def cuDriverGetVersion(version: Any) -> int:  # noqa: N802
            version._obj.value = 13000
            return 0

        @staticmethod
        def cuDeviceGet(number: Any, ordinal: int) -> int:  # noqa: N802
            number._obj.value = ordinal + 5
            return 0

        @staticmethod
        def cuDeviceGetName(name: Any, size: int, number: ctypes.c_int) -> int:  # noqa: N802
            assert (size, number.value) == (256, 5)
            name.value = b"NVIDIA H200"
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver)
    assert device.gpu_identity() == "NVIDIA H200 13000"


def test_gpu_options_are_the_settings(with_gpu: None, monkeypatch: pytest.MonkeyPatch):
    """Names of ONNX Runtime's CUDA provider options; "1" and "0" are its booleans."""
    monkeypatch.setattr(device, "_provider_fault", lambda: None)
    (_, options), _ = device.choose(Settings(device="cuda")).providers
    assert options == {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    (_, options), _ = device.choose(Settings(device="cuda", gpu_memory_bytes=1 << 30, cuda_graphs=True)).providers
    assert (options["gpu_mem_limit"], options["enable_cuda_graph"]) == ("1073741824", "1")
