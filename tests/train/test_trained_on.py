"""A bundle is measured on the data that it was trained on, or not at all: by its bytes and rows, not by its name."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.full_disk import no_file_above
from tests.train import bundles, synthetic
from train.calibrate import calibrate, calibrate_bundle
from train.datasets import series, volumes
from train.datasets.csv_file import load_csv
from train.datasets.folder import DatasetError
from train.evaluate import evaluate_bundle, read_manifest

ROWS = 1000


def write(path: Path, seed: int) -> Path:
    values = np.random.default_rng(seed).normal(size=(ROWS, 2)).cumsum(axis=0)
    times = pd.date_range("2024-01-01", periods=ROWS, freq="h", name="date")
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame(values, columns=["a", "b"], index=times).to_csv(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose ETTh1.csv is a small one, split into other rows than a CSV is."""
    path = write(tmp_path / "data" / "ETTh1.csv", seed=1)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(series.SOURCES, "etth1", replace(series.SOURCES["etth1"], md5=md5, rows=(400, 300, 300)))
    monkeypatch.delenv("KRONSERVE_DATA", raising=False)
    return path.parent


def test_a_csv_of_a_data_sets_name_is_not_that_data_set(folder: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "etth1.csv", seed=2)
    loaded = load_csv(own)
    facts = {"data_sha256": loaded.sha256, "splits": loaded.splits}
    bundle = bundles.last_value(tmp_path / "m" / "1", loaded.name, 8, **facts)
    before = (bundle / "manifest.json").read_bytes()
    for measure in (evaluate_bundle, calibrate_bundle):
        with pytest.raises(DatasetError, match=r"ETTh1\.csv in .* is not the file that m was trained on"):
            measure(bundle, "val", folder)
    assert (bundle / "manifest.json").read_bytes() == before
    assert evaluate_bundle(bundle, "val", own)["values"]["8"]["windows"] == 100 - 8 + 1


def test_the_same_bytes_split_otherwise_are_other_data(folder: Path, tmp_path: Path) -> None:
    """By the CSV's split, the data set's test rows would have been trained on."""
    published = series.load_series("etth1", folder)
    copy = tmp_path / "etth1.csv"
    copy.write_bytes((folder / "ETTh1.csv").read_bytes())
    same = {"data_sha256": published.sha256}
    of_copy = bundles.last_value(tmp_path / "c" / "1", "etth1", 8, **same, splits=load_csv(copy).splits)
    of_folder = bundles.last_value(tmp_path / "f" / "1", "etth1", 8, **same, splits=published.splits)
    unrecorded = bundles.last_value(tmp_path / "u" / "1", "etth1", 8, **same)
    assert evaluate_bundle(of_copy, "test", copy)["values"]["8"]["windows"] == 200 - 8 + 1
    for bundle in (of_folder, unrecorded):
        assert evaluate_bundle(bundle, "test", folder)["values"]["8"]["windows"] == 300 - 8 + 1
        with pytest.raises(DatasetError, match=r"other rows of .*; give the data sets' folder with --data"):
            evaluate_bundle(bundle, "test", copy)
    with pytest.raises(DatasetError, match=r"other rows of .*; give the CSV itself with --data"):
        evaluate_bundle(of_copy, "test", folder)


def test_volumes_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, source = synthetic.volumes(), volumes.SOURCES["adrenalmnist3d"]
    arrays = {f"{split}_images": images for split, images in made.images.items()}
    np.savez(tmp_path / source.file, **arrays, **{f"{split}_labels": array for split, array in made.targets.items()})
    content = (tmp_path / source.file).read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(volumes.SOURCES, "adrenalmnist3d", replace(source, md5=md5))
    bundle = bundles.mask_size(tmp_path / "m" / "1", 16, data_sha256=hashlib.sha256(content).hexdigest())
    assert evaluate_bundle(bundle, "val", tmp_path)["values"]["n"] == 8
    other = bundles.mask_size(tmp_path / "o" / "1", 16, data_sha256="2" * 64)
    for measure in (evaluate_bundle, calibrate_bundle):
        with pytest.raises(DatasetError, match="is not the file that o was trained on"):
            measure(other, "val", tmp_path)
    with pytest.raises(DatasetError, match="give the data sets' folder"):
        evaluate_bundle(bundle, "val", write(tmp_path / "a.csv", 1))


def test_a_variate_that_never_moves_is_calibrated_as_all_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own = write(tmp_path / "own.csv", seed=3)
    table = pd.read_csv(own).assign(dead=np.where(np.arange(ROWS) < 500, np.arange(ROWS), 7))
    table.to_csv(own, index=False)
    loaded = load_csv(own)
    facts = {"data_sha256": loaded.sha256, "splits": loaded.splits}
    bundle = bundles.last_value(tmp_path / "m" / "1", loaded.name, 8, **facts)
    assert calibrate([str(bundle), "--data", str(own)]) == 0
    intervals = read_manifest(bundle).task.intervals  # type: ignore[union-attr]
    assert intervals is not None
    assert set(intervals.errors) == {"a", "b", "dead", ""}
    assert intervals.errors["dead"] == intervals.errors[""]
    assert not {intervals.errors["a"], intervals.errors["b"]} & {intervals.errors[""]}
    capsys.readouterr()
    table.assign(a=7, b=7, dead=7).to_csv(own, index=False)
    loaded = load_csv(own)
    facts = {"data_sha256": loaded.sha256, "splits": loaded.splits}
    bundle = bundles.last_value(tmp_path / "n" / "1", loaded.name, 8, **facts)
    before = (bundle / "manifest.json").read_bytes()
    assert calibrate([str(bundle), "--data", str(own)]) == 1
    assert capsys.readouterr().err == ("kronserve: own: no variate moves in split val, so it says nothing of errors\n")
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_split_without_a_window_of_the_whole_horizon_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By 100 rows of validation a head of 168 cannot be measured, though one of 96 could."""
    own = write(tmp_path / "own.csv", seed=3)
    loaded = load_csv(own)
    facts = {"data_sha256": loaded.sha256, "splits": loaded.splits}
    bundle = bundles.last_value(tmp_path / "m" / "1", loaded.name, 168, **facts)
    said = "own: 196 rows for split val hold no window of 96 + 168 steps"
    assert calibrate([str(bundle), "--data", str(own)]) == 1
    assert capsys.readouterr().err == f"kronserve: {said}\n"
    with pytest.raises(DatasetError, match=re.escape(said)):
        evaluate_bundle(bundle, "val", own)
    assert set(evaluate_bundle(bundle, "test", own)["values"]) == {"96", "168", "average"}


def test_a_csv_is_asked_for_and_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRONSERVE_DATA", str(folder))
    loaded = load_csv(write(tmp_path / "own.csv", seed=3))
    facts = {"data_sha256": loaded.sha256, "splits": loaded.splits}
    bundle = bundles.last_value(tmp_path / "m" / "1", loaded.name, 8, **facts)
    for given in ([], ["--data", str(folder)]):
        assert calibrate([str(bundle), *given]) == 1
        assert capsys.readouterr().err == "kronserve: m was trained on a CSV, own; give it with --data FILE\n"
    assert calibrate([str(bundle), "--data", str(tmp_path / "gone.csv")]) == 1
    assert "gone.csv: no such file or folder" in capsys.readouterr().err
    assert calibrate([str(bundle), "--data", str(write(tmp_path / "other.csv", seed=4))]) == 1
    assert "is not the file that m was trained on" in capsys.readouterr().err
    (bundle / "manifest.json.sig").touch()
    assert calibrate([str(bundle)]) == 1, "refused before data is asked for"
    assert "is signed" in capsys.readouterr().err
    (bundle / "manifest.json.sig").unlink()
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with no_file_above(1000):
        assert calibrate([str(bundle), "--data", str(tmp_path / "own.csv")]) == 1
    assert capsys.readouterr().err == f"kronserve: {bundle}: File too large\n"
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert calibrate([str(tmp_path / "own.csv")]) == 1
    assert capsys.readouterr().err == f"kronserve: {tmp_path / 'own.csv' / 'manifest.json'}: Not a directory\n"
    assert calibrate([str(bundle), "--data", str(tmp_path / "own.csv")]) == 0
    intervals = read_manifest(bundle).task.intervals  # type: ignore[union-attr]
    assert intervals is not None
    assert (intervals.windows, set(intervals.errors)) == (100 - 8 + 1, {"a", "b", ""})
