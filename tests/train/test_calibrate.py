"""`kronserve calibrate` on the shipped bundles and their real validation splits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.integrity import read_manifest
from app.manifest import Forecasting, VolumeClassification
from train.calibrate import calibrate, interval_errors
from train.datasets.series import Series
from train.tables import tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = os.environ.get("KRONSERVE_DATA")
    if not folder:
        pytest.skip("KRONSERVE_DATA is not set: it names the folder of the real data sets")
    return Path(folder)


@pytest.fixture(params=["hot-etth1", "hot-adrenal"])
def bundle(request: pytest.FixtureRequest, repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository / request.param / "1", tmp_path / request.param / "1"))


@pytest.mark.real_data
def test_the_shipped_manifests_are_what_the_command_writes(bundle: Path, data: Path) -> None:
    before = read_manifest(bundle)
    assert calibrate([str(bundle), "--data", str(data)]) == 0
    after = read_manifest(bundle)  # its sum is right, or this would refuse it
    assert before is not None
    assert after is not None
    if isinstance(after.task, Forecasting):
        assert isinstance(before.task, Forecasting)
        assert before.task.intervals is not None
        assert after.task.intervals is not None
        assert after.task.intervals.windows == 2161
        for name, rows in after.task.intervals.errors.items():
            np.testing.assert_allclose(rows, before.task.intervals.errors[name], rtol=2e-3, atol=2e-3)
    else:
        assert isinstance(before.task, VolumeClassification)
        assert isinstance(after.task, VolumeClassification)
        assert after.task.temperature == pytest.approx(before.task.temperature, rel=1e-3)
        assert 0.3 < after.task.temperature < 3


def test_a_model_that_takes_values_as_they_are_errs_in_their_unit() -> None:
    """It answers its window's first value: the errors are differences of rows, whatever the window's spread."""
    task = Forecasting(lookback=4, horizon=2, standardise=False)
    rows = np.random.default_rng(0).normal(size=(60, 2)).cumsum(axis=0) * [1, 1000]
    series = Series("own", ("a", "b"), rows, {"train": (0, 20), "val": (20, 40), "test": (40, 60)}, "h", "", "")
    found = interval_errors(lambda x: np.repeat(x[..., :1], 2, axis=-1), task, series, "val")
    for at, name in enumerate(("a", "b")):
        scaled = series.with_windows("val", 4, 2)[:, at]
        for row, step in enumerate(found.steps):
            errors = scaled[4 + step - 1 :][: found.windows] - scaled.astype("f4")[: found.windows]
            np.testing.assert_allclose(found.errors[name][row], np.quantile(errors, found.probabilities), rtol=1e-3)


@pytest.mark.real_data
def test_intervals_hold_within_three_points_on_the_test_split(repository: Path, data: Path) -> None:
    lines = tables(repository / "hot-etth1" / "1", data).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[2:6]]
    assert [row[0] for row in rows] == ["96", "192", "336", "720"]
    for row in rows:
        assert float(row[3]) == pytest.approx(80, abs=3)
        assert float(row[4]) == pytest.approx(95, abs=3)


def test_what_cannot_be_calibrated(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate([str(tmp_path / "nothing")]) == 1
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["provenance"]["training"] = {}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "manifest.json.sha256").unlink(missing_ok=True)
    assert calibrate([str(bundle)]) == 1
    assert "dataset" in capsys.readouterr().err


def test_the_command_is_there() -> None:
    command = [sys.executable, "-c", "from train.calibrate import calibrate; calibrate(['--help'])"]
    assert "intervals" in subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
