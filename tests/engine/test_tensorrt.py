"""Batches that TensorRT runs: what it is asked to compile, what goes to it, and what stays where it was.

There is no TensorRT here. In the place of its session stands one of the CPU provider under its name, which keeps an
engine file as the provider does. One test has ONNX Runtime itself look for TensorRT.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from app.engine import sessions
from app.engine.device import TENSORRT, Device
from app.engine.repository import Repository
from app.engine.runtime import Model
from app.errors import Unavailable
from app.settings import Settings
from tests.engine.fakes import Line
from tests.manifests import rewrite_manifest

DEVICE = Device("tensorrt", "test", 2, ((TENSORRT, {}), ("CPUExecutionProvider", {})), "a GPU 13000 TensorRT 101300")
BUILT = "its TensorRT engine is being built"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", plan_seconds=0.05, max_batch=8, repository=tmp_path / "models")


@pytest.fixture
def bundle(repository: Path, settings: Settings) -> Path:
    return Path(shutil.copytree(repository / "hot-etth1" / "1", settings.repository / "hot-etth1" / "1"))


class Engine:
    """A session under TensorRT's name that notes its options and the shapes that it is given."""

    made: list[Engine]
    makes_files = True

    def __init__(self, graph: str, options: ort.SessionOptions, settings: dict[str, str]) -> None:
        self.settings, self.shapes = settings, set[tuple[int, ...]]()
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        Engine.made.append(self)
        if Engine.makes_files:
            (Path(settings["trt_engine_cache_path"]) / "graph_sm90.engine").write_bytes(b"engine")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [TENSORRT, *self._session.get_providers()]

    def io_binding(self) -> ort.IOBinding:
        return ort.IOBinding(self._session)

    def run(self, names: list[str] | None, inputs: dict[str, np.ndarray], options: Any = None) -> Any:
        self.shapes.add(inputs["series"].shape)
        return self._session.run(names, inputs, options)

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        self.shapes.add(tuple(binding.get_outputs()[0].shape()[:2]))
        self._session.run_with_iobinding(binding, options)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """Sessions that ask for TensorRT get an Engine."""

    class Runtime:
        @staticmethod
        def InferenceSession(graph: str, options: ort.SessionOptions, providers: list[Any]) -> Any:  # noqa: N802
            name, given = providers[0]
            return (
                Engine(graph, options, given)
                if name == TENSORRT
                else ort.InferenceSession(graph, options, providers=providers)
            )

        def __getattr__(self, name: str) -> Any:
            return getattr(ort, name)

    monkeypatch.setattr(sessions, "ort", Runtime())
    monkeypatch.setattr(Engine, "made", [], raising=False)
    return Engine


def series(rows: int, variates: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, variates, 96)).astype(np.float32)


def run(model: Model, batch: np.ndarray) -> np.ndarray:
    (forecast,) = model.run({"series": batch}, ["forecast"], alone=False)
    return forecast


def plain(bundle: Path, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["forecast"], {"series": batch})[0]


def test_engine_is_asked_for_every_batch_size_at_the_manifests_width(
    bundle: Path, settings: Settings, tensorrt: type[Engine]
):
    """Option names and spelling: onnxruntime.ai, "TensorRT Execution Provider", "Explicit shape range"."""
    model = Model(bundle, DEVICE, settings)
    (engine,) = tensorrt.made
    assert model.providers[0] == TENSORRT
    assert engine.settings["trt_profile_min_shapes"] == "series:1x7x96"
    assert engine.settings["trt_profile_max_shapes"] == "series:128x7x96"
    assert engine.settings["trt_engine_cache_enable"] == "1"
    assert Path(engine.settings["trt_engine_cache_path"]).parent == settings.cache_dir


def test_engine_replays_cuda_graphs_only_where_the_batches_take_turns(
    bundle: Path, settings: Settings, tensorrt: type[Engine]
):
    """Batches of a graph that the CUDA provider does not capture run beside each other."""
    for options in ({}, {"enable_cuda_graph": "1"}):
        providers = ((TENSORRT, {}), ("CPUExecutionProvider", options))
        Model(bundle, Device("tensorrt", "test", 2, providers, DEVICE.identity), settings)
    assert [engine.settings["trt_cuda_graph_enable"] for engine in tensorrt.made] == ["0", "1"]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_batches_of_that_width_are_the_engines_and_no_others(
    bundle: Path, settings: Settings, tensorrt: type[Engine], rows: int
):
    """Another shape would have TensorRT compile for minutes with requests waiting."""
    model = Model(bundle, DEVICE, settings)
    (engine,) = tensorrt.made
    for variates, its_own in ((7, True), (3, False)):
        engine.shapes.clear()
        batch = series(rows, variates)
        np.testing.assert_allclose(run(model, batch), plain(bundle, batch), rtol=1e-5, atol=1e-5)
        assert bool(engine.shapes) is its_own
    assert run(model, series(0, 7)).shape == (0, 7, 720)


def test_build_is_visible_and_the_second_start_has_none(bundle: Path, settings: Settings, tensorrt: type[Engine]):
    seen: list[tuple[str, str, str]] = []

    class Watched(Repository):
        def _note(self, name: str, version: str, doing: str) -> None:
            super()._note(name, version, doing)
            (row,) = self.index()
            with pytest.raises(Unavailable) as refused:
                self.get(name)
            seen.append((row.state, row.reason, refused.value.message))

    for build in (True, False):
        seen.clear()
        models = Watched(settings, DEVICE, Line())
        models.load_all()
        assert models.get("hot-etth1").plan.batch_limit == 8
        assert [(state, reason) for state, reason, _ in seen] == [
            *([("LOADING", BUILT)] if build else []),
            ("LOADING", "it is being loaded"),
        ]
        assert all(reason in message for _, reason, message in seen)


def test_version_that_serves_goes_on_while_its_change_is_built(
    bundle: Path, settings: Settings, tensorrt: type[Engine], monkeypatch: pytest.MonkeyPatch
):
    models = Repository(settings, DEVICE, Line())
    models.load_all()
    before = models.get("hot-etth1")
    rewrite_manifest(bundle, description="another")
    states: list[str] = []
    note = models._note

    def watch(name: str, version: str, doing: str) -> None:
        note(name, version, doing)
        states.extend(row.state for row in models.index())
        assert models.get("hot-etth1") is before

    monkeypatch.setattr(models, "_note", watch)
    models.load("hot-etth1")
    assert states == ["READY"]
    assert models.get("hot-etth1") is not before


def test_plan_is_kept_for_this_gpu_alone(bundle: Path, settings: Settings, tensorrt: type[Engine]):
    measured = settings.model_copy(update={"max_batch": 0})
    sources = [Model(bundle, DEVICE, measured).plan.source for _ in range(2)]
    other = Device(DEVICE.kind, DEVICE.reason, 2, DEVICE.providers, "another GPU 13000 TensorRT 101300")
    assert (*sources, Model(bundle, other, measured).plan.source) == ("measured", "cached", "measured")


@pytest.mark.parametrize("fault", ["nothing to compile", "not installed"])
def test_graph_that_tensorrt_does_not_run_is_served_all_the_same(
    bundle: Path,
    settings: Settings,
    fault: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Not installed: ONNX Runtime as it is here, which cannot use it."""
    if fault == "nothing to compile":
        request.getfixturevalue("tensorrt")
        monkeypatch.setattr(Engine, "makes_files", False)
    model = Model(bundle, DEVICE, settings)
    assert model.providers == ("CPUExecutionProvider",)
    batch = series(3, 7)
    np.testing.assert_allclose(run(model, batch), plain(bundle, batch), rtol=1e-5, atol=1e-5)
    assert "runs without TensorRT: " in caplog.text
