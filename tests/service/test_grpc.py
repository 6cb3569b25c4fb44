"""The Open Inference Protocol over gRPC, on a real port: tritonclient, blocking and asyncio, and its bare messages."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.service.process import Server, serving
from tests.tiny_models import IDENTITY_TYPES, write_identity_model, write_lookup_model, write_offset_model


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        yield client


class Awaited:
    """The blocking client, to be called as the asyncio one is."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)
        return lambda *arguments, **options: asyncio.to_thread(method, *arguments, **options)


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of tritonclient's clients."""
    found: str = request.param
    return found


@asynccontextmanager
async def calling(server: Server, kind: str) -> AsyncIterator[Any]:
    """One of tritonclient's clients; its calls are awaited."""
    url = f"127.0.0.1:{server.grpc_port}"
    if kind == "asyncio":
        async with triton_aio.InferenceServerClient(url) as client:
            yield client
    else:
        with triton.InferenceServerClient(url) as client:
            yield Awaited(client)


@pytest_asyncio.fixture
async def either(server: Server, kind: str) -> AsyncIterator[Any]:
    """Each client in turn."""
    async with calling(server, kind) as client:
        yield client


def triton_input(name: str, tensor: np.ndarray, datatype: str) -> triton.InferInput:
    item = triton.InferInput(name, list(tensor.shape), datatype)
    item.set_data_from_numpy(tensor)
    return item


async def test_health_and_metadata(either: Any):
    assert await either.is_server_live()
    assert await either.is_server_ready()
    assert await either.is_model_ready("hot-etth1")
    assert await either.is_model_ready("hot-etth1", "1")
    assert not await either.is_model_ready("broken")
    assert "model_configuration" in (await either.get_server_metadata()).extensions
    metadata = await either.get_model_metadata("hot-etth1", "1", as_json=True)
    assert metadata == {
        "name": "hot-etth1",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "series", "datatype": "FP32", "shape": ["-1", "-1", "96"]}],
        "outputs": [{"name": "forecast", "datatype": "FP32", "shape": ["-1", "-1", "720"]}],
    }


async def test_configuration_shows_the_plan(either: Any):
    config = (await either.get_model_config("hot-etth1")).config
    plan = json.loads(config.parameters["plan"].string_value)
    assert config.max_batch_size == plan["batch_limit"] >= 1
    assert [(item.name, list(item.dims)) for item in config.input] == [("series", [-1, 96])]
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
async def test_infer_equals_onnx_runtime(either: Any, series, expected, compression: str | None):
    result = await either.infer(
        "hot-etth1",
        [triton_input("series", series, "FP32")],
        model_version="1",
        request_id="request 7",
        compression_algorithm=compression,
    )
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("hot-etth1", "1", "request 7")
    np.testing.assert_allclose(result.as_numpy("forecast"), expected, rtol=1e-5, atol=1e-5)


def test_large_message_takes_the_same_way(client, repository: Path):
    """Over 256 KiB in and out, where another thread decodes and encodes."""
    series = np.random.default_rng(1).normal(size=(64, 21, 96)).astype(np.float32)
    session = ort.InferenceSession(repository / "hot-etth1/1/model.onnx", providers=["CPUExecutionProvider"])
    forecast = client.infer("hot-etth1", [triton_input("series", series, "FP32")]).as_numpy("forecast")
    for row in (0, 40, 63):
        alone = session.run(["forecast"], {"series": series[row : row + 1]})[0]
        np.testing.assert_allclose(forecast[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_typed_contents_are_answered_typed(server: Server, series, expected):
    request = pb.ModelInferRequest(model_name="hot-etth1", id="typed")
    tensor = request.inputs.add(name="series", datatype="FP32", shape=series.shape)
    tensor.contents.fp32_contents.extend(series.ravel().tolist())
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert response.id == "typed"
    assert not response.raw_output_contents
    forecast = np.array(response.outputs[0].contents.fp32_contents, np.float32).reshape(response.outputs[0].shape)
    np.testing.assert_allclose(forecast, expected, rtol=1e-5, atol=1e-5)


def test_blocking_client_with_many_in_flight(client, series, expected):
    answers: queue.Queue[tuple[int, triton.InferResult | None, Exception | None]] = queue.Queue()
    for n in range(40):
        row = series[n % 3 : n % 3 + 1]
        client.async_infer(
            "hot-etth1",
            [triton_input("series", row, "FP32")],
            callback=lambda result, error, n=n: answers.put((n, result, error)),
        )
    seen = set()
    for _ in range(40):
        n, result, error = answers.get(timeout=60)
        assert error is None
        np.testing.assert_allclose(result.as_numpy("forecast"), expected[n % 3 : n % 3 + 1], rtol=1e-5, atol=1e-5)
        seen.add(n)
    assert seen == set(range(40))


async def test_asyncio_client_with_many_in_flight(server: Server, series, expected):
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        results = await asyncio.gather(
            *(client.infer("hot-etth1", [triton_input("series", series[n % 3 : n % 3 + 1], "FP32")]) for n in range(40))
        )
    for n, result in enumerate(results):
        np.testing.assert_allclose(result.as_numpy("forecast"), expected[n % 3 : n % 3 + 1], rtol=1e-5, atol=1e-5)


async def test_two_inputs_and_chosen_outputs(either: Any):
    a, b = np.arange(6, dtype=np.int32).reshape(2, 3), np.full((2, 3), 10, np.int32)
    inputs = [triton_input("b", b, "INT32"), triton_input("a", a, "INT32")]
    result = await either.infer("add", inputs, outputs=[triton.InferRequestedOutput("difference")])
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)
    assert result.as_numpy("sum") is None
    swapped = await either.infer("add", inputs, outputs=[triton.InferRequestedOutput(n) for n in ("difference", "sum")])
    assert [output.name for output in swapped.get_response().outputs] == ["difference", "sum"]
    np.testing.assert_array_equal((await either.infer("add", inputs)).as_numpy("sum"), a + b)


def test_empty_batch_is_legal(client):
    empty = np.zeros((0, 3), np.int32)
    result = client.infer("add", [triton_input("a", empty, "INT32"), triton_input("b", empty, "INT32")])
    assert list(result.get_output("sum").shape) == [0, 3]


VALUES = {
    "BOOL": [True, False, True],
    "UINT8": [0, 1, 255],
    "UINT16": [0, 1, 2**16 - 1],
    "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "INT8": [-128, 0, 127],
    "INT16": [-(2**15), 0, 2**15 - 1],
    "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "FP16": [-65504.0, 6e-8, 1.5],
    "FP32": [-3.4e38, 1e-45, 1.5],
    "FP64": [-1.7e308, 5e-324, 1.5],
    "BYTES": [b"", "ü€".encode(), b"a\0b"],
}
CONTENTS = {"BOOL": "bool", "UINT64": "uint64", "INT64": "int64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}
CONTENTS |= {f"UINT{bits}": "uint" for bits in (8, 16, 32)} | {f"INT{bits}": "int" for bits in (8, 16, 32)}


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one identity model per datatype, one model to load and unload, and one that can fail."""
    root = tmp_path_factory.mktemp("identities")
    for datatype in IDENTITY_TYPES:
        write_identity_model(root / f"identity-{datatype}" / "1", datatype)
    write_offset_model(root / "offset" / "1", 1.0)
    write_lookup_model(root / "lookup" / "1", 5)
    with serving(root, root.with_name("identities.log"), "--max-batch", "4") as running:
        yield running


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype_raw(identities: Server, datatype: str):
    dtype = np.object_ if datatype == "BYTES" else triton.triton_to_np_dtype(datatype)
    tensor = np.array([VALUES[datatype]], dtype)
    with triton.InferenceServerClient(f"127.0.0.1:{identities.grpc_port}") as client:
        result = client.infer(f"identity-{datatype}", [triton_input("x", tensor, datatype)])
    assert result.get_output("y").datatype == datatype
    np.testing.assert_array_equal(result.as_numpy("y"), tensor)


@pytest.mark.parametrize("datatype", CONTENTS)
def test_every_datatype_typed(identities: Server, datatype: str):
    field = f"{CONTENTS[datatype]}_contents"
    request = pb.ModelInferRequest(model_name=f"identity-{datatype}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 3])
    getattr(tensor.contents, field).extend(VALUES[datatype])
    with grpc.insecure_channel(f"127.0.0.1:{identities.grpc_port}") as channel:
        output = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request).outputs[0]
    assert (output.datatype, list(output.shape)) == (datatype, [1, 3])
    assert output.contents == tensor.contents


def test_typed_answer_is_raw_when_an_output_is_fp16(identities: Server):
    request = pb.ModelInferRequest(model_name="lookup")
    request.inputs.add(name="index", datatype="INT64", shape=[1, 2]).contents.int64_contents.extend([3, 4])
    with grpc.insecure_channel(f"127.0.0.1:{identities.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        both = stub.ModelInfer(request)
        request.outputs.add(name="y")
        typed = stub.ModelInfer(request)
    assert list(both.raw_output_contents) == [np.array([3, 4], dtype).tobytes() for dtype in ("<f4", "<f2")]
    assert not any(output.HasField("contents") for output in both.outputs)
    assert list(typed.outputs[0].contents.fp32_contents) == [3, 4]
    assert not typed.raw_output_contents


def test_failure_of_the_model_is_internal_and_the_next_call_works(identities: Server):
    with triton.InferenceServerClient(f"127.0.0.1:{identities.grpc_port}") as client:
        with pytest.raises(InferenceServerException, match="lookup could not run this input") as caught:
            client.infer("lookup", [triton_input("index", np.array([[1, 99]], np.int64), "INT64")])
        assert caught.value.status() == "StatusCode.INTERNAL"
        result = client.infer("lookup", [triton_input("index", np.array([[1, 2]], np.int64), "INT64")])
        np.testing.assert_array_equal(result.as_numpy("y"), [[1, 2]])


def test_bytes_that_are_not_text_are_refused(identities: Server):
    with triton.InferenceServerClient(f"127.0.0.1:{identities.grpc_port}") as client:
        tensor = triton_input("x", np.array([[b"\xff", b"", b""]], np.object_), "BYTES")
        with pytest.raises(InferenceServerException, match="UTF-8") as caught:
            client.infer("identity-BYTES", [tensor])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_outputs_as_classes(either: Any, repository: Path):
    """The two labels of the volume classifier, best first, beside an output as its values."""
    volume = (np.random.default_rng(4).random(size=(2, 1, 32, 32, 32)) > 0.5).astype(np.float32)
    session = ort.InferenceSession(repository / "hot-adrenal/1/model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {"volume": volume})[0]
    metadata = await either.get_model_metadata("hot-adrenal")
    name = metadata.outputs[0].name
    result = await either.infer(
        "hot-adrenal",
        [triton_input("volume", volume, "FP32")],
        outputs=[triton.InferRequestedOutput(name, class_count=2)],
    )
    for row, texts in enumerate(result.as_numpy(name)):
        values, indices, labels = zip(*(text.decode().split(":") for text in texts), strict=True)
        order = np.argsort(-logits[row])
        assert [int(index) for index in indices] == order.tolist()
        np.testing.assert_allclose(np.array(values, float), logits[row][order], rtol=1e-4, atol=1e-4)
        assert all(labels)


async def test_load_and_unload(identities: Server, kind: str):
    async with calling(identities, kind) as client:
        tensor = [triton_input("x", np.zeros((1, 3), np.float32), "FP32")]
        await client.unload_model("offset")
        assert not await client.is_model_ready("offset")
        rows = {row.name: row.state for row in (await client.get_model_repository_index()).models}
        assert rows["offset"] == "UNAVAILABLE"
        assert rows["identity-FP32"] == "READY"
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("offset", tensor)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        await client.load_model("offset")
        np.testing.assert_array_equal((await client.infer("offset", tensor)).as_numpy("y"), np.ones((1, 3)))
        with pytest.raises(InferenceServerException) as caught:
            await client.load_model("nope")
        assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_load_as_kserve_spells_it(identities: Server):
    """Its message has the model's name as field 1, Triton's as field 2; its answer repeats the name and says true."""
    message = pb.RepositoryModelLoadRequest(repository_name="offset").SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{identities.grpc_port}") as channel:
        for method in ("RepositoryModelUnload", "RepositoryModelLoad"):
            answer = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message)
            assert answer == b"\x0a\x06offset\x10\x01"


async def test_statistics_count_requests_and_rows(identities: Server, kind: str):
    async with calling(identities, kind) as client:
        before = (await client.get_inference_statistics("identity-INT32")).model_stats[0]
        for rows in (1, 2, 3):
            await client.infer("identity-INT32", [triton_input("x", np.zeros((rows, 3), np.int32), "INT32")])
        after = (await client.get_inference_statistics("identity-INT32", "1")).model_stats[0]
        everything = {model.name for model in (await client.get_inference_statistics()).model_stats}
    assert (after.name, after.version) == ("identity-INT32", "1")
    assert after.inference_count - before.inference_count == 6
    assert 3 <= after.execution_count - before.execution_count <= 6  # rows may go to both executors
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert everything >= {"identity-INT32", "identity-BYTES"}
