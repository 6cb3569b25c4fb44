"""`kronserve train` and `kronserve evaluate` as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train import bundles
from train import cli

TINY = """
name = "tiny"
dataset = "etth1"
[model]
kind = "forecaster"
lookback = 96
horizon = 96
patch = 48
dim = 4
depth = 1
heads = 1
hidden = 4
rotary = []
[optimisation]
epochs = 2
batch = 2048
"""


def kronserve(*arguments: str, cwd: Path, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "KRONSERVE_DATA"}
    environment["OMP_NUM_THREADS"] = "1"
    if data is not None:
        environment["KRONSERVE_DATA"] = str(data)
    code = "import sys; from app.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_has_examples(command: str, tmp_path: Path) -> None:
    done = kronserve(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"kronserve {command}" in done.stdout
    assert "examples:" in done.stdout


def test_a_failure_is_the_processs_status(tmp_path: Path) -> None:
    done = kronserve("evaluate", "nobody", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "kronserve: no model 'nobody' in model_repository\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.toml"], "set KRONSERVE_DATA or give --data"),
        (["bad.toml"], "unknown key optimizer"),
        (["none.toml"], "none.toml: no such file"),
        (["tiny.toml", "--data", "."], "ETTh1.csv is not in"),
        (["tiny.toml", "--epochs", "0"], "--epochs must be in [1, 2147483647], got 0"),
        (
            ["tiny.toml", "--seed", "99999999999999999999"],
            "--seed must be in [0, 4294967295], got 99999999999999999999",
        ),
        (["tiny.toml", "--data", "none.csv"], "--data none.csv: no such file or folder"),
        (["."], ".: Is a directory"),
        (["hot-adrenal", "--data", "."], "adrenalmnist3d_64.npz is not in"),
    ],
)
def test_failures_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRONSERVE_DATA", raising=False)
    Path("tiny.toml").write_text(TINY)
    Path("bad.toml").write_text(TINY + "optimizer = 3\n")
    assert cli.train(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not Path("runs").exists(), "a refused run leaves no folder"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is usable here")
def test_a_gpu_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    assert cli.train(["tiny.toml", "--data", ".", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "kronserve: --device cuda: PyTorch finds no usable GPU\n"


@pytest.mark.parametrize(
    "option", [["--threads", "-1"], ["--threads", "0"], ["--threads", "99999999999"], ["--seed", "x"]]
)
def test_arguments_out_of_range_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.train(["tiny.toml", *option])
    assert done.value.code == 2
    assert f"argument {option[0]}: " in capsys.readouterr().err


@pytest.mark.real_data
def test_trains_refuses_to_overwrite_and_resumes(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    done = kronserve("train", "tiny.toml", "--epochs", "1", "--seed", "3", cwd=tmp_path, data=data)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["run"] == "runs/tiny"
    training = json.loads((tmp_path / "runs/tiny/training.json").read_text())
    assert training["seed"] == 3
    assert training["validation"] == answer["validation"]
    assert training["validation"]["96"]["windows"] == 2785
    assert "epoch 1/1" in done.stderr, "the progress bar is on stderr"
    again = kronserve("train", "tiny.toml", "--epochs", "1", "--seed", "3", cwd=tmp_path, data=data)
    assert again.returncode == 1
    assert "holds a run already" in again.stderr
    resumed = kronserve("train", "tiny.toml", "--epochs", "1", "--seed", "3", "--resume", cwd=tmp_path, data=data)
    assert json.loads(resumed.stdout) == answer
    (tmp_path / "runs/tiny/resume.pt").unlink()
    weights = (tmp_path / "runs/tiny/weights.safetensors").read_bytes()
    for options in ([], ["--resume"]):
        lost = kronserve("train", "tiny.toml", "--epochs", "1", "--seed", "4", *options, cwd=tmp_path, data=data)
        assert lost.returncode == 1
        assert "holds trained weights without resume.pt" in lost.stderr
    assert (tmp_path / "runs/tiny/weights.safetensors").read_bytes() == weights


@pytest.mark.real_data
def test_evaluates_the_highest_version(data: Path, tmp_path: Path) -> None:
    for version in ("2", "10"):
        bundles.mask_size(tmp_path / "repository" / "size" / version)
    options = ("--repository", "repository", "--split", "val")
    done = kronserve("evaluate", "size", *options, cwd=tmp_path, data=data)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["version"], answer["split"]) == ("size", "10", "val")
    assert answer["values"]["n"] == 98
    missing = kronserve("evaluate", "size", *options, "--version", "3", cwd=tmp_path, data=data)
    assert missing.returncode == 1
    assert "size has no version 3; found: 2, 10" in missing.stderr
