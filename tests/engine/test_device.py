"""Choosing the device: what is asked for, what the driver says, what ONNX Runtime can load."""

from __future__ import annotations

import pytest

from app.engine import device
from app.settings import Settings


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that reports a GPU."""
    monkeypatch.setattr(device, "cuda_devices", lambda: (1, "the CUDA driver reports 1 device(s)"))


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


def test_gpu_options_are_the_settings(with_gpu: None, monkeypatch: pytest.MonkeyPatch):
    """Names of ONNX Runtime's CUDA provider options; "1" and "0" are its booleans."""
    monkeypatch.setattr(device, "_provider_fault", lambda: None)
    (_, options), _ = device.choose(Settings(device="cuda")).providers
    assert options == {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    (_, options), _ = device.choose(Settings(device="cuda", gpu_memory_bytes=1 << 30, cuda_graphs=True)).providers
    assert (options["gpu_mem_limit"], options["enable_cuda_graph"]) == ("1073741824", "1")
