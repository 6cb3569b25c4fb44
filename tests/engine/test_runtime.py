"""Loading bundles and running them, on real ONNX Runtime sessions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from app.engine import compiled
from app.engine.device import Device
from app.engine.repository import NotServing, Repository
from app.engine.runtime import Model
from app.errors import InferenceFailed, Unavailable, UnknownModel
from app.integrity import SUM, BrokenBundle, sum_line
from app.settings import Settings
from tests.engine.fakes import Line
from tests.manifests import rewrite_manifest

CPU = Device("cpu", "test", 2, (("CPUExecutionProvider", {}),))
PADDING = Device("cuda", "a GPU's way of batching, on the CPU provider", 2, (("CPUExecutionProvider", {}),))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", plan_seconds=0.05)


@pytest.fixture
def bundle(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository / "hot-etth1" / "1", tmp_path / "hot-etth1" / "1"))


def reference(bundle: Path, series: np.ndarray) -> np.ndarray:
    """The graph as it is in a session as ONNX Runtime makes it; it cannot divide an empty batch among its axes."""
    if len(series) == 0:
        return np.zeros((0, series.shape[1], 720), np.float32)
    session = ort.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["forecast"], {"series": series})[0]


@pytest.mark.parametrize("device", [CPU, PADDING], ids=["cpu", "padded buckets"])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3, 5, 8])
def test_run_equals_the_plain_graph(bundle: Path, settings: Settings, device: Device, alone: bool, rows: int):
    model = Model(bundle, device, settings.model_copy(update={"max_batch": 8}))
    series = np.random.default_rng(rows).normal(size=(rows, 3, 96)).astype(np.float32)
    (forecast,) = model.run({"series": series}, ["forecast"], alone=alone)
    assert forecast.shape == (rows, 3, 720)
    np.testing.assert_allclose(forecast, reference(bundle, series), rtol=1e-5, atol=1e-5)


def test_lone_request_on_all_cores_gives_the_same(bundle: Path, settings: Settings):
    model = Model(bundle, CPU, settings)
    object.__setattr__(model.plan, "threads_alone", 2)
    series = np.random.default_rng(0).normal(size=(1, 7, 96)).astype(np.float32)
    (wide,) = model.run({"series": series}, ["forecast"], alone=True)
    np.testing.assert_allclose(wide, reference(bundle, series), rtol=1e-5, atol=1e-5)


def test_second_load_takes_plan_and_compiled_graph_from_the_cache(bundle: Path, settings: Settings):
    assert Model(bundle, CPU, settings).plan.source == "measured"
    (graph,) = settings.cache_dir.glob("*/model.onnx")
    before = graph.stat().st_mtime_ns
    assert Model(bundle, CPU, settings).plan.source == "cached"
    assert graph.stat().st_mtime_ns == before


def test_damaged_cache_is_made_again(bundle: Path, settings: Settings):
    Model(bundle, CPU, settings)
    (weights,) = settings.cache_dir.glob(f"*/{compiled.WEIGHTS}")
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    weights.write_bytes(damaged)
    series = np.random.default_rng(0).normal(size=(1, 7, 96)).astype(np.float32)
    (forecast,) = Model(bundle, CPU, settings).run({"series": series}, ["forecast"], alone=False)
    np.testing.assert_allclose(forecast, reference(bundle, series), rtol=1e-5, atol=1e-5)


def test_unwritable_cache_costs_time_not_service(bundle: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    model = Model(bundle, CPU, Settings(cache_dir=tmp_path / "file" / "cache", plan_seconds=0.05))
    series = np.zeros((1, 1, 96), np.float32)
    assert model.run({"series": series}, ["forecast"], alone=False)[0].shape == (1, 1, 720)


def test_setting_and_manifest_override_the_plan(bundle: Path, settings: Settings):
    rewrite_manifest(bundle, serving={"max_batch": 3})
    assert (Model(bundle, CPU, settings).plan.batch_limit, Model(bundle, CPU, settings).plan.source) == (3, "set")
    assert Model(bundle, CPU, settings.model_copy(update={"max_batch": 5})).plan.batch_limit == 5


def test_input_the_graph_refuses_is_inference_failed(bundle: Path, settings: Settings):
    model = Model(bundle, CPU, settings)
    with pytest.raises(InferenceFailed) as caught:
        model.run({"series": np.zeros((1, 1, 95), np.float32)}, ["forecast"], alone=False)
    assert str(bundle) not in caught.value.message


def damage(bundle: Path, kind: str) -> None:
    graph, weights = bundle / "model.onnx", bundle / "weights.safetensors"
    match kind:
        case "no graph":
            graph.unlink()
        case "graph cut":
            graph.write_bytes(graph.read_bytes()[:-50])
        case "weights missing":
            weights.unlink()
        case "one bit of the weights":
            data = bytearray(weights.read_bytes())
            data[-1] ^= 1
            weights.write_bytes(data)
        case "manifest is not JSON":
            (bundle / "manifest.json").write_text("{")
            (bundle / SUM).write_text(sum_line(b"{"))
        case "manifest of another version":
            rewrite_manifest(bundle, version="2")
        case "unknown key":
            rewrite_manifest(bundle, surprise=1)
        case "lie about the shape":
            lie = {"name": "series", "datatype": "FP32", "shape": [-1, -1, 48], "axes": []}
            rewrite_manifest(bundle, inputs=[lie])
        case "lie about the output":
            rewrite_manifest(
                bundle, outputs=[{"name": "forecast", "datatype": "FP32", "shape": [-1, -1, 96], "axes": []}]
            )
        case "an operator the runtime lacks":
            model = onnx.load(graph, load_external_data=False)
            next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Oracle"
            onnx.save(model, graph)
            rewrite_manifest(bundle, files={"model.onnx": hash_of(graph), "weights.safetensors": hash_of(weights)})
        case "a path outside":
            rewrite_manifest(bundle, files={"model.onnx": hash_of(graph), "../secret": hash_of(graph)})
            shutil.copy(graph, bundle.parent / "secret")
        case "rubbish instead of a graph, hash and all":
            graph.write_bytes(os.urandom(1000))
            rewrite_manifest(bundle, files={"model.onnx": hash_of(graph), "weights.safetensors": hash_of(weights)})


def hash_of(file: Path) -> dict[str, Any]:
    import hashlib

    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no graph", "model.onnx is missing"),
        ("graph cut", "bytes instead of"),
        ("weights missing", "weights.safetensors is missing"),
        ("one bit of the weights", "SHA-256"),
        ("manifest is not JSON", "manifest.json is not valid"),
        ("manifest of another version", "the folder is hot-etth1/1"),
        ("unknown key", "surprise"),
        ("lie about the shape", "but model.onnx has"),
        ("lie about the output", "lists the outputs as .*but model.onnx has"),
        ("an operator the runtime lacks", "ONNX Runtime cannot load model.onnx: .*Oracle"),
        ("a path outside", "../secret"),
        ("rubbish instead of a graph, hash and all", "ONNX Runtime cannot load"),
    ],
)
def test_broken_bundle_says_why_and_the_rest_serves(
    bundle: Path, repository: Path, settings: Settings, tmp_path: Path, kind: str, reason: str
):
    damage(bundle, kind)
    with pytest.raises(BrokenBundle, match=reason):
        Model(bundle, CPU, settings)
    shutil.copytree(repository / "hot-etth1" / "1", tmp_path / "other" / "1")
    rewrite_manifest(tmp_path / "other" / "1", name="other")
    models = Repository(settings.model_copy(update={"repository": tmp_path}), CPU, Line())
    models.load_all()
    assert models.get("other").name == "other"
    with pytest.raises(Unavailable, match=reason):
        models.get("hot-etth1")
    assert [isinstance(entry, NotServing) for entry in models] == [True, False]


def test_highest_version_that_serves_is_the_default(bundle: Path, settings: Settings, tmp_path: Path):
    for version in ("2", "10"):
        shutil.copytree(bundle, bundle.parent / version)
        rewrite_manifest(bundle.parent / version, version=version)
    (bundle.parent / "10" / "weights.safetensors").unlink()
    models = Repository(settings.model_copy(update={"repository": tmp_path}), CPU, Line())
    models.load_all()
    assert models.get("hot-etth1").version == "2"
    assert models.get("hot-etth1", "1").version == "1"
    assert models.versions("hot-etth1") == ["1", "2"]
    with pytest.raises(Unavailable):
        models.get("hot-etth1", "10")
    with pytest.raises(UnknownModel, match="no version '3'"):
        models.get("hot-etth1", "3")
    with pytest.raises(UnknownModel, match="unknown model 'x'"):
        models.get("x")
