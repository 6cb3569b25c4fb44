"""The Open Inference Protocol over a real port, spoken by tritonclient and by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.service.process import Server


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=8)
    yield client
    client.close()


def triton_input(name: str, tensor: np.ndarray, datatype: str, *, binary: bool = True) -> triton.InferInput:
    item = triton.InferInput(name, list(tensor.shape), datatype)
    item.set_data_from_numpy(tensor, binary_data=binary)
    return item


def test_health_and_metadata(client: triton.InferenceServerClient):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("hot-etth1")
    assert client.is_model_ready("hot-etth1", "1")
    assert not client.is_model_ready("broken")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("hot-etth1", "1")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "series", "datatype": "FP32", "shape": [-1, -1, 96]}]
    assert metadata["outputs"] == [{"name": "forecast", "datatype": "FP32", "shape": [-1, -1, 720]}]
    assert metadata["parameters"]["providers"]
    assert metadata["parameters"]["task"]["lookback"] == 96


def test_configuration_shows_the_plan(client: triton.InferenceServerClient):
    config = client.get_model_config("hot-etth1")
    plan = json.loads(config["parameters"]["plan"]["string_value"])
    assert config["max_batch_size"] == plan["batch_limit"] >= 1
    assert config["input"] == [{"name": "series", "data_type": "TYPE_FP32", "dims": [-1, 96]}]
    assert set(plan["rows_per_second"]) >= {"1", "2"}


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_infer_equals_onnx_runtime(client, series, expected, binary_input: bool, binary_output: bool | None):
    outputs = None if binary_output is None else [triton.InferRequestedOutput("forecast", binary_data=binary_output)]
    result = client.infer(
        "hot-etth1",
        [triton_input("series", series, "FP32", binary=binary_input)],
        outputs=outputs,
        request_id="request 7",
        model_version="1",
    )
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("hot-etth1", "1", "request 7")
    np.testing.assert_allclose(result.as_numpy("forecast"), expected, rtol=1e-5, atol=1e-5)


def test_many_requests_in_flight(client, series, expected):
    pending = [
        client.async_infer("hot-etth1", [triton_input("series", series[n % 3 : n % 3 + 1], "FP32")]) for n in range(40)
    ]
    for n, handle in enumerate(pending):
        forecast = handle.get_result().as_numpy("forecast")
        np.testing.assert_allclose(forecast, expected[n % 3 : n % 3 + 1], rtol=1e-5, atol=1e-5)


def test_compressed_request(client, series, expected):
    for encoding in ("gzip", "deflate"):
        result = client.infer(
            "hot-etth1", [triton_input("series", series, "FP32")], request_compression_algorithm=encoding
        )
        np.testing.assert_allclose(result.as_numpy("forecast"), expected, rtol=1e-5, atol=1e-5)


def test_bare_model_with_two_inputs_and_chosen_outputs(client):
    a, b = np.arange(6, dtype=np.int32).reshape(2, 3), np.full((2, 3), 10, np.int32)
    inputs = [triton_input("b", b, "INT32"), triton_input("a", a, "INT32", binary=False)]
    result = client.infer("add", inputs, outputs=[triton.InferRequestedOutput("difference")])
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)
    assert result.as_numpy("sum") is None
    whole = client.infer("add", inputs)
    np.testing.assert_array_equal(whole.as_numpy("sum"), a + b)


def test_empty_batch_is_legal(client):
    empty = np.zeros((0, 3), np.int32)
    result = client.infer("add", [triton_input("a", empty, "INT32"), triton_input("b", empty, "INT32")])
    assert result.as_numpy("sum").shape == (0, 3)


def test_raw_body_is_the_only_inputs_tensor(server: Server, series, expected):
    answer = httpx.post(
        f"{server.url}/v2/models/hot-etth1/infer",
        content=series[:1].tobytes(),
        headers={"Inference-Header-Content-Length": "0"},
    )
    header = int(answer.headers["inference-header-content-length"])
    described = json.loads(answer.content[:header])["outputs"][0]
    forecast = np.frombuffer(answer.content[header:], "<f4").reshape(described["shape"])
    np.testing.assert_allclose(forecast, expected[:1], rtol=1e-5, atol=1e-5)


def test_unknown_model_and_version_and_broken_bundle(client):
    tensor = triton_input("series", np.zeros((1, 1, 96), np.float32), "FP32")
    for name, version, status, text in (
        ("nope", "", "404", "unknown model 'nope'"),
        ("hot-etth1", "9", "404", "no version '9'"),
        ("broken", "", "503", "SHA-256"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(name, [tensor], model_version=version)
        assert caught.value.status() == status
        assert text in caught.value.message()


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} | changes


OTHER = tensor(name="b")
BAD_JSON: list[tuple[str, Any, str]] = [
    ("not an object", [1], "JSON object"),
    ("no inputs", {}, "inputs"),
    ("inputs of a wrong kind", {"inputs": {"a": 1}}, "inputs"),
    ("input without name", {"inputs": [{"shape": [1], "datatype": "INT32", "data": [1]}]}, "name"),
    ("missing input", {"inputs": [tensor()]}, "'b' is missing"),
    ("unexpected input", {"inputs": [tensor(), OTHER, tensor(name="c")]}, "'c'"),
    ("input given twice", {"inputs": [tensor(), tensor(), OTHER]}, "twice"),
    ("wrong rank", {"inputs": [tensor(shape=[3]), OTHER]}, "shape"),
    ("wrong size", {"inputs": [tensor(shape=[1, 2], data=[1, 2]), OTHER]}, "shape"),
    ("rows differ", {"inputs": [tensor(shape=[2, 3], data=[0] * 6), OTHER]}, "rows"),
    ("data does not fill the shape", {"inputs": [tensor(shape=[2, 3]), OTHER]}, "fill"),
    ("negative dimension", {"inputs": [tensor(shape=[-1, 3]), OTHER]}, "shape"),
    ("absurd dimensions of no elements", {"inputs": [tensor(shape=[0, 2**62, 2**62], data=[]), OTHER]}, "bounds"),
    ("absurd dimension", {"inputs": [tensor(shape=[2**62, 2**62]), OTHER]}, "fill"),
    ("fractional dimension", {"inputs": [tensor(shape=[1.5, 2]), OTHER]}, "shape"),
    ("unknown datatype", {"inputs": [tensor(datatype="INT33"), OTHER]}, "datatype"),
    ("other datatype than the model's", {"inputs": [tensor(datatype="FP32"), OTHER]}, "INT32"),
    ("out of range", {"inputs": [tensor(data=[1, 2, 2**40]), OTHER]}, "range"),
    ("text among numbers", {"inputs": [tensor(data=[1, 2, "x"]), OTHER]}, "INT32"),
    ("null among numbers", {"inputs": [tensor(data=[1, 2, None]), OTHER]}, "INT32"),
    ("nested against the shape", {"inputs": [tensor(data=[[1], [2, 3]]), OTHER]}, "nested"),
    ("data and binary_data_size", {"inputs": [tensor(parameters={"binary_data_size": 12}), OTHER]}, "exactly one"),
    ("neither data nor binary", {"inputs": [{"name": "a", "shape": [1, 3], "datatype": "INT32"}]}, "exactly one"),
    (
        "binary announced in JSON alone",
        {
            "inputs": [
                {"name": "a", "shape": [1, 3], "datatype": "INT32", "parameters": {"binary_data_size": 12}},
                OTHER,
            ]
        },
        "left",
    ),
    ("unknown output", {"inputs": [tensor(), OTHER], "outputs": [{"name": "zzz"}]}, "'zzz'"),
    ("id of a wrong kind", {"inputs": [tensor(), OTHER], "id": 5}, "id"),
    ("timeout of a wrong kind", {"inputs": [tensor(), OTHER], "parameters": {"timeout": "soon"}}, "timeout"),
]


@pytest.mark.parametrize(("body", "text"), [case[1:] for case in BAD_JSON], ids=[case[0] for case in BAD_JSON])
def test_bad_requests_are_400_and_say_why(server: Server, body: Any, text: str):
    answer = httpx.post(f"{server.url}/v2/models/add/infer", json=body)
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]


def binary_body(header: dict[str, Any], *blobs: bytes, length: str | None = None) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(header).encode()
    return text + b"".join(blobs), {"Inference-Header-Content-Length": length or str(len(text))}


def blob_input(name: str, size: int, shape: tuple[int, ...] = (1, 3)) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": "INT32", "parameters": {"binary_data_size": size}}


GOOD_HEADER = {"inputs": [blob_input("a", 12), blob_input("b", 12)]}
BAD_BINARY = {
    "short blobs": binary_body(GOOD_HEADER, b"\0" * 20),
    "bytes left over": binary_body(GOOD_HEADER, b"\0" * 30),
    "size against shape": binary_body({"inputs": [blob_input("a", 8), blob_input("b", 12)]}, b"\0" * 20),
    "header longer than the body": binary_body(GOOD_HEADER, b"\0" * 24, length="9999"),
    "negative header length": binary_body(GOOD_HEADER, b"\0" * 24, length="-5"),
    "header length of a wrong kind": binary_body(GOOD_HEADER, b"\0" * 24, length="many"),
    "header cut": binary_body(GOOD_HEADER, b"\0" * 24, length="20"),
    "raw body for two inputs": (b"\0" * 12, {"Inference-Header-Content-Length": "0"}),
    "a BOOL of 2": binary_body(
        {"inputs": [{**blob_input("a", 3), "datatype": "BOOL"}, blob_input("b", 12)]}, b"\0\1\2", b"\0" * 12
    ),
    "negative size": binary_body({"inputs": [blob_input("a", -12), blob_input("b", 12)]}, b"\0" * 24),
}


@pytest.mark.parametrize("case", BAD_BINARY)
def test_bad_framing_is_400(server: Server, case: str):
    body, headers = BAD_BINARY[case]
    answer = httpx.post(f"{server.url}/v2/models/add/infer", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


def test_not_finite_input_is_400_and_names_the_input(client):
    for value in (np.nan, np.inf, -np.inf):
        series = np.zeros((1, 1, 96), np.float32)
        series[0, 0, 5] = value
        with pytest.raises(InferenceServerException) as caught:
            client.infer("hot-etth1", [triton_input("series", series, "FP32")])
        assert caught.value.status() == "400"
        assert "'series' holds NaN or infinity" in caught.value.message()


def test_axis_past_the_limit_is_400(client):
    wide = triton_input("series", np.zeros((1, 1025, 96), np.float32), "FP32")
    with pytest.raises(InferenceServerException, match="at most 1024"):
        client.infer("hot-etth1", [wide])


@pytest.mark.parametrize("path", ["/nowhere", "/v2/nowhere", "/v2/models/add/versions/1/nowhere"])
def test_unknown_paths_and_methods_have_the_error_shape(server: Server, path: str):
    assert httpx.get(server.url + path).json().keys() == {"error"}
    answer = httpx.delete(f"{server.url}/v2")
    assert answer.status_code == 405
    assert answer.json().keys() == {"error"}


def test_unknown_content_encoding_is_415(server: Server):
    answer = httpx.post(f"{server.url}/v2/models/add/infer", content=b"x", headers={"Content-Encoding": "br"})
    assert answer.status_code == 415


HEADER = {"X-Request-Timeout": "0.0001"}
SUM = b'{"inputs":[%s]}' % b",".join(
    b'{"name":"%s","shape":[1,3],"datatype":"INT32","data":[1,2,3]}' % name for name in (b"a", b"b")
)
HISTORY = json.dumps({"target": [list(range(96))]}).encode()
HURRIED: dict[str, tuple[str, dict[str, Any]]] = {
    "parameter": ("/v2/models/add/infer", {"content": SUM[:-1] + b',"parameters":{"timeout":100}}'}),
    "header": ("/v2/models/add/infer", {"content": SUM, "headers": HEADER}),
    "header, in chunks": ("/v2/models/add/infer", {"content": [SUM], "headers": HEADER}),
    "header, forecast": ("/v1/models/hot-etth1/forecast", {"content": HISTORY, "headers": HEADER}),
}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/add/infer",
        "/v1/models/hot-etth1/forecast",
        "/v1/models/hot-etth1/evaluate",
        "/v1/models/hot-adrenal/classify",
        "/v1/timeseries/forecast",
    ],
)
def test_time_limits_that_are_none_are_400_and_tiny_ones_504(server: Server, path: str):
    """On every inference endpoint; those of files count the time that reading takes, before they look at a file."""
    volume = io.BytesIO()
    np.save(volume, np.pad(np.ones((32, 32, 32), np.float32), 16))
    content = {"infer": SUM, "classify": volume.getvalue()}.get(path.rsplit("/", 1)[1], HISTORY)
    for limit in ("soon", "-1", "0", "nan"):
        answer = httpx.post(f"{server.url}{path}", content=content, headers={"X-Request-Timeout": limit})
        assert (answer.status_code, answer.json()["field"]) == (400, "X-Request-Timeout"), limit
    if "classify" in path:
        headers = {"X-Request-Timeout": "1e-9"}
        assert httpx.post(f"{server.url}{path}", content=content, headers=headers, timeout=60).status_code == 504


@pytest.mark.parametrize(("path", "hurried"), HURRIED.values(), ids=HURRIED)
def test_deadline_that_passes_in_the_queue_is_504(client, server: Server, path: str, hurried: dict[str, Any]):
    """While large batches hold the executors, a request that may wait 0.1 ms is told so; one without a limit is not."""
    large = triton_input("series", np.zeros((64, 21, 96), np.float32), "FP32")
    hurried = {**hurried, "headers": {"Content-Type": "application/json", **hurried.get("headers", {})}}
    for _ in range(20):
        holding = [client.async_infer("hot-etth1", [large]) for _ in range(4)]
        statuses = {httpx.post(f"{server.url}{path}", timeout=60, **hurried).status_code for _ in range(10)}
        patient = httpx.post(f"{server.url}/v2/models/add/infer", content=SUM, timeout=60)
        assert patient.status_code == 200
        assert statuses <= {200, 504}
        for handle in holding:
            handle.get_result()
        if 504 in statuses:
            return
    raise AssertionError("no deadline passed")
