"""The shipped bundles on their real test splits: what `kronserve evaluate` prints, and the same through the server."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from tests.service.process import Server

pytestmark = pytest.mark.real_data

DLINEAR_ETTH1_MSE = 0.456
"""Average over the four horizons as published; the shipped forecasters must be better."""

RESNET_18_ACS_AUC = 0.839
"""The best of MedMNIST v2's own networks on AdrenalMNIST3D at 28^3."""


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("KRONSERVE_DATA")
    if not folder:
        pytest.skip("KRONSERVE_DATA is not set: it names the folder of the real data sets")
    return Path(folder)


def evaluate(name: str, repository: Path, *options: str) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("kronserve")), "evaluate", name, "--repository", str(repository)]
    command += options
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    values: dict[str, Any] = json.loads(result.stdout)["values"]
    return values


@pytest.mark.parametrize("name", ["hot-etth1", "kao-etth1"])
def test_forecasters_beat_dlinear_over_every_test_window(name: str, repository: Path, data: Path):
    values = evaluate(name, repository)
    windows = {horizon: values[horizon]["windows"] for horizon in ("96", "192", "336", "720")}
    assert windows == {"96": 2785, "192": 2689, "336": 2545, "720": 2161}
    assert values["average"]["mse"] < DLINEAR_ETTH1_MSE
    shipped = json.loads((repository / name / "1/manifest.json").read_text())["metrics"]["values"]
    for horizon in (*windows, "average"):
        assert values[horizon]["mse"] == pytest.approx(shipped[horizon]["mse"], abs=5e-5)
        assert values[horizon]["mae"] == pytest.approx(shipped[horizon]["mae"], abs=5e-5)


def test_a_forecaster_on_a_part_of_the_test_windows(repository: Path, data: Path):
    """Every fiftieth window of 10,444; over all of them the averages are .2510 / .2716."""
    values = evaluate("hot-weather", repository, "--every", "50")
    assert values["96"]["windows"] == 209
    assert values["average"]["mse"] == pytest.approx(0.2523, abs=6e-5)
    assert values["average"]["mae"] == pytest.approx(0.2730, abs=6e-5)


def test_kanet_reaches_what_is_written_and_beats_the_published_networks(repository: Path, data: Path):
    values = evaluate("kan-adrenal", repository)
    shipped = json.loads((repository / "kan-adrenal/1/manifest.json").read_text())["metrics"]["values"]
    assert values["n"] == 298
    assert values["auc"] == pytest.approx(shipped["auc"], abs=5e-5)
    assert values["acc"] == pytest.approx(shipped["acc"], abs=5e-5)
    assert values["auc"] > RESNET_18_ACS_AUC


async def test_test_split_as_nifti_over_http_gives_what_evaluate_prints(server: Server, repository: Path, data: Path):
    expected = evaluate("hot-adrenal", repository)
    shipped = json.loads((repository / "hot-adrenal/1/manifest.json").read_text())["metrics"]["values"]
    assert expected["auc"] == pytest.approx(shipped["auc"], abs=5e-5)
    assert expected["acc"] == pytest.approx(shipped["acc"], abs=5e-5)
    with np.load(data / "adrenalmnist3d_64.npz") as arrays:
        volumes, labels = arrays["test_images"], arrays["test_labels"].ravel()

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        turn = asyncio.Semaphore(8)

        async def positive(volume: np.ndarray) -> tuple[float, str]:
            body = gzip.compress(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes(), 1)
            async with turn:
                answer = await client.post("/v1/models/hot-adrenal/classify", content=body)
            assert answer.status_code == 200, answer.text
            prediction = answer.json()["predictions"][0]
            return prediction["probabilities"]["hyperplasia"], prediction["label"]

        answers = await asyncio.gather(*(positive(volume) for volume in volumes))
    probabilities = [probability for probability, _ in answers]
    predicted = [label == "hyperplasia" for _, label in answers]
    assert len(answers) == expected["n"] == 298
    assert roc_auc_score(labels, probabilities) == expected["auc"]
    assert accuracy_score(labels, predicted) == expected["acc"]
