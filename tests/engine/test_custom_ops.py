"""Kernels from a library, compiled here from the repository's source: used when they can be, and never needed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from app.engine.custom_ops import DOMAIN_VERSION, Kernels, KernelUse
from app.engine.device import Device
from app.engine.runtime import Model
from app.settings import Settings
from export import ops
from tests.conftest import speaking_to
from tests.kernels import library, unusable
from tests.manifests import rewrite_manifest

CPU = Device("cpu", "test", 1, (("CPUExecutionProvider", {}),))


@pytest.fixture(scope="module")
def kernels() -> Path:
    return library()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", plan_seconds=0.01, max_batch=4)


def _series(rows: int, variates: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, variates, 96)).astype(np.float32)


def _attention(values: dict[str, np.ndarray], scale: float) -> np.ndarray:
    """The Kronecker product of both modes' attentions over the flattened tokens, in float64."""
    value = values["value"].astype(np.float64)
    result = np.empty_like(value)
    for sample, head in np.ndindex(value.shape[0], value.shape[3]):
        matrices = []
        for mode in "12":
            scores = np.exp(
                scale * values[f"q{mode}"][sample, :, head] @ values[f"k{mode}"][sample, :, head].T.astype(float)
            )
            matrices.append(scores / scores.sum(axis=1, keepdims=True))
        tokens = value[sample, :, :, head].reshape(-1, value.shape[-1])
        result[sample, :, :, head] = (np.kron(*matrices) @ tokens).reshape(value.shape[1], value.shape[2], -1)
    return result


def _one_node(element: int) -> bytes:
    core = ops.cores()["HotProduct2"]
    inputs = [
        helper.make_tensor_value_info(name, element, [None] * (5 if name == "value" else 4)) for name in core.inputs
    ]
    node = helper.make_node(core.name, core.inputs, ["result"], domain=ops.DOMAIN, scale=0.3)
    output = helper.make_tensor_value_info("result", element, [None] * 5)
    graph = helper.make_graph([node], "one", inputs, [output])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    ops.attach_functions(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 3, 5, 2, 4), (3, 7, 24, 4, 8), (1, 21, 2, 1, 17), (0, 3, 5, 2, 4)]
)
def test_the_kernel_computes_the_papers_product(kernels: Path, shape: tuple[int, ...]) -> None:
    batch, n1, n2, heads, width = shape
    draw = np.random.default_rng(n1).standard_normal
    sizes = {
        "value": shape,
        **{f"{kind}{mode}": (batch, n, heads, width) for mode, n in ((1, n1), (2, n2)) for kind in "qk"},
    }
    values = {name: draw(size).astype(np.float32) for name, size in sizes.items()}
    options, opened = ort.SessionOptions(), Kernels(kernels)
    options.intra_op_num_threads = 1
    opened.register(options)
    session = ort.InferenceSession(_one_node(TensorProto.FLOAT), options, providers=["CPUExecutionProvider"])
    results = []
    assert opened.calls_during(lambda: results.extend(session.run(None, values))) == 1
    np.testing.assert_allclose(results[0], _attention(values, 0.3), rtol=2e-5, atol=2e-6)


def test_several_threads_compute_the_same(kernels: Path) -> None:
    shape = (5, 7, 24, 4, 8)
    draw = np.random.default_rng(0).standard_normal
    sizes = {"value": shape, **{f"{kind}{mode}": (5, n, 4, 8) for mode, n in ((1, 7), (2, 24)) for kind in "qk"}}
    values = {name: draw(size).astype(np.float32) for name, size in sizes.items()}
    found = []
    for threads in (1, 2):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        Kernels(kernels).register(options)
        session = ort.InferenceSession(_one_node(TensorProto.FLOAT), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, values)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("rows", "variates"), [(1, 1), (3, 7), (2, 21)])
def test_a_bundle_gives_the_same_with_and_without(
    repository: Path, settings: Settings, kernels: Path, rows: int, variates: int
) -> None:
    bundle, x = repository / "hot-etth1" / "1", {"series": _series(rows, variates)}
    plain = Model(bundle, CPU, settings)
    with_kernels = Model(bundle, CPU, settings.model_copy(update={"custom_ops": kernels}))
    assert plain.kernel_use is None
    assert with_kernels.kernel_use == KernelUse(kernels.name, calls_per_run=2)  # one a block
    opened = Kernels(kernels)
    answers = []
    for model, calls in ((plain, 0), (with_kernels, 2)):
        ran = opened.calls_during(lambda model=model: answers.append(model.run(x, ["forecast"], alone=False)[0]))
        assert ran == calls
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-5, atol=1e-5 * np.abs(answers[0]).max())
    # The compiled graph in the cache is told apart from the one without kernels.
    again = Model(bundle, CPU, settings.model_copy(update={"custom_ops": kernels}))
    assert again.kernel_use == with_kernels.kernel_use
    assert again.plan.source == with_kernels.plan.source


def test_a_graph_without_its_operators_says_so(repository: Path, settings: Settings, kernels: Path) -> None:
    model = Model(repository / "hot-adrenal" / "1", CPU, settings.model_copy(update={"custom_ops": kernels}))
    assert model.kernel_use == KernelUse(kernels.name, reason="it has no kernel for an operator of this graph")
    assert model.run({"volume": np.zeros((1, 1, 32, 32, 32), np.float32)}, ["logits"], alone=False)[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "there is no such file"),
        ("text", "it cannot be loaded"),
        ("version", "for version 99 of ai.kronserve, models have 1"),
        ("stranger", "it lacks kronserve_kernels_version"),
        ("no entry", "ONNX Runtime refuses it"),
    ],
)
def test_a_library_that_cannot_be_used_costs_a_warning(
    repository: Path, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, reason: str
) -> None:
    if kind == "missing":
        path = tmp_path / "nowhere.so"
    elif kind == "text":
        path = tmp_path / "text.so"
        path.write_text("no library")
    else:
        path = unusable(kind, tmp_path)
    bundle, x = repository / "hot-etth1" / "1", {"series": _series(2, 7)}
    with caplog.at_level(logging.WARNING):
        model = Model(bundle, CPU, settings.model_copy(update={"custom_ops": path}))
    assert model.kernel_use is not None
    assert reason in model.kernel_use.reason
    assert (model.kernel_use.library, model.kernel_use.calls_per_run) == (path.name, 0)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"hot-etth1/1 runs without the kernels of {path.name}: ")
    expected = Model(bundle, CPU, settings).run(x, ["forecast"], alone=False)[0]
    np.testing.assert_array_equal(model.run(x, ["forecast"], alone=False)[0], expected)


def test_a_refused_type_costs_a_warning(settings: Settings, kernels: Path, tmp_path: Path) -> None:
    """The kernel takes float32; a float64 node of the same name runs as its function."""
    folder = tmp_path / "double" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(_one_node(TensorProto.DOUBLE))
    model = Model(folder, CPU, settings.model_copy(update={"custom_ops": kernels}))
    assert model.kernel_use is not None
    assert "ONNX Runtime cannot load model.onnx" in model.kernel_use.reason
    draw = np.random.default_rng(0).standard_normal
    sizes = {"value": (2, 3, 4, 1, 2), "q1": (2, 3, 1, 2), "k1": (2, 3, 1, 2), "q2": (2, 4, 1, 2), "k2": (2, 4, 1, 2)}
    values = {name: draw(size) for name, size in sizes.items()}
    np.testing.assert_allclose(model.run(values, ["result"], alone=False)[0], _attention(values, 0.3), rtol=1e-6)


async def test_the_metadata_of_every_model_says_what_became_of_it(
    repository: Path, settings: Settings, kernels: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(repository / "hot-etth1", tmp_path / "models" / "hot-etth1")).parent
    broken = Path(shutil.copytree(repository / "hot-etth1" / "1", root / "broken" / "1"))
    (broken / "model.onnx").write_bytes(b"no graph")
    files = {"model.onnx": {"sha256": "e" * 64, "size": 8}}
    rewrite_manifest(broken, name="broken", files=files)
    async with speaking_to(
        settings.model_copy(update={"repository": root, "custom_ops": kernels, "device": "cpu"})
    ) as client:
        metadata = (await client.get("/v2/models/hot-etth1")).json()
        assert metadata["parameters"]["custom_ops"] == {"library": kernels.name, "calls_per_run": 2, "reason": ""}
        config = (await client.get("/v2/models/hot-etth1/config")).json()
        assert '"calls_per_run": 2' in config["parameters"]["custom_ops"]["string_value"]
        assert (await client.get("/v2/models/broken")).status_code == 503
    async with speaking_to(settings.model_copy(update={"repository": root, "device": "cpu"})) as client:
        assert "custom_ops" not in (await client.get("/v2/models/hot-etth1")).json()["parameters"]


def test_the_service_knows_the_exporters_version() -> None:
    assert ops.VERSION == DOMAIN_VERSION
