"""Any bytes under the binary tensor data extension are answered 200 or 400, at bounded memory."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.process import Server

MIB = 1 << 20
MODELS = ("add", "offset", "kinds", "hot-etth1")
NAMES = ("a", "b", "x", "half", "flag", "text", "series", "zzz", "")
OUTPUTS = ("sum", "difference", "y", "half_out", "flag_out", "text_out", "forecast", "zzz")
DATATYPES = ("INT32", "FP32", "FP16", "BF16", "BOOL", "BYTES", "UINT64", "INT33", "")

sizes = st.one_of(
    st.integers(0, 40),
    st.sampled_from([-1, -12, 2**31, 2**32 + 12, 2**63, 2**64, 10**30]),
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.just("12"),
)
dims = st.one_of(
    st.lists(st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**31, 2**62, 2**64]), st.just(1.0)), max_size=5),
    st.sampled_from([[1] * 33, [1] * 200, "1", None]),
)
tensors = st.fixed_dictionaries(
    {"name": st.sampled_from(NAMES), "shape": dims, "datatype": st.sampled_from(DATATYPES)},
    optional={
        "parameters": st.one_of(st.fixed_dictionaries({"binary_data_size": sizes}), st.just([])),
        "data": st.one_of(
            st.lists(st.one_of(st.integers(), st.booleans(), st.text(max_size=3), st.none()), max_size=6),
            st.lists(st.lists(st.integers(-9, 9), max_size=3), max_size=3),
            st.just("data"),
        ),
    },
)
outputs = st.fixed_dictionaries(
    {"name": st.sampled_from(OUTPUTS)},
    optional={
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "binary_data": st.one_of(st.booleans(), st.just("yes")),
                "classification": st.one_of(st.integers(-1, 4), st.just(10**30), st.just("1")),
            },
        )
    },
)
documents = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(tensors, max_size=4), st.just({}))},
    optional={
        "outputs": st.lists(outputs, max_size=3),
        "id": st.one_of(st.text(max_size=8), st.just(3)),
        "padding": st.just("x" * 3000),  # large documents are parsed in another way
        "\0": st.just({"\0": [None]}),
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "binary_data_output": st.one_of(st.booleans(), st.just(1)),
                "priority": st.integers(-1, 3),
                "timeout": st.one_of(st.integers(10**7, 10**8), st.just(-1), st.just(1.5)),
            },
        ),
    },
)
lengths = st.one_of(
    st.none(),  # the right one
    st.integers(-5, 300).map(str),
    st.sampled_from(["", "0", "00", "+5", "1e2", "0x10", "9" * 18, "9" * 19, "9" * 5000, "²", "12, 12"]),
)


def valid() -> tuple[dict[str, Any], bytes]:
    def tensor(name: str) -> dict[str, Any]:
        return {"name": name, "shape": [1, 3], "datatype": "INT32", "parameters": {"binary_data_size": 12}}

    return {"inputs": [tensor("a"), tensor("b")], "parameters": {"binary_data_output": True}}, bytes(24)


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    with httpx.Client(base_url=server.url, timeout=30) as speaker:
        yield speaker


def answered(client: httpx.Client, model: str, body: bytes, length: str) -> int:
    headers = {"Inference-Header-Content-Length": length.encode("latin-1")}
    answer = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert answer.status_code in (200, 400) or (answer.status_code == 501 and b"BF16" in body), answer.text
    if answer.status_code != 200:
        assert set(answer.json()) <= {"error", "field"}
        assert answer.json()["error"]
    return answer.status_code


patient = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@patient
@given(st.sampled_from(MODELS), documents, st.binary(max_size=64), lengths)
def test_any_document_and_blobs(
    client: httpx.Client, server: Server, model: str, document: dict, blobs: bytes, length: str | None
):
    text = json.dumps(document).encode()
    before = server.resident_bytes()
    answered(client, model, text + blobs, str(len(text)) if length is None else length)
    assert server.resident_bytes() - before < 64 * MIB


@patient
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from([None, 0, 4, 11, 12, 13, 24, 2**40]),
    st.sampled_from([[1, 3], [3, 1], [2, 3], [0, 3], [1, 3, 1], [3], [-1, 3], [1, 2**62]]),
    st.integers(-3, 3),
)
def test_a_valid_request_in_one_detail_wrong(
    client: httpx.Client, cut: int, extra: int, size: int | None, shape: list[int], shift: int
):
    """200 exactly when nothing of the framing is off."""
    document, blobs = valid()
    first = document["inputs"][0]
    first["shape"] = shape
    if size is not None:
        first["parameters"]["binary_data_size"] = size
    text = json.dumps(document).encode()
    body = (text + blobs)[: len(text) + len(blobs) - cut] + bytes(extra)
    status = answered(client, "add", body, str(len(text) + shift))
    right = (
        cut == extra <= len(blobs) and first["parameters"]["binary_data_size"] == 12 and shape == [1, 3] and shift == 0
    )
    assert (status == 200) == right


@patient
@given(st.sampled_from(["offset", "hot-etth1", "add"]), st.binary(max_size=800))
def test_any_raw_body(client: httpx.Client, model: str, body: bytes):
    status = answered(client, model, body, "0")
    if status == 200:
        assert len(body) in (12, *range(384, 801, 384))


@patient
@given(st.binary(max_size=200), lengths)
def test_any_bytes(client: httpx.Client, body: bytes, length: str | None):
    answered(client, "add", body, "10" if length is None else length)
