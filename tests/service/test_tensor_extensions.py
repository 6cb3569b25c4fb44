"""What surrounds inference: classification, compression, datatypes of their own way, paths and headers."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import triton_to_np_dtype

from tests.service.conftest import NUMBERS
from tests.service.process import Server
from tests.service.test_tensor_protocol import triton_input

VOLUMES = np.random.default_rng(5).random((3, 1, 32, 32, 32), dtype=np.float32)
SERIES = np.random.default_rng(6).normal(size=(2, 3, 96)).astype(np.float32)
FORECASTER, CLASSIFIER = "hot-etth1", "hot-adrenal"
LABELS = ("normal", "hyperplasia")


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


@pytest.fixture(scope="module")
def logits(repository: Path) -> np.ndarray:
    session = ort.InferenceSession(repository / CLASSIFIER / "1/model.onnx", providers=["CPUExecutionProvider"])
    tensor: np.ndarray = session.run(None, {session.get_inputs()[0].name: VOLUMES})[0]
    return tensor


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_classification_gives_labels(
    client: triton.InferenceServerClient, logits: np.ndarray, binary: bool, count: int
):
    signature = client.get_model_metadata(CLASSIFIER)
    (given,), (output, *_) = signature["inputs"], signature["outputs"]
    result = client.infer(
        CLASSIFIER,
        [triton_input(given["name"], VOLUMES, "FP32")],
        outputs=[triton.InferRequestedOutput(output["name"], binary_data=binary, class_count=count)],
    )
    assert result.get_output(output["name"])["datatype"] == "BYTES"
    texts = result.as_numpy(output["name"])
    assert texts.shape == (3, min(count, 2))
    for row, expected in zip(texts, logits, strict=True):
        for text, index in zip(row, np.argsort(-expected), strict=False):
            value, at, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(at), label) == (index, LABELS[index])
            assert float(value) == pytest.approx(expected[index], abs=1e-5)


def test_classification_beside_values_and_without_labels(client: triton.InferenceServerClient):
    a = np.array([[5, 1, 9]], np.int32)
    outputs = [
        triton.InferRequestedOutput("sum", class_count=2),
        triton.InferRequestedOutput("difference", binary_data=False),
    ]
    inputs = [triton_input("a", a, "INT32"), triton_input("b", np.zeros_like(a), "INT32")]
    result = client.infer("add", inputs, outputs=outputs)
    assert result.as_numpy("sum").tolist() == [[b"9:2", b"5:0"]]
    np.testing.assert_array_equal(result.as_numpy("difference"), a)


@pytest.mark.parametrize("whole", [True, False])
def test_an_output_says_for_itself_whether_it_is_binary(server: Server, whole: bool):
    """`binary_data` against the request's `binary_data_output`, both ways; an output that says nothing follows it."""
    inputs = [
        {"name": name, "shape": [1, 3], "datatype": "INT32", "data": data}
        for name, data in (("a", [5, 1, 9]), ("b", [1, 2, 3]))
    ]
    outputs = [{"name": "sum", "parameters": {"binary_data": not whole}}, {"name": "difference"}]
    body = {"inputs": inputs, "outputs": outputs, "parameters": {"binary_data_output": whole}}
    answer = httpx.post(f"{server.url}/v2/models/add/infer", json=body)
    length = int(answer.headers["inference-header-content-length"])
    described = {output["name"]: output for output in json.loads(answer.content[:length])["outputs"]}
    values = {"sum": [6, 3, 12], "difference": [4, -1, 6]}
    binary, plain = ("difference", "sum") if whole else ("sum", "difference")
    assert described[binary]["parameters"] == {"binary_data_size": 12}
    assert "data" not in described[binary]
    assert np.frombuffer(answer.content[length:], "<i4").tolist() == values[binary]
    assert "parameters" not in described[plain]
    assert described[plain]["data"] == values[plain]


async def test_chosen_outputs_under_batching(server: Server):
    """Requests for different outputs wait together; each gets its own, and only those."""
    choices = [("sum",), ("difference",), ("difference", "sum"), ()]
    b = np.array([[1, 2, 3]], np.int32)
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}", conn_limit=32) as client:
        answers = await asyncio.gather(
            *(
                client.infer(
                    "add",
                    [triton_input("a", np.full((1, 3), n, np.int32), "INT32"), triton_input("b", b, "INT32")],
                    outputs=[triton.InferRequestedOutput(name) for name in choices[n % 4]] or None,
                )
                for n in range(200)
            )
        )
    for n, answer in enumerate(answers):
        names = choices[n % 4] or ("sum", "difference")
        assert [output["name"] for output in answer.get_response()["outputs"]] == list(names)
        for name in names:
            np.testing.assert_array_equal(answer.as_numpy(name), n + b if name == "sum" else n - b)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_answer_equals_the_plain_one(client: triton.InferenceServerClient, encoding: str, binary: bool):
    inputs = [triton_input("series", SERIES, "FP32")]
    outputs = [triton.InferRequestedOutput("forecast", binary_data=binary)]
    plain = client.infer(FORECASTER, inputs, outputs=outputs)
    packed = client.infer(
        FORECASTER,
        inputs,
        outputs=outputs,
        request_compression_algorithm=encoding,
        response_compression_algorithm=encoding,
    )
    np.testing.assert_allclose(packed.as_numpy("forecast"), plain.as_numpy("forecast"), rtol=1e-6, atol=1e-6)


async def test_metadata_configuration_and_json_with_asyncio(server: Server):
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert "statistics" in (await client.get_server_metadata())["extensions"]
        assert (await client.get_model_metadata("offset"))["inputs"][0]["name"] == "x"
        assert (await client.get_model_config("offset"))["name"] == "offset"
        answers = await asyncio.gather(
            *(
                client.infer(
                    "offset",
                    [triton_input("x", np.full((1, 3), n, np.float32), "FP32", binary=n % 2 == 0)],
                    outputs=[triton.InferRequestedOutput("y", binary_data=n % 3 == 0)],
                    request_id=f"{n}",
                )
                for n in range(40)
            )
        )
        for n, answer in enumerate(answers):
            assert answer.get_response()["id"] == f"{n}"
            np.testing.assert_array_equal(answer.as_numpy("y"), np.full((1, 3), n + 1, np.float32))


async def test_compression_and_classes_with_asyncio(server: Server):
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        answers = [
            await client.infer(
                FORECASTER,
                [triton_input("series", SERIES, "FP32")],
                request_compression_algorithm=encoding,
                response_compression_algorithm=encoding,
            )
            for encoding in (None, "gzip", "deflate")
        ]
        for answer in answers[1:]:
            np.testing.assert_allclose(
                answer.as_numpy("forecast"), answers[0].as_numpy("forecast"), rtol=1e-6, atol=1e-6
            )
        classes = await client.infer(
            "offset",
            [triton_input("x", np.array([[3, 9, 6]], np.float32), "FP32")],
            outputs=[triton.InferRequestedOutput("y", class_count=1)],
        )
        assert classes.as_numpy("y").tolist() == [[b"10.0:1"]]


def test_what_is_compressed_and_how_it_is_told(server: Server):
    def ask(rows: int, accept: str) -> httpx.Response:
        body = {"inputs": [{"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": [0.25] * 3 * rows}]}
        headers = {"Accept-Encoding": accept}
        with httpx.stream("POST", f"{server.url}/v2/models/offset/infer", json=body, headers=headers) as answer:
            answer.read_raw = b"".join(answer.iter_raw())  # type: ignore[attr-defined]
            return answer

    for rows, accept, coding in (
        (2000, "gzip", "gzip"),
        (2000, "deflate;q=1, gzip;q=0.1", "deflate"),
        (20_000, "gzip", "gzip"),
        (2000, "br", None),
        (2000, "identity", None),
        (2, "gzip", None),
    ):
        answer = ask(rows, accept)
        raw: bytes = answer.read_raw  # type: ignore[attr-defined]
        assert answer.headers.get("content-encoding") == coding
        assert int(answer.headers["content-length"]) == len(raw)
        unpack = {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}[coding]
        assert json.loads(unpack(raw))["outputs"][0]["data"] == [1.25] * 3 * rows
        assert (coding is None) == ("vary" not in answer.headers)


@pytest.mark.parametrize(("noise", "coding"), [(0.0, "gzip"), (1.0, None)])
@pytest.mark.parametrize("rows", [2000, 200_000])
def test_tensors_as_bytes_are_compressed_when_they_get_smaller(server: Server, noise: float, coding: str, rows: int):
    x = np.random.default_rng(rows).normal(scale=noise, size=(rows, 3)).astype(np.float32)
    entry = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    url = f"{server.url}/v2/models/offset/infer"
    answer = httpx.post(url, content=head + x.tobytes(), headers=length | {"Accept-Encoding": "gzip, deflate"})
    assert answer.headers.get("content-encoding") == coding
    y = np.frombuffer(answer.content[int(answer.headers["inference-header-content-length"]) :], np.float32)
    np.testing.assert_array_equal(y.reshape(x.shape), x + 1)


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_every_datatype_of_numbers_to_its_limits(
    client: triton.InferenceServerClient, binary_input: bool, binary_output: bool
):
    tensors = {}
    for name in NUMBERS:
        dtype = np.dtype(triton_to_np_dtype(name))
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        tensors[name] = np.array([[limits.min, limits.max, 1]], dtype)
    result = client.infer(
        "numbers",
        [triton_input(name, tensor, name, binary=binary_input) for name, tensor in tensors.items()],
        outputs=[triton.InferRequestedOutput(f"{name}_out", binary_data=binary_output) for name in NUMBERS],
    )
    for name, tensor in tensors.items():
        assert result.get_output(f"{name}_out")["datatype"] == name
        np.testing.assert_array_equal(result.as_numpy(f"{name}_out"), tensor)


def kinds_inputs(rows: int = 2) -> tuple[dict[str, np.ndarray], list[triton.InferInput]]:
    tensors = {
        "half": np.array([[1.5, -2.0]] * rows, np.float16),
        "flag": np.array([[True, False]] * rows),
        "text": np.array([["grüße".encode(), b""]] * rows, dtype=object),
    }
    types = {"half": "FP16", "flag": "BOOL", "text": "BYTES"}
    return tensors, [triton_input(name, tensor, types[name], binary=name == "half") for name, tensor in tensors.items()]


def test_half_precision_travels_in_binary_alone(client: triton.InferenceServerClient, server: Server):
    tensors, inputs = kinds_inputs()
    outputs = [
        triton.InferRequestedOutput("half_out"),
        triton.InferRequestedOutput("flag_out", binary_data=False),
        triton.InferRequestedOutput("text_out", binary_data=False),
    ]
    result = client.infer("kinds", inputs, outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("half_out"), tensors["half"])
    np.testing.assert_array_equal(result.as_numpy("flag_out"), tensors["flag"])
    assert [text.encode() for text in result.as_numpy("text_out").ravel()] == tensors["text"].ravel().tolist()
    with pytest.raises(triton.InferenceServerException, match="'half_out' is FP16, which only binary_data") as caught:
        client.infer("kinds", inputs, outputs=[triton.InferRequestedOutput("half_out", binary_data=False)])
    assert caught.value.status() == "400"
    inputs[2].set_data_from_numpy(tensors["text"], binary_data=True)
    binary = client.infer("kinds", inputs, outputs=[triton.InferRequestedOutput("text_out")])
    np.testing.assert_array_equal(binary.as_numpy("text_out"), tensors["text"])
    without = client.infer("kinds", inputs, outputs=[triton.InferRequestedOutput("flag_out", binary_data=False)])
    np.testing.assert_array_equal(without.as_numpy("flag_out"), tensors["flag"])
    body = {"inputs": [{"name": "half", "shape": [1, 2], "datatype": "FP16", "data": [1.0, 2.0]}]}
    answer = httpx.post(f"{server.url}/v2/models/kinds/infer", json=body)
    assert answer.status_code == 400
    assert "only binary data can carry" in answer.json()["error"]


def test_bytes_that_are_no_text_are_400(client: triton.InferenceServerClient):
    _, inputs = kinds_inputs(1)
    inputs[2].set_data_from_numpy(np.array([[b"fine", b"\xff\xfe"]], dtype=object))
    with pytest.raises(triton.InferenceServerException, match="'text' holds bytes that are not UTF-8") as caught:
        client.infer("kinds", inputs)
    assert caught.value.status() == "400"


def test_not_finite_answers_are_null_in_json_and_themselves_in_binary(client: triton.InferenceServerClient):
    inputs = [triton_input("x", np.array([[1, 0, -1]], np.float32), "FP32")]
    binary = client.infer("log", inputs).as_numpy("y")
    np.testing.assert_array_equal(binary, [[0, -np.inf, np.nan]])
    answer = client.infer("log", inputs, outputs=[triton.InferRequestedOutput("y", binary_data=False)])
    assert answer.get_output("y")["data"] == [0.0, None, None]
    classes = client.infer("log", inputs, outputs=[triton.InferRequestedOutput("y", class_count=3)])
    assert classes.as_numpy("y").tolist() == [[b"0.0:0", b"-inf:1", b"nan:2"]]


def test_unknown_content_encoding_says_which_are_known(server: Server):
    answer = httpx.post(f"{server.url}/v2/models/add/infer", content=b"x", headers={"Content-Encoding": "br"})
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["", "/health/live", "/models/add", "/models/add/ready", "/models/add/versions/1", "/models/add/stats"]
)
def test_trailing_slash_is_the_same_path(server: Server, path: str):
    plain, slashed = httpx.get(f"{server.url}/v2{path}"), httpx.get(f"{server.url}/v2{path}/")
    assert (slashed.status_code, slashed.content) == (200, plain.content)


def test_trailing_slash_of_inference(server: Server):
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    for path in ("/v2/models/offset/infer/", "/v2/models/offset/versions/1/infer/"):
        assert httpx.post(server.url + path, json=body).json()["outputs"][0]["data"] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/add/infer", "POST"),
        ("PUT", "/v2/models/add/versions/1/infer", "POST"),
        ("POST", "/v2/models/add", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("DELETE", "/v2/models/add/stats", "GET"),
    ],
)
def test_wrong_method_is_405_with_the_right_one(server: Server, method: str, path: str, allowed: str):
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json().keys() == {"error"}


def test_extensions_are_advertised(client: triton.InferenceServerClient):
    assert client.get_server_metadata()["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "schedule_policy",
        "statistics",
    ]


def post_tensor(server: Server, **changes: Any) -> httpx.Response:
    item: dict[str, Any] = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]} | changes
    return httpx.post(f"{server.url}/v2/models/offset/infer", json={"inputs": [item]})


@pytest.mark.parametrize("depth", [31, 40, 300, 1000, 5000])
@pytest.mark.parametrize("datatype", ["FP32", "BOOL"])
def test_deep_nesting_is_no_trouble(server: Server, depth: int, datatype: str):
    deep = "[" * depth + "1.0" + "]" * depth
    shape = [1] * depth
    for data in (deep, f"[1.0, {deep}, 2.0, {'0.0, ' * 500} 0.0]"):
        body = f'{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "{datatype}", "data": {data}}}]}}'
        answer = httpx.post(f"{server.url}/v2/models/offset/infer", content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]


@pytest.mark.parametrize("padding", [0, 5000])
def test_names_with_any_character_are_no_trouble(server: Server, padding: int):
    """Unknown members are ignored, whatever they are called, in small documents and in large ones."""
    item = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], "\0": 1, "a\0b": {"\0": 1}, "": 1}
    body = json.dumps({"inputs": [item], "\0": 1, "": {"\0": []}, "\u0001": "x" * padding})
    answer = httpx.post(f"{server.url}/v2/models/offset/infer", content=body)
    assert answer.json()["outputs"][0]["data"] == [2.0, 3.0, 4.0], answer.text


def test_absurd_header_length_is_400(server: Server):
    headers = {"Inference-Header-Content-Length": "9" * 5000}
    answer = httpx.post(f"{server.url}/v2/models/offset/infer", content=b"{}", headers=headers)
    assert answer.status_code == 400


def test_outputs_of_a_wrong_kind_are_400(server: Server):
    for output in (
        {"name": "y", "parameters": {"classification": -1}},
        {"name": "y", "parameters": {"classification": "two"}},
        {"name": "y", "parameters": {"classification": True}},
        {"name": "y", "parameters": {"binary_data": 1}},
        {"name": "y", "parameters": [1]},
        {"name": 5},
        "y",
    ):
        body = {
            "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}],
            "outputs": [output],
        }
        answer = httpx.post(f"{server.url}/v2/models/offset/infer", json=body)
        assert answer.status_code == 400, answer.text
