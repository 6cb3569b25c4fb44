"""Every attention and every network besides the HOT product and sum: exported, proven at many shapes, served."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from app.manifest import TensorClassification, VolumeClassification
from app.settings import Settings
from export import ops
from export.bundle import Request, export_bundle
from export.checkpoint import load_module, read_checkpoint
from models.config import ClassifierConfig, Config, ForecasterConfig, KANetConfig, input_shape
from tests.conftest import speaking_to
from tests.export.conftest import Exported, write_checkpoint


def _forecaster(attention: str, **changes: object) -> Config:
    values = {"lookback": 24, "horizon": 16, "patch": 8, "dim": 16, "depth": 1, "heads": 4, "hidden": 24, **changes}
    return ForecasterConfig(attention=attention, **values)  # type: ignore[arg-type]


def _classifier(attention: str) -> Config:
    return ClassifierConfig(volume=(8, 12, 16), dim=16, depth=1, heads=2, hidden=24, attention=attention)  # type: ignore[arg-type]


_STAGES = (("base", 6, 2, 2), ("attention", 6, 2, 1))

FAMILIES: dict[str, tuple[Config, list[str]]] = {
    "forecaster-elu": (_forecaster("hot-kernelised"), ["HotKernelised2"]),
    "forecaster-random": (_forecaster("hot-kernelised", feature_map="random"), ["HotKernelised2"]),
    "forecaster-kao-kv": (_forecaster("kao-kv", position="learned"), ["KaoKv2"]),
    "forecaster-kao-qkv": (_forecaster("kao-qkv", position="sinusoidal"), ["KaoQkv2"]),
    "forecaster-full": (_forecaster("full"), []),
    "forecaster-full-pooled": (_forecaster("full-pooled"), []),
    "forecaster-none": (_forecaster("none"), []),
    "classifier-kao-qkv": (_classifier("kao-qkv"), ["KaoQkv3"]),
    "kanet-image": (
        KANetConfig(size=(16, 20), channels=3, classes=3, stem=4, modules=_STAGES, features=8, heads=2),
        ["KaoKv2"],
    ),
    "kanet-volume": (
        KANetConfig(size=(8, 12, 16), stem=4, modules=_STAGES, features=8, heads=2, attention="kao-qkv"),
        ["KaoQkv3"],
    ),
}

Families = Callable[[str], Exported]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    """The exported bundle of a family, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("families"), dict[str, Exported]()

    def get(name: str) -> Exported:
        if name not in made:
            config, _ = FAMILIES[name]
            source = read_checkpoint(write_checkpoint(root / "checkpoints" / name, config))
            folder, manifest = export_bundle(source, Request(name, "1", root / "repository"))
            made[name] = Exported(folder, manifest, config, load_module(source))
        return made[name]

    return get


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, families: Families) -> Exported:
    return families(request.param)


def _inputs(config: Config, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    variates, *rest = input_shape(config)
    sizes = (1, 7, 21, 321) if variates < 0 else (variates,)
    return [torch.randn(batch, size, *rest, generator=generator) for size in sizes]


def _relative(output: np.ndarray, reference: np.ndarray) -> float:
    assert output.shape == reference.shape
    return float(np.abs(output - reference).max() / np.abs(reference).max())


def test_agrees_with_the_module_in_float64_at_every_size(family: Exported) -> None:
    session = ort.InferenceSession(family.graph, providers=["CPUExecutionProvider"])
    exact = deepcopy(family.module).double()
    for batch in (1, 2, 7, 33):
        for x in _inputs(family.config, batch):
            if x.numel() > 20_000:
                continue  # 33 rows of 321 variates say nothing that 2 of them do not
            with torch.no_grad():
                reference = exact(x.double()).numpy()
            output = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            assert _relative(output, reference) < 1e-5, tuple(x.shape)


def test_runs_without_onnx_runtime(family: Exported) -> None:
    evaluator = ReferenceEvaluator(onnx.load(family.graph))
    session = ort.InferenceSession(family.graph, providers=["CPUExecutionProvider"])
    name, x = session.get_inputs()[0].name, _inputs(family.config, 2)[0].numpy()
    expected = session.run(None, {name: x})[0]
    assert _relative(evaluator.run(None, {name: x})[0], expected) < 1e-5


def test_attention_is_one_node_with_its_function(family: Exported) -> None:
    model = onnx.load(family.graph, load_external_data=False)
    expected = FAMILIES[family.manifest.name][1]
    assert [node.op_type for node in model.graph.node if node.domain == ops.DOMAIN] == expected
    assert {function.name for function in model.functions} == set(expected)


def test_every_weight_that_counts_is_read_from_the_file(family: Exported) -> None:
    model = onnx.load(family.graph, load_external_data=False)
    external = {tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    state = family.module.state_dict()
    assert external == {name for name in state if not name.endswith("num_batches_tracked")}
    inline = [tensor for tensor in model.graph.initializer if tensor.name not in external]
    assert max(onnx.numpy_helper.to_array(tensor).size for tensor in inline) <= 6 * 16, "no weight is copied"


@pytest.mark.parametrize("name", ["classifier-kao-qkv", "kanet-image"])
def test_exports_at_opset_23(name: str, tmp_path: Path) -> None:
    source = read_checkpoint(write_checkpoint(tmp_path / "checkpoint", FAMILIES[name][0]))
    folder, manifest = export_bundle(source, Request(name, "1", tmp_path, opset=23))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {23}
    assert manifest.parity.worst.relative < 1e-5


def test_tasks(families: Families) -> None:
    volume = families("kanet-volume").manifest.task
    assert isinstance(volume, VolumeClassification)
    assert [step.model_dump() for step in volume.preprocessing][-1]["shape"] == (8, 12, 16)
    image = families("kanet-image").manifest
    assert image.task == TensorClassification(labels=("class 0", "class 1", "class 2"))
    assert (image.inputs[0].name, image.inputs[0].axes) == ("image", ("batch", "channel", "height", "width"))


async def test_all_are_served(families: Families, tmp_path: Path) -> None:
    bundles = {name: families(name) for name in FAMILIES}
    repository = bundles["kanet-image"].folder.parent.parent
    settings = Settings(repository=repository, cache_dir=tmp_path, device="cpu", executors=1, max_batch=4)
    async with speaking_to(settings) as client:
        for name, bundle in bundles.items():
            (spec,) = bundle.manifest.inputs
            x = _inputs(bundle.config, 2)[0].numpy()
            tensor = {"name": spec.name, "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
            answer = await client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
            assert answer.status_code == 200, (name, answer.text)
            (output,) = answer.json()["outputs"]
            with torch.no_grad():
                expected = bundle.module(torch.from_numpy(x)).numpy()
            found = np.array(output["data"], np.float32).reshape(output["shape"])
            assert _relative(found, expected) < 1e-5, name
        requested = [{"name": "logits", "parameters": {"classification": 1}}]
        x = _inputs(bundles["kanet-image"].config, 1)[0].numpy()
        tensor = {"name": "image", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
        answer = await client.post("/v2/models/kanet-image/infer", json={"inputs": [tensor], "outputs": requested})
        (best,) = answer.json()["outputs"][0]["data"]
        index = int(bundles["kanet-image"].module(torch.from_numpy(x)).argmax())
        assert best.split(":")[1:] == [str(index), f"class {index}"]
        refused = await client.post("/v1/models/kanet-image/classify", content=b"")
        assert refused.status_code == 422
        assert "is for tensor-classification" in refused.json()["error"]
