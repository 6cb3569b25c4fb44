"""Outputs on request: right when asked for, from several threads too, and not computed otherwise."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import gcd
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from app.engine import compiled
from app.engine.device import Device
from app.engine.runtime import Model
from app.integrity import BrokenBundle
from app.settings import Settings
from tests.explained import reference, sample, write_explained
from tests.manifests import rewrite_manifest

CPU = Device("cpu", "test", 2, (("CPUExecutionProvider", {}),))
PADDING = Device("cuda", "a GPU's way of batching, on the CPU provider", 2, (("CPUExecutionProvider", {}),))
MATRICES = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explained(tmp_path_factory.mktemp("explained"), "forecaster")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", plan_seconds=0.05, max_batch=4)


@pytest.mark.parametrize("device", [CPU, PADDING], ids=["cpu", "padded buckets"])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_named_outputs_come_in_the_order_asked_for(bundle: Path, settings: Settings, device: Device, rows: int):
    model, x = Model(bundle, device, settings), sample("forecaster", rows)
    assert model.ordinary_outputs == ("forecast",)
    assert len(model.output_names) == 1 + MATRICES
    variates, forecast = model.run({"series": x}, ["attention.1.0", "forecast"], alone=True)
    assert variates.shape == (rows, 2, 5, 5)
    if rows:
        np.testing.assert_allclose(variates, reference(bundle, "forecaster", x)["attention.1.0"], rtol=0, atol=2e-6)
    (plain,) = model.run({"series": x}, ["forecast"], alone=True)
    np.testing.assert_allclose(forecast, plain, rtol=1e-5, atol=1e-5)


def test_several_threads_may_be_the_first_to_ask(bundle: Path, settings: Settings):
    model, x = Model(bundle, CPU, settings), sample("forecaster", 2)
    expected = reference(bundle, "forecaster", x)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: model.run({"series": x}, [name], alone=False)[0], list(expected) * 8))
    for name, matrices in zip(list(expected) * 8, found, strict=True):
        np.testing.assert_allclose(matrices, expected[name], rtol=0, atol=2e-6)


def test_what_is_not_asked_for_is_not_computed(bundle: Path, settings: Settings, monkeypatch, tmp_path: Path):
    """By ONNX Runtime's own account of the nodes that it ran."""
    made = compiled.session_options

    def profiling(threads: int) -> ort.SessionOptions:
        options = made(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        return options

    monkeypatch.setattr(compiled, "session_options", profiling)

    def operators(session: ort.InferenceSession) -> dict[str, int]:
        """Nodes of each kind in a run; at least one kind is there once."""
        events = json.loads(Path(session.end_profiling()).read_text())
        counts = Counter(event["args"]["op_name"] for event in events if event.get("cat") == "Node")
        runs = gcd(*counts.values())
        return {name: count // runs for name, count in counts.items()}

    plain = Path(shutil.copytree(bundle, tmp_path / "forecaster" / "1", ignore=shutil.ignore_patterns("explain.onnx")))
    manifest = json.loads((plain / "manifest.json").read_text())
    del manifest["files"]["explain.onnx"]
    rewrite_manifest(plain, outputs=manifest["outputs"][:1], files=manifest["files"])
    series, ran = {"series": sample("forecaster", 1)}, []
    for folder in (plain, bundle):
        model = Model(folder, CPU, settings)
        for _ in range(3):
            model.run(series, model.ordinary_outputs, alone=False)
        assert model._sessions._explaining is None
        ran.append(operators(model._sessions.narrow))
    assert ran[0] == ran[1]
    assert ran[0]["Softmax"] == MATRICES
    model.run(series, ["forecast", "attention.0.0"], alone=False)
    # In explain.onnx the cores have a softmax for each mode of each block, and its outputs have another one.
    assert operators(model._sessions.explaining())["Softmax"] == 2 * MATRICES


def test_a_graph_that_does_not_give_what_the_manifest_says_is_refused(bundle: Path, settings: Settings, tmp_path: Path):
    folder = Path(shutil.copytree(bundle, tmp_path / "forecaster" / "1"))
    outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
    outputs[-1]["name"] = "attention.9.9"
    rewrite_manifest(folder, outputs=outputs)
    with pytest.raises(BrokenBundle, match=r"lists the outputs as .*explain\.onnx has"):
        Model(folder, CPU, settings)
