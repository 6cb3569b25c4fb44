"""The arrows between packages, and what serving must not need."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "app": {"torch", "models", "train", "export"},
    "models": {"app", "train", "export"},
    "train": {"export"},
    "export": set(),
}
LAYERS = ["api", "tasks", "engine"]
"""Folders of app/, highest first: none imports one above it."""


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_along_the_arrows(package: str):
    for file in (ROOT / package).rglob("*.py"):
        wrong = {name for name in imports(file) if name.split(".")[0] in FORBIDDEN[package]}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_the_service_import_only_downwards(layer: str):
    above = [f"app.{name}" for name in LAYERS[: LAYERS.index(layer)]] + ["app.main", "app.service"] * (layer != "api")
    for file in (ROOT / "app" / layer).rglob("*.py"):
        wrong = {name for name in imports(file) for prefix in above if name.startswith(prefix)}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_the_wall_clock_is_shown_and_never_reckoned_with():
    """A clock that is put forward or back moves no deadline, no wait and no rate: those are of the monotonic one."""
    # When a model was last asked, when a forecast was made, when a span was.
    shown = {"inference_statistics.py", "timeseries.py", "timeline.py"}
    reading = re.compile(r"\btime\.time(_ns)?\b|\b(datetime|date)\.(now|utcnow|today)\b|from time import")
    found = {file.name for file in (ROOT / "app").rglob("*.py") if reading.search(file.read_text())}
    assert found == shown


def test_grpc_is_needed_by_its_own_folder_alone():
    """An extra: everything else must import without it."""
    for file in (ROOT / "app").rglob("*.py"):
        if (ROOT / "app/api/grpc") not in file.parents:
            wrong = {name for name in imports(file) if name.split(".")[0] in {"grpc", "grpc_health", "google"}}
            assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_tracing_is_needed_by_its_own_file_alone_and_imported_when_asked_for():
    for file in (ROOT / "app").rglob("*.py"):
        if file != ROOT / "app/tracing.py":
            wrong = {name for name in imports(file) if name.split(".")[0] == "opentelemetry"}
            assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"
    code = "import sys, app.main; app.main.create_app(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    # FastAPI itself imports OpenTelemetry's API.
    assert not {"app.tracing", "opentelemetry.sdk", "opentelemetry.exporter"} & set(result.stdout.split())


def test_running_service_has_not_imported_torch():
    """Not even through a dependency; in a process of its own, since the tests themselves use torch."""
    code = "import sys, app.main; app.main.create_app(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "False"


def test_base_dependencies_bring_no_torch():
    """What `pip install .` without extras installs, followed through the installed packages' own requirements."""
    seen: set[str] = set()
    waiting = ["kronserve"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue  # excluded by an environment marker
        waiting += [
            re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
            for requirement in needed
            if "extra ==" not in requirement
        ]
    assert "onnxruntime-gpu" in seen
    assert not seen & {"torch", "onnx", "onnxscript", "safetensors"}
