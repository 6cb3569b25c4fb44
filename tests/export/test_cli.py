"""`kronserve export`, `kronserve inspect` and `kronserve verify` as processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest

from export.bundle_cli import inspect, verify
from export.cli import export
from tests.export.conftest import Exported
from train.calibrate import calibrate
from train.cli import evaluate

ROOT = Path(__file__).resolve().parents[2]


def _run(command: str, *arguments: str | Path, block: str = "") -> subprocess.CompletedProcess[str]:
    """`kronserve COMMAND ...` in a fresh interpreter; `block` names a module that cannot be imported there."""
    module = "cli" if command == "export" else "bundle_cli"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({block.split()!r})); "
        f"from export.{module} import {command}; sys.exit({command}(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


def test_export_writes_a_bundle_and_reports_its_parity(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint("forecaster-sum")
    (source / "training.json").write_text('{"recipe": "mine.toml"}')  # another trainer's, with other things in it
    done = _run(
        "export",
        source,
        *("--name", "hourly", "--version", "3", "--repository", tmp_path / "repository"),
        *("--report", tmp_path / "report.txt"),
        *("--opset", "21", "--frequency", "h", "--variates", "a, b", "--data-licence", "CC0"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "parity: worst " in done.stdout
    # The report names every shape of the grid, its two longest axes among them, and every check.
    for part in ("1x321x24", "33x21x24", "random walk", "passed  model.onnx: reference evaluator"):
        assert part in done.stdout
    assert (tmp_path / "report.txt").read_text() in done.stdout
    bundle = tmp_path / "repository" / "hourly" / "3"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["task"]["frequency"] == "h"
    assert manifest["task"]["variates"] == ["a", "b"]
    assert manifest["data_licence"] == "CC0"
    assert manifest["provenance"]["training"] == {"recipe": "mine.toml"}
    assert manifest["provenance"]["opset"] == 21
    assert {entry.domain: entry.version for entry in onnx.load(bundle / "model.onnx").opset_import}[""] == 21


def test_failed_parity_exits_with_the_worst_case(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    bundle = exports("forecaster-sum").folder
    done = _run("export", bundle, "--name", "m", "--version", "1", "--repository", tmp_path / "r", "--tolerance", "0")
    assert done.returncode == 1
    assert "parity failed: relative error" in done.stderr
    assert "inputs of shape (" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_faults_are_one_line_without_a_traceback(tmp_path: Path) -> None:
    done = _run("export", tmp_path / "nowhere", "--name", "m", "--version", "1", "--repository", tmp_path / "r")
    assert done.returncode == 1
    assert done.stderr == f"kronserve export: {tmp_path / 'nowhere'}: no such folder\n"
    target = ("--name", "m", "--version", "1", "--repository", tmp_path / "r")
    for report in (tmp_path / "gone" / "report.txt", tmp_path):  # seen before anything is exported
        done = _run("export", tmp_path / "nowhere", *target, "--report", report)
        assert done.returncode == 1
        assert done.stderr == f"kronserve export: --report {report}: not a file in a folder that exists\n"
    done = _run("verify", tmp_path / "nosuch")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"kronserve verify: {tmp_path / 'nosuch'}: no such folder\n"
    done = _run("inspect", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"kronserve inspect: {tmp_path / 'manifest.json'}: No such file or directory\n"


@pytest.mark.parametrize("command", ["export", "inspect", "verify"])
def test_help_has_examples(command: str) -> None:
    done = _run(command, "--help", block="torch onnx")
    assert done.returncode == 0
    assert f"kronserve {command} " in done.stdout.partition("examples:")[2]


def test_a_missing_extra_is_named(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    bundle = exports("forecaster-sum").folder
    done = _run("export", bundle, "--name", "m", "--version", "1", "--repository", tmp_path, block="torch")
    assert done.returncode == 1
    assert "torch is missing; install kronserve[export]" in done.stderr


def test_inspect_tells_what_the_bundle_is_without_torch(exports: Callable[[str], Exported]) -> None:
    exported = exports("classifier-product")
    parameters = sum(parameter.numel() for parameter in exported.module.parameters())
    done = _run("inspect", exported.folder, "--json", block="torch")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described["graph"]["parameters"] == parameters
    assert described["graph"]["operators"]["ai.kronserve.HotProduct3"] == exported.config.depth
    assert described["graph"]["functions"].keys() == {"ai.kronserve.HotProduct3"}
    assert described["parity"] == exported.manifest.model_dump(mode="json")["parity"]
    done = _run("inspect", exported.folder, block="torch")
    assert f"{parameters:,}" in done.stdout
    assert "volume FP32 [batch, channel 1, depth 8, height 12, width 16]" in done.stdout
    assert "logits FP32 [batch, class 3]" in done.stdout
    assert f"{described['cost']['flops'] / 1e6:,.1f} MFLOP" in done.stdout
    assert "reference evaluator" in done.stdout


def test_inspect_leaves_the_numbers_of_intervals_to_json(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(Path(__file__).parents[2] / "model_repository/hot-etth1/1")
    inspect([bundle])
    printed = capsys.readouterr().out
    assert "intervals=val, 2161 windows" in printed
    assert max(map(len, printed.splitlines())) < 1500
    inspect([bundle, "--json"])
    assert len(json.loads(capsys.readouterr().out)["task"]["intervals"]["errors"]["OT"]) == 15


def test_a_broken_manifest_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "r" / "m" / "1"
    bundle.mkdir(parents=True)
    for name, content in (("manifest.json", "{}"), ("weights.safetensors", ""), ("model.onnx", "")):
        (bundle / name).write_text(content)
    commands = (
        partial(inspect, [str(bundle)]),
        partial(calibrate, [str(bundle)]),
        partial(evaluate, ["m", "--repository", str(tmp_path / "r")]),
        partial(export, [str(bundle), "--name", "m", "--version", "2"]),
    )
    for command in commands:
        assert command() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "manifest.json is not valid: name: Field required (and " in line
    assert verify([str(bundle)]) == 1
    assert "manifest.json is not valid: name: Field required" in capsys.readouterr().out


def test_verify_needs_no_torch_and_exits_by_what_it_finds(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    bundle = exports("classifier-product").folder
    done = _run("verify", bundle, block="torch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "6 recorded in float64" in done.stdout
    broken = tmp_path / bundle.parent.name / bundle.name
    shutil.copytree(bundle, broken)
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "weights.safetensors").write_bytes(weights)
    done = _run("verify", broken, "--json", block="torch")
    assert done.returncode == 1
    (check,) = json.loads(done.stdout)
    assert (check["name"], check["passed"]) == ("files", False)
    assert "SHA-256" in check["detail"]
