"""evaluate_bundle on bundles with known answers, against figures worked out without the service's code."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tests.train import bundles
from train.datasets.folder import DatasetError
from train.evaluate import BundleError, evaluate_bundle


@pytest.mark.real_data
def test_the_last_values_error_on_etth1(data: Path, tmp_path: Path) -> None:
    metrics = evaluate_bundle(bundles.last_value(tmp_path / "m" / "1"), "test", data)
    assert (metrics["dataset"], metrics["split"]) == ("etth1", "test")

    table = pd.read_csv(data / "ETTh1.csv").drop(columns="date").to_numpy(dtype=np.float64)
    train = table[: 12 * 30 * 24]
    scaled = (table - train.mean(axis=0)) / train.std(axis=0)
    begin, end = 16 * 30 * 24, 20 * 30 * 24
    average = []
    for horizon in (96, 192, 336, 720):
        origins = np.arange(begin, end - horizon + 1)  # the first target row of every window
        futures = np.stack([scaled[origin : origin + horizon] for origin in origins])
        errors = futures - scaled[origins - 1][:, None]
        found = metrics["values"][str(horizon)]
        assert found["windows"] == len(origins)
        assert found["mse"] == pytest.approx(np.square(errors).mean(), rel=1e-5)
        assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
        average.append(found["mse"])
    assert metrics["values"]["96"]["windows"] == 2785
    assert metrics["values"]["average"]["mse"] == pytest.approx(np.mean(average), rel=1e-12)


@pytest.mark.real_data
def test_the_last_values_error_on_every_hundredth_window_of_weather(data: Path, tmp_path: Path) -> None:
    """21 variates, so that a batch of windows has more of them than a request may have."""
    metrics = evaluate_bundle(bundles.last_value(tmp_path / "m" / "1", "weather"), "test", data, every=100)["values"]
    with zipfile.ZipFile(data / "weather.zip") as archive, archive.open("weather/weather.csv") as file:
        table = pd.read_csv(file, encoding="latin-1").drop(columns="date").to_numpy(dtype=np.float64)
    train, test = int(len(table) * 0.7), int(len(table) * 0.2)
    scaled = (table - table[:train].mean(axis=0)) / table[:train].std(axis=0)
    for horizon in (96, 720):
        origins = np.arange(len(table) - test, len(table) - horizon + 1)[::100]
        errors = np.stack([scaled[origin : origin + horizon] - scaled[origin - 1] for origin in origins])
        assert metrics[str(horizon)]["windows"] == len(origins)
        assert metrics[str(horizon)]["mse"] == pytest.approx(np.square(errors).mean(), rel=1e-5)


@pytest.mark.real_data
def test_batches_are_those_of_the_service(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a batch have a part in each other's answers where activations have one scale for all."""
    folder = bundles.mask_size(tmp_path / "m" / "1")
    one = json.loads((folder / "manifest.json").read_text()) | {"serving": {"max_batch": 5}}
    (folder / "manifest.json").write_text(json.dumps(one))
    sizes, real = list[int](), ort.InferenceSession.run

    def noting(session: ort.InferenceSession, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        sizes.append(len(inputs["x"]))
        return real(session, outputs, inputs)

    monkeypatch.setattr(ort.InferenceSession, "run", noting)
    assert evaluate_bundle(folder, "val", data)["values"]["n"] == sum(sizes) == 98
    assert max(sizes) == 5


@pytest.mark.real_data
def test_the_mask_sizes_auc_on_adrenal(data: Path, tmp_path: Path) -> None:
    metrics = evaluate_bundle(bundles.mask_size(tmp_path / "m" / "1"), "val", data)
    with np.load(data / "adrenalmnist3d_64.npz") as arrays:
        share = (arrays["val_images"] > 0).mean(axis=(1, 2, 3))
        targets = arrays["val_labels"].ravel()
    assert metrics["values"]["auc"] == pytest.approx(roc_auc_score(targets, share), rel=1e-12)
    assert metrics["values"]["acc"] == pytest.approx(((40 * share - 1 > 0) == (targets == 1)).mean(), rel=1e-12)
    assert 0 < (40 * share - 1 > 0).sum() < 98, "both answers must occur for the accuracy to say anything"
    assert metrics["values"]["n"] == 98


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        evaluate_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="Field required"):
        evaluate_bundle(tmp_path)
    with pytest.raises(BundleError, match="names no dataset"):
        evaluate_bundle(bundles.last_value(tmp_path / "m" / "1", dataset=None))
    corrupt = bundles.last_value(tmp_path / "m" / "2")
    (corrupt / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="cannot be loaded"):
        evaluate_bundle(corrupt, data=tmp_path)
    with pytest.raises(DatasetError, match="unknown series 'etth9'"):
        evaluate_bundle(bundles.last_value(tmp_path / "m" / "3", dataset="etth9"), data=tmp_path)


def test_evaluation_imports_no_torch() -> None:
    code = "import sys, train.cli, train.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
