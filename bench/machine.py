"""What the figures were measured on, for the report's first lines."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.cells import cores
from bench.environments import REQUIREMENTS
from bench.load import require_wrk


def describe() -> dict[str, Any]:
    """Processor, cores, memory, load at the start, and every version that matters."""
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_at_start": psutil.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "kronserve": version("kronserve"),
        "commit": _commit(),
        "onnxruntime": _onnxruntime(),
        "uvicorn": version("uvicorn"),
        "generator": require_wrk(),
        "peers": {file.stem: _requirements(file) for file in sorted(REQUIREMENTS.glob("*.txt"))},
    }


def _onnxruntime() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    features = next((value.split() for name, value in fields.items() if name.strip() == "flags"), [])
    model = next((value.strip() for name, value in fields.items() if name.strip() == "model name"), platform.machine())
    return model + (", AVX-512" if "avx512f" in features else ", AVX2" if "avx2" in features else "")


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _requirements(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
