"""Splits, scaler and windows against the published protocol and plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.manifest import Binarise, Reorient, Resize, VolumeClassification
from app.readers.volume import Volume
from app.tasks.preprocessing import preprocess
from tests.train import synthetic
from train.datasets.folder import DatasetError, data_folder
from train.datasets.series import SPLITS, Series, load_series, lookback_windows, split_bounds, window_count
from train.datasets.volumes import load_volumes, shrink_masks


def test_a_constant_variate_has_scale_1_however_its_mean_rounds() -> None:
    values = np.stack([np.full(2000, 0.3), np.arange(2000.0)], axis=1)
    made = Series("s", ("a", "b"), values, split_bounds(2000, (1400, 300, 300)), "h", "none", "0" * 64)
    assert made.values[:1400].std(axis=0)[0] > 0, "the case at hand"
    np.testing.assert_array_equal(made.scale, [1, values[:1400].std(axis=0)[1]])


@pytest.mark.parametrize(
    ("total", "rows", "expected"),
    [
        (17420, (8640, 2880, 2880), [(0, 8640), (8640, 11520), (11520, 14400)]),
        (52696, None, [(0, 36887), (36887, 42157), (42157, 52696)]),
        (7588, None, [(0, 5311), (5311, 6071), (6071, 7588)]),
    ],
)
def test_splits_as_published(total: int, rows: tuple[int, int, int] | None, expected: list[tuple[int, int]]) -> None:
    assert list(split_bounds(total, rows).values()) == expected


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DatasetError, match="14399 rows are fewer"):
        split_bounds(14399, (8640, 2880, 2880))


def test_windows_are_counted_one_by_one() -> None:
    for rows in range(1, 30):
        brute = sum(1 for start in range(rows) if start + 5 + 3 <= rows)
        assert window_count(rows, 5, 3) == brute


def test_lookback_windows_are_the_rows() -> None:
    rows = np.arange(24.0).reshape(12, 2)
    windows = lookback_windows(rows, 5)
    assert windows.shape == (8, 2, 5)
    for start in range(8):
        np.testing.assert_array_equal(windows[start], rows[start : start + 5].T)


def test_scaler_sees_training_rows_alone() -> None:
    series = synthetic.series()
    train = series.scaled("train", 12)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(train.std(axis=0), 1, rtol=1e-12)
    val = series.scaled("val", 12)
    assert len(val) == 40 + 12
    expected = (series.values[108:160] - series.values[:120].mean(0)) / series.values[:120].std(0)
    np.testing.assert_allclose(val, expected, rtol=1e-12)


def test_a_data_folder_is_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KRONSERVE_DATA", raising=False)
    with pytest.raises(DatasetError, match="set KRONSERVE_DATA or give --data"):
        data_folder()
    with pytest.raises(DatasetError, match="is not a folder"):
        data_folder(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"ETTh1\.csv is not in"):
        load_series("etth1", tmp_path)
    with pytest.raises(DatasetError, match="unknown series 'etth3'"):
        load_series("etth3", tmp_path)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ETTh1.csv").write_text("date,OT\n2016-07-01,1.0\n")
    with pytest.raises(DatasetError, match="the published file's is 8381763947c85f4be6ac456c508460d6"):
        load_series("etth1", tmp_path)


def test_masks_shrink_as_the_service_resizes_them() -> None:
    """Training must see the numbers that the manifest's steps give in serving."""
    images = np.where(np.random.default_rng(1).random((3, 8, 12, 16)) > 0.6, 255, 0).astype(np.uint8)
    steps = (Reorient(), Binarise(), Resize(shape=(4, 6, 8)))
    spec = VolumeClassification(labels=("a", "b"), preprocessing=steps)
    for image, shrunk in zip(images, shrink_masks(images, (4, 6, 8)), strict=True):
        np.testing.assert_array_equal(shrunk, preprocess(Volume(image, "npy"), spec)[0])
        assert shrunk[0, 1, 2, 3] == (image[2:4, 4:6, 6:8] > 0).mean()


def test_masks_do_not_shrink_to_a_side_that_does_not_divide() -> None:
    with pytest.raises(DatasetError, match="does not divide"):
        shrink_masks(np.zeros((1, 8, 8, 8), np.uint8), (4, 4, 3))


@pytest.mark.real_data
def test_etth1_has_the_published_counts(data: Path) -> None:
    series = load_series("etth1", data)
    assert series.values.shape == (17420, 7)
    assert series.variates == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    rows = {split: len(series.scaled(split, 96)) for split in SPLITS}
    # The benchmarks' data set sizes: inputs of 96 steps, whatever the horizon.
    assert [rows[split] - 96 + 1 for split in SPLITS] == [8545, 2881, 2881]
    counts = {h: [window_count(rows[split], 96, h) for split in SPLITS] for h in (96, 192, 336, 720)}
    assert counts == {
        96: [8449, 2785, 2785],
        192: [8353, 2689, 2689],
        336: [8209, 2545, 2545],
        720: [7825, 2161, 2161],
    }


@pytest.mark.real_data
def test_etth1_is_scaled_like_scikit_learn(data: Path) -> None:
    from sklearn.preprocessing import StandardScaler

    table = pd.read_csv(data / "ETTh1.csv").drop(columns="date")
    scaler = StandardScaler().fit(table.iloc[: 12 * 30 * 24].to_numpy())
    first_test_row = (12 + 4) * 30 * 24
    expected = scaler.transform(table.iloc[first_test_row - 96 : first_test_row + 4 * 30 * 24].to_numpy())
    np.testing.assert_allclose(load_series("etth1", data).scaled("test", 96), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.real_data
def test_weather_has_its_counts_and_whole_names(data: Path) -> None:
    series = load_series("weather", data)
    assert series.values.shape == (52696, 21)
    assert "T (degC)" in series.variates
    assert {"SWDR (W/m²)", "PAR (µmol/m²/s)", "max. PAR (µmol/m²/s)"} <= set(series.variates)
    assert not any("\ufffd" in name for name in series.variates)
    assert [len(series.scaled(split, 96)) - 96 + 1 for split in SPLITS] == [36792, 5271, 10540]


@pytest.mark.real_data
def test_adrenal_has_the_official_split(data: Path) -> None:
    volumes = load_volumes("adrenalmnist3d", data)
    assert {split: images.shape for split, images in volumes.images.items()} == {
        "train": (1188, 64, 64, 64),
        "val": (98, 64, 64, 64),
        "test": (298, 64, 64, 64),
    }
    assert {split: int(targets.sum()) for split, targets in volumes.targets.items()} == {
        "train": 259,
        "val": 22,
        "test": 69,
    }
    shrunk = shrink_masks(volumes.images["val"], (32, 32, 32))
    assert shrunk.shape == (98, 1, 32, 32, 32)
    assert shrunk.dtype == np.float32
    np.testing.assert_allclose(shrunk.mean(), (volumes.images["val"] > 0).mean(), rtol=1e-5)
