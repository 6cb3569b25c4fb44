"""The kernel library of `make kernels`, built once for the tests, and libraries that cannot be used."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "build" / "kernels" / "libkronserve_kernels.so"
HEADERS = os.environ.get("ORT_HEADERS", "build/onnxruntime/include")

SOURCES = {
    "version": "int kronserve_kernels_version(void) { return 99; }\n"
    "unsigned long long kronserve_kernels_calls(void) { return 0; }\n",
    "stranger": "int nothing(void) { return 0; }\n",
    "no entry": "int kronserve_kernels_version(void) { return 1; }\n"
    "unsigned long long kronserve_kernels_calls(void) { return 0; }\n",
}


def compiler() -> str:
    """The C++ compiler; without one the test is skipped."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def library() -> Path:
    """The library as `make kernels` builds it; skipped where that cannot be done."""
    compiler()
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    if not (ROOT / HEADERS / "onnxruntime_cxx_api.h").exists():
        fetched = subprocess.run([ROOT / "kernels/fetch-headers", HEADERS], cwd=ROOT, capture_output=True, check=False)
        if fetched.returncode:
            pytest.skip("ONNX Runtime's headers could not be fetched: no Debian mirror within reach")
    subprocess.run(["make", "--silent", "kernels"], cwd=ROOT, check=True)
    return LIBRARY


def unusable(kind: str, folder: Path) -> Path:
    """A library that the service must do without: of another version, a stranger's, or without RegisterCustomOps."""
    source, target = folder / "library.c", folder / "library.so"
    source.write_text(SOURCES[kind])
    subprocess.run([compiler(), "-x", "c", "-shared", "-fPIC", source, "-o", target], check=True)
    return target
