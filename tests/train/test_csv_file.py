"""A user's own CSV: read, split, trained on, exported, evaluated; and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from export.cli import export
from train import cli
from train.datasets.csv_file import load_csv
from train.datasets.folder import DatasetError
from train.evaluate import evaluate_bundle, read_manifest

RECIPE = """
name = "small"
dataset = "etth1"
[model]
kind = "forecaster"
lookback = 12
horizon = 8
patch = 4
dim = 4
depth = 1
heads = 1
hidden = 4
attention = "kao-qkv"
[optimisation]
epochs = 2
batch = 64
"""


def write(path: Path, times: pd.DatetimeIndex, **columns: object) -> Path:
    pd.DataFrame(columns, index=pd.Index(times, name="when")).to_csv(path)
    return path


def sines(path: Path, rows: int = 200) -> Path:
    steps = np.arange(rows)
    times = pd.date_range("2024-01-01", periods=rows, freq="15min")
    return write(path, times, load=np.sin(steps / 5) * 3 + 10, heat=np.cos(steps / 7), whole=steps % 9)


def test_columns_splits_and_step(tmp_path: Path) -> None:
    path = sines(tmp_path / "mine.csv")
    series = load_csv(path)
    assert (series.name, series.variates, series.frequency) == ("mine", ("load", "heat", "whole"), "15min")
    assert series.bounds == {"train": (0, 140), "val": (140, 160), "test": (160, 200)}
    np.testing.assert_allclose(series.values[:, 0], np.sin(np.arange(200) / 5) * 3 + 10, rtol=1e-12)
    assert series.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("frequency", ["MS", "QS-JAN", "B", "D", "h"])
def test_calendar_steps(frequency: str, tmp_path: Path) -> None:
    times = pd.date_range("2020-01-01", periods=60, freq=frequency)
    assert load_csv(write(tmp_path / "a.csv", times, x=range(60))).frequency == frequency


def test_latin_1(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("date,T (°C)\n2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n".encode("latin-1"))
    assert load_csv(tmp_path / "a.csv").variates == ("T (°C)",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a wide CSV"),
        ("date,a\nmonday,1\ntuesday,2\n", "is not a wide CSV with timestamps"),
        ("date\n2020-01-01\n2020-01-02\n", "a column of numbers beside the timestamps"),
        ("date,a\n2020-01-01,x\n2020-01-02,y\n2020-01-03,z\n", "column 'a' is not of numbers"),
        ("date,a,b\n2020-01-01,1,2\n2020-01-02,3,\n2020-01-03,3,4\n", "row 2 has no finite value in column 'b'"),
        ("date,a\n2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n2020-01-05,4\n", r"row 4 \(2020-01-05.*2 days"),
        ("date,a\n2020-01-03,1\n2020-01-02,2\n2020-01-01,3\n", "do not increase"),
        ("date,a\n2020-01-03,1\n", "no step in common"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_csv(tmp_path / "bad.csv")


def test_trains_exports_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(RECIPE)
    path = sines(tmp_path / "mine.csv")
    assert cli.train(["small.toml", "--data", "mine.csv", "--out", "run"]) == 0
    training = json.loads(Path("run/training.json").read_text())
    assert training["dataset"] == "mine"
    assert training["data_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert training["task"]["variates"] == ["load", "heat", "whole"]
    assert training["task"]["frequency"] == "15min"
    assert training["validation"]["8"]["windows"] == 13
    export_options = ["run", "--name", "mine", "--version", "1", "--repository", "repository"]
    assert export([*export_options, "--evaluate", "test"]) == 1
    assert "mine was trained on a CSV, mine; give it with --data FILE" in capsys.readouterr().err
    assert not Path("repository").exists()
    assert export([*export_options, "--evaluate", "test", "--data", "mine.csv"]) == 0
    bundle = Path("repository/mine/1")
    metrics = evaluate_bundle(bundle, "test", path)
    assert read_manifest(bundle).metrics == metrics
    assert (metrics["dataset"], metrics["values"]["8"]["windows"]) == ("mine", 33)
    validation = evaluate_bundle(bundle, "val", path)["values"]
    assert validation["8"]["mse"] == pytest.approx(training["validation"]["8"]["mse"], rel=1e-4)
    with pytest.raises(DatasetError, match="is not the file that mine was trained on"):
        evaluate_bundle(bundle, "test", sines(tmp_path / "other.csv", 210))
    capsys.readouterr()
    assert cli.train(["small.toml", "--data", str(sines(tmp_path / "short.csv", 60)), "--out", "none"]) == 1
    assert "short: 6 validation rows are fewer than the horizon 8" in capsys.readouterr().err
    assert cli.train(["kan-adrenal", "--data", "mine.csv", "--out", "none"]) == 1
    assert "mine.csv is a series, the recipe's model is a kanet" in capsys.readouterr().err
