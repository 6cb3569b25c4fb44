"""A user's own CSV: read, split, trained on, exported, evaluated; and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from app.readers.formats import read_series
from app.readers.series import MAX_STEPS
from export.cli import export
from tests.full_disk import no_file_above
from train import cli
from train.datasets.csv_file import load_csv
from train.datasets.folder import DatasetError
from train.datasets.series import SOURCES
from train.evaluate import evaluate_bundle, read_manifest
from train.recipe import read_recipe
from train.run import make_objective, of_file

RECIPE = """
name = "small"
dataset = "etth1"
description = "A forecaster trained on ETTh1."
intended_use = "Forecasting like ETTh1."
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
    found = load_csv(write(tmp_path / "a.csv", times, x=range(60))).frequency
    # Of quarters that begin in January and in October the months are the same.
    assert found == {"QS-JAN": "QS-OCT"}.get(frequency, frequency)
    assert pd.date_range("2020-01-01", periods=60, freq=found).equals(times)


def test_latin_1(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("date,T (°C)\n2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n".encode("latin-1"))
    assert load_csv(tmp_path / "a.csv").variates == ("T (°C)",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.csv: the CSV is empty"),
        ("date,a\nmonday,1\ntuesday,2\nfriday,3\n", "column 'date', row 1: 'monday' is not an ISO 8601 timestamp"),
        ("date\n2020-01-01\n2020-01-02\n2020-01-03\n", "the series has no variate: not one column of numbers"),
        ("a,b\n1,2\n2,3\n3,4\n", "no column holds timestamps"),
        ("date,a\n2020-01-01,x\n2020-01-02,y\n2020-01-03,z\n", "column 'a', row 1: 'x' is not a number"),
        ("date,a,b\n2020-01-01,1,2\n2020-01-02,3,\n2020-01-03,3,4\n", "column 'b', row 2: the value is missing or NaN"),
        ("date,a,b\n2020-01-01,1,2\n2020-01-02,3,inf\n2020-01-03,3,4\n", "column 'b', row 2: the value is infinite"),
        ("date,a\n2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n2020-01-05,4\n", "row 4: one step of 'D' missing"),
        ("date,a\n2020-01-03,1\n2020-01-02,2\n2020-01-01,3\n", "the rows are newest first"),
        ("date,a\n2020-01-03,1\n", "1 rows have no step in common"),
        ("date,a,a\n2020-01-01,1,2\n2020-01-02,3,4\n2020-01-03,5,6\n", "the name 'a' stands for two variates"),
        ("date,a,\n2020-01-01,1,2\n2020-01-02,3,4\n2020-01-03,5,6\n", "a column of numbers has no name"),
        ("date,unique_id,y\n2020-01-01,a,2\n2020-01-02,a,4\n2020-01-03,a,6\n", "a long table"),
        ("date,a\n01/02/2020,1\n02/02/2020,2\n03/02/2020,3\n", "the day from the month; write them as 2024-01-31$"),
        ("date;a\n2020-01-01;1,234\n2020-01-02;2,345\n2020-01-03;3,456\n", "or thousands; write decimal points$"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_csv(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    "text",
    [
        "date, load kW ,heat\n2024-01-13, 1.5,-2e3\n2024-01-14,2.25, 3\n2024-01-15,4,5\n",
        "when;load kW;heat\n13.01.2024;1,5;-2000\n14.01.2024;2,25;3\n15.01.2024;4;5\n",
        "load kW\theat\tday\n1.5\t-2000\t13/01/2024\n2.25\t3\t14/01/2024\n4\t5\t15/01/2024\n",
        "\ufeffdate,load kW,heat\r\n2024-01-13T00Z,1.5,-2e3\r\n2024-01-14T00Z,2.25,3\r\n2024-01-15T00Z,4,5\r\n",
    ],
)
def test_is_read_as_the_service_reads_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode())
    loaded = load_csv(tmp_path / "a.csv")
    assert (loaded.variates, loaded.frequency) == (("load kW", "heat"), "D")
    np.testing.assert_array_equal(loaded.values, [[1.5, -2000], [2.25, 3], [4, 5]])
    (served,) = read_series(text.encode(), "csv", 1 << 20).series
    assert served.names == loaded.variates
    np.testing.assert_array_equal(served.values, loaded.values.T)


def test_more_rows_than_a_request_may_have(tmp_path: Path) -> None:
    rows = MAX_STEPS + 2
    times = np.datetime_as_string(np.datetime64("2000-01-01T00:00") + np.arange(rows))
    (tmp_path / "a.csv").write_text("date,a\n" + "".join(f"{time},{at % 7}\n" for at, time in enumerate(times)))
    loaded = load_csv(tmp_path / "a.csv")
    assert (loaded.values.shape, loaded.frequency) == ((rows, 1), "min")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a training run in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(RECIPE)
    sines(tmp_path / "mine.csv")
    return ["small.toml", "--data", "mine.csv"]


def test_a_run_that_comes_to_nothing_leaves_nothing(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.toml").write_text(RECIPE.replace("batch = 64", "batch = 64\nlearning_rate = 1e30"))
    assert cli.train([*small, "--out", "a/b"]) == 1
    assert re.fullmatch("kronserve: the (training loss|validation score) became nan in epoch 1", _last_line(capsys))
    assert not Path("a").exists()
    Path("kept").mkdir()
    assert cli.train([*small, "--out", "kept"]) == 1
    assert Path("kept").is_dir(), "it was there before"


def test_what_the_file_system_refuses_is_one_line(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("mine.csv").read_bytes()
    assert cli.train([*small, "--out", "mine.csv"]) == 1
    assert capsys.readouterr().err == "kronserve: --out mine.csv is not a folder\n"
    assert cli.train([*small, "--out", "mine.csv/run"]) == 1
    assert capsys.readouterr().err == "kronserve: mine.csv/run: Not a directory\n"
    assert Path("mine.csv").read_bytes() == before
    with no_file_above(1000):
        assert cli.train([*small, "--out", "full"]) == 1
    assert _last_line(capsys) == "kronserve: full: File too large"
    assert cli.train([*small, "--out", "full", "--resume"]) == 0, "what is there is whole"
    (Path("full") / "resume.pt").write_bytes(b"rubbish")
    assert cli.train([*small, "--out", "full", "--resume"]) == 1
    assert _last_line(capsys) == "kronserve: full/resume.pt cannot be read; start anew in another --out"


def _last_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return str(err.splitlines()[-1])


@pytest.mark.parametrize(
    ("written_for", "kept"), [("etth1", False), ("weather", False), ("mine", True), ("yours", False)]
)
def test_what_a_recipe_says_of_other_data_is_not_said_of_the_file(
    written_for: str, kept: bool, small: list[str], tmp_path: Path
) -> None:
    recipe = read_recipe(Path("small.toml"))
    recipe = dataclasses.replace(recipe, dataset=written_for)
    data = tmp_path / "mine.csv"
    trained = of_file(recipe, data, make_objective(recipe, data, torch.device("cpu")))
    assert (trained == recipe) is kept
    assert trained.dataset == "mine"
    assert ("mine.csv" in trained.description) is ("mine.csv" in trained.intended_use) is not kept


def test_a_published_file_given_as_a_csv_keeps_its_recipe(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = read_recipe(Path("small.toml")), tmp_path / "mine.csv"
    md5 = hashlib.md5(data.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(SOURCES, "etth1", dataclasses.replace(SOURCES["etth1"], md5=md5))
    objective = make_objective(recipe, data, torch.device("cpu"))
    assert of_file(recipe, data, objective) == recipe
    other = sines(tmp_path / "etth1.csv", 210)
    renamed = of_file(recipe, other, make_objective(recipe, other, torch.device("cpu")))
    assert "trained on etth1.csv: 3 variates" in renamed.description, "its name alone does not make it the data set"


def test_trains_exports_and_evaluates(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    assert cli.train([*small, "--out", "run"]) == 0
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
    manifest = read_manifest(bundle)
    assert manifest.metrics == metrics
    assert manifest.description == "Forecaster (kao-qkv) trained on mine.csv: 3 variates of step '15min'."
    assert manifest.intended_use == "Forecasting the variates of mine.csv; other series at the caller's own validation."
    assert "etth1" not in manifest.model_dump_json().lower(), "the recipe's data set has no part in it"
    assert (metrics["dataset"], metrics["values"]["8"]["windows"]) == ("mine", 33)
    validation = evaluate_bundle(bundle, "val", path)["values"]
    assert validation["8"]["mse"] == pytest.approx(training["validation"]["8"]["mse"], rel=1e-4)
    with pytest.raises(DatasetError, match="is not the file that mine was trained on"):
        evaluate_bundle(bundle, "test", sines(tmp_path / "other.csv", 210))
    capsys.readouterr()
    assert cli.train(["small.toml", "--data", str(sines(tmp_path / "short.csv", 60)), "--out", "none"]) == 1
    assert "short: 18 rows for split val hold no window of 12 + 8 steps" in capsys.readouterr().err
    assert cli.train(["kan-adrenal", "--data", "mine.csv", "--out", "none"]) == 1
    assert "mine.csv is a series, the recipe's model is a kanet" in capsys.readouterr().err
