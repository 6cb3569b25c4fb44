"""Tensor requests at and past their bounds: bombs in JSON, many at once, absurd shapes, hidden lists, long names."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.process import Server, serving
from tests.tiny_models import write_argmax_model, write_identity_model

MIB = 1 << 20
FORECASTER = "/v2/models/hot-etth1/infer"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Identity models over [batch, anything], and little room for bodies."""
    root = tmp_path_factory.mktemp("identity")
    for datatype in ("FP32", "FP16", "BOOL", "BYTES", "INT32"):
        write_identity_model(root / "models" / datatype.lower() / "1", datatype, "width")
    write_argmax_model(root / "models" / "argmax" / "1")
    limits = ("--max-inflight-bytes", str(64 * MIB), "--max-decoded-bytes", str(64 * MIB))
    options = ("--max-batch", "4", "--cache-dir", str(root / "cache"), *limits)
    with serving(root / "models", root / "log", *options) as running:
        yield running


def ask(server: Server, datatype: str, data: str, shape: list[int], **members: Any) -> httpx.Response:
    """POST an input whose data is given as JSON text."""
    item = f'{{"name": "x", "shape": {json.dumps(shape)}, "datatype": "{datatype}", "data": {data}}}'
    rest = "".join(f', "{name}": {json.dumps(value)}' for name, value in members.items())
    return httpx.post(
        f"{server.url}/v2/models/{datatype.lower()}/infer", content=f'{{"inputs": [{item}]{rest}}}', timeout=30
    )


def refused(answer: httpx.Response, text: str, status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]


def numbers_bomb(megabytes: int) -> bytes:
    """A gzipped request for one window of one variate whose `data` is `megabytes` of zeros."""
    data = b"0," * (megabytes * MIB // 2)
    head = b'{"inputs":[{"name":"series","shape":[1,1,96],"datatype":"FP32","data":['
    return gzip.compress(head + data + b"0]}]}", 9)


def test_numbers_past_the_bound_are_413_before_they_are_parsed(server: Server):
    for megabytes in (40, 61, 100):
        body = numbers_bomb(megabytes)
        before = server.peak_bytes()
        answer = httpx.post(server.url + FORECASTER, content=body, headers={"Content-Encoding": "gzip"}, timeout=30)
        assert answer.status_code == 413, answer.text
        assert server.peak_bytes() - before < 260 * MIB


def test_numbers_that_do_not_fill_the_shape_are_not_copied(identity: Server):
    count = 3 * MIB
    refused(ask(identity, "FP32", "[" + "0," * (count - 1) + "0]", [1, 96]), f"{count} values do not fill")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('"parameters": {"a": [' + "[]," * (1 << 20) + "[]]}", 413),
        ('"inputs": [' + "{}," * 2000 + "{}]", 400),
        ('"parameters": {' + ",".join(f'"{n}": 0' for n in range(200_000)) + "}", 413),
    ],
)
def test_bulk_in_anything_but_data_is_refused(server: Server, text: str, status: int):
    refused(httpx.post(server.url + FORECASTER, content="{" + text + "}"), "more than", status)


async def test_bombs_at_once_stay_within_the_budget(identity: Server):
    """Twelve bodies that expand to 60 MiB each, with room for one."""
    before = identity.peak_bytes()
    body = gzip.compress(bytes(60 * MIB), 9)
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": "2"}
    async with httpx.AsyncClient(base_url=identity.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(client.post("/v2/models/fp32/infer", content=body, headers=headers) for _ in range(12))
        )
        assert {answer.status_code for answer in answers} <= {400, 429}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
        assert identity.peak_bytes() - before < 220 * MIB
        last = await client.post("/v2/models/fp32/infer", content=body, headers=headers)
        assert last.status_code == 400, "what they held was given back"


@pytest.mark.parametrize(
    "shape", [[0, 2**53, 2**53], [2**31 + 1, 0], [1025, 0], [1] * 70, [0, *[2**31] * 5], [2**62, 1]]
)
def test_absurd_shapes_are_400(identity: Server, shape: list[int]):
    refused(ask(identity, "FP32", "[]", shape), "'x'")


@pytest.mark.parametrize("zeros", [2, 95])
def test_integers_past_64_bits_are_floats_and_no_integers(identity: Server, zeros: int):
    """JSON has one kind of numbers: JavaScript writes 1e20 with all its digits."""
    data, shape = "[" + "0, " * zeros + "1" + "0" * 30 + "]", [1, zeros + 1]
    answer = ask(identity, "FP32", data, shape)
    assert answer.json()["outputs"][0]["data"] == [0.0] * zeros + [1e30]
    refused(ask(identity, "INT32", data, shape), "'x': data is not all INT32")


@pytest.mark.parametrize(
    ("datatype", "element"), [("FP32", "0.5"), ("INT32", "7"), ("BOOL", "true"), ("BYTES", '"text"')]
)
@pytest.mark.parametrize("count", [3, 2000])
def test_lists_hidden_among_elements_are_400(identity: Server, datatype: str, element: str, count: int):
    width, shape = count // 2, [2, count // 2]
    row = ", ".join([element] * (width - 1))
    flat = ", ".join([element] * (count // 2 * 2 - 1))
    shape = [2, width]
    for data in (
        f"[{flat}, [{element}]]",
        f"[[{element}{', ' + row if row else ''}], [{row + ', ' if row else ''}[{element}]]]",
    ):
        answer = ask(identity, datatype, data, shape)
        assert answer.status_code == 400, (data[:100], answer.text)
    for members in ({}, {"id": "[[[", "parameters": {"note": ["[", []]}}):
        whole = ", ".join([element] * width)
        for data in (f"[{flat}, {element}]", f"[[{whole}], [{whole}]]"):
            answer = ask(identity, datatype, data, shape, **members)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["data"] == [json.loads(element)] * (2 * width)


def test_objects_among_numbers_are_400(identity: Server):
    for element in ('{"a": 1}', "null", '"1"', "true", "{}"):
        refused(ask(identity, "FP32", f"[0.5, {element}, 1]", [1, 3]), "not all FP32")


def test_strings_come_back_as_they_were(identity: Server):
    texts = ["a", "é", "", "日本", "x" * 5000]
    answer = ask(identity, "BYTES", json.dumps(texts), [1, 5])
    assert answer.json()["outputs"][0]["data"] == texts
    blob = b"".join(len(raw := text.encode()).to_bytes(4, "little") + raw for text in texts)
    header = {
        "inputs": [{"name": "x", "shape": [1, 5], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(header).encode()
    answer = httpx.post(
        f"{identity.url}/v2/models/bytes/infer",
        content=head + blob,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.content[int(answer.headers["inference-header-content-length"]) :] == blob


def test_empty_axes_are_legal_where_a_bare_graph_takes_them(identity: Server, server: Server):
    for shape in ([1, 0], [0, 0], [4, 0]):
        answer = ask(identity, "FP32", "[]", shape)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["outputs"][0]["shape"], answer.json()["outputs"][0]["data"]) == (shape, [])
    item = {"name": "x", "shape": [1, 0], "datatype": "FP32", "data": []}
    refused(httpx.post(f"{identity.url}/v2/models/argmax/infer", json={"inputs": [item]}), "empty axis")
    item = {"name": "series", "shape": [1, 0, 96], "datatype": "FP32", "data": []}
    refused(httpx.post(server.url + FORECASTER, json={"inputs": [item]}), "must have shape")


def test_outputs_that_cannot_be_given_are_refused(identity: Server):
    refused(ask(identity, "FP32", "[1]", [1, 1], outputs=[{"name": "y"}, {"name": "y"}]), "twice")
    header = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP16","parameters":{"binary_data_size":2}}]}'
    headers = {"Inference-Header-Content-Length": str(len(header))}
    answer = httpx.post(f"{identity.url}/v2/models/fp16/infer", content=header + b"\0\0", headers=headers)
    refused(answer, "only binary_data")
    page = httpx.get(f"{identity.url}/metrics").text
    assert 'kronserve_batch_rows_count{model="fp16"' not in page, "it was refused before it ran"


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"datatype": []}, 400, "datatype, as a string"),
        ({"datatype": {"a": [1]}}, 400, "datatype, as a string"),
        ({"datatype": "BF16"}, 501, "BF16"),
        ({"datatype": "FP32" * 5000}, 400, "unsupported datatype"),
        ({"name": "n" * 50_000}, 400, "unexpected input"),
    ],
)
def test_odd_names_and_datatypes_are_told_in_few_words(identity: Server, changes: Any, status: int, text: str):
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]} | changes]}
    answer = httpx.post(f"{identity.url}/v2/models/fp32/infer", json=body)
    refused(answer, text, status)
    assert len(answer.content) < 400
    assert "csimdjson" not in answer.text


def test_long_names_elsewhere_are_told_in_few_words(identity: Server):
    answer = ask(identity, "FP32", "[1]", [1, 1], outputs=[{"name": "n" * 50_000}])
    refused(answer, "unknown output")
    assert len(answer.content) < 400
    answer = httpx.post(f"{identity.url}/v2/models/{'n' * 30_000}/infer", content=b"{}")
    assert answer.status_code == 404
    assert len(answer.content) < 1500


@pytest.mark.parametrize(
    ("name", "values"),
    [("Content-Encoding", ("gzip", "identity")), ("Inference-Header-Content-Length", ("0", "4"))],
)
def test_repeated_headers_that_disagree_are_400(identity: Server, name: str, values: tuple[str, str]):
    headers = [(name, value) for value in values]
    answer = httpx.post(f"{identity.url}/v2/models/fp32/infer", content=bytes(4), headers=headers)
    refused(answer, f"{name} is given more than once")
