"""What a ModelInfer message can get wrong: the status, and that nothing but OK or INVALID_ARGUMENT comes of rubbish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.service.process import Server

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
Request = pb.ModelInferRequest
Infer = Callable[[Request | bytes], pb.ModelInferResponse]


def _bytes_of(message: Request | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@pytest.fixture(scope="module")
def infer(server: Server) -> Iterator[Infer]:
    """One call with a message or with any bytes in its place."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel.unary_unary(MODEL_INFER, _bytes_of, pb.ModelInferResponse.FromString)


def code_of(infer: Infer, message: Request | bytes) -> grpc.StatusCode:
    try:
        infer(message)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def tensor(name: str, **changes: Any) -> Any:
    fields: dict[str, Any] = {"name": name, "shape": [1, 3], "datatype": "INT32"} | changes
    if "contents" not in fields:
        fields["contents"] = pb.InferTensorContents(int_contents=[1, 2, 3])
    return Request.InferInputTensor(**fields)


def add(*inputs: Any, **fields: Any) -> Request:
    return Request(**({"model_name": "add", "inputs": inputs or (tensor("a"), tensor("b"))} | fields))


def contents(**fields: Any) -> pb.InferTensorContents:
    return pb.InferTensorContents(**fields)


def bare(name: str, **changes: Any) -> Any:
    return tensor(name, contents=None, **changes)


def classified(count: pb.InferParameter) -> Any:
    return Request.InferRequestedOutputTensor(name="sum", parameters={"classification": count})


B = tensor("b")
ZEROS = bytes(12)
COUNT = pb.InferParameter
HUGE = 2**62
WRONG: list[tuple[str, Request | bytes, str]] = [
    ("not a message", b"\xff\xff\xff", "not a ModelInferRequest"),
    ("no inputs", Request(model_name="add"), "'a' is missing"),
    ("input without name", add(tensor(""), B), "name"),
    ("unexpected input", add(tensor("a"), B, tensor("c")), "'c'"),
    ("input given twice", add(tensor("a"), tensor("a"), B), "twice"),
    ("wrong rank", add(tensor("a", shape=[3]), B), "shape"),
    ("rows differ", add(tensor("a", shape=[2, 3], contents=contents(int_contents=[0] * 6)), B), "rows"),
    ("too few elements", add(tensor("a", shape=[2, 3]), B), "fill"),
    ("no elements", add(bare("a"), B), "fill"),
    ("negative dimension", add(tensor("a", shape=[-1, 3]), B), "shape"),
    ("absurd dimensions", add(tensor("a", shape=[HUGE, HUGE]), B), "fill"),
    ("absurd dimensions of no elements", add(bare("a", shape=[0, HUGE, HUGE]), B), "bounds"),
    ("a thousand axes", add(tensor("a", shape=[1] * 999 + [3]), B), "1000 axes"),
    ("a name of 50 kB", add(tensor("a", datatype="€" * 50_000), tensor("ü" * 50_000)), "datatype"),
    ("another name of 50 kB", add(tensor("\U0001f600" * 50_000)), "unexpected"),
    ("unknown datatype", add(tensor("a", datatype="INT33"), B), "datatype"),
    ("other datatype than the model's", add(tensor("a", datatype="INT16"), B), "INT32"),
    ("out of range", add(tensor("a", datatype="INT8", contents=contents(int_contents=[1, 2, 128])), B), "range"),
    ("elements in another field", add(tensor("a", contents=contents(fp32_contents=[1, 2, 3])), B), "int_contents"),
    ("elements in two fields", add(tensor("a", contents=contents(int_contents=[1], bool_contents=[True])), B), "alone"),
    ("FP16 in contents", add(bare("a", datatype="FP16"), B), "raw_input_contents"),
    ("raw beside contents", add(raw_input_contents=[ZEROS, ZEROS]), "beside"),
    ("raw beside one input's contents", add(bare("a"), B, raw_input_contents=[ZEROS, ZEROS]), "beside"),
    ("raw for one input of two", add(bare("a"), bare("b"), raw_input_contents=[ZEROS]), "1 raw_input_contents for 2"),
    ("more raw than inputs", add(bare("a"), bare("b"), raw_input_contents=[ZEROS] * 3), "3 raw_input_contents for 2"),
    ("short raw", add(bare("a"), bare("b"), raw_input_contents=[ZEROS, ZEROS[1:]]), "11 bytes"),
    ("long raw", add(bare("a"), bare("b"), raw_input_contents=[ZEROS + b"\0", ZEROS]), "13 bytes"),
    ("broken BYTES", add(bare("a", datatype="BYTES"), bare("b"), raw_input_contents=[b"\xff" * 12, ZEROS]), "past"),
    ("a BOOL of 2", add(bare("a", datatype="BOOL"), bare("b"), raw_input_contents=[b"\0\1\2", ZEROS]), "0 or 1"),
    ("unknown output", add(outputs=[Request.InferRequestedOutputTensor(name="zzz")]), "'zzz'"),
    ("output requested twice", add(outputs=[Request.InferRequestedOutputTensor(name="sum")] * 2), "twice"),
    ("output without name", add(outputs=[Request.InferRequestedOutputTensor()]), "name"),
    ("classes of a wrong kind", add(outputs=[classified(COUNT(string_param="2"))]), "classification"),
    ("timeout of a wrong kind", add(parameters={"timeout": COUNT(string_param="soon")}), "timeout"),
    ("negative timeout", add(parameters={"timeout": COUNT(int64_param=-1)}), "timeout"),
    ("priority of a wrong kind", add(parameters={"priority": COUNT(double_param=1.0)}), "priority"),
]


@pytest.mark.parametrize(("request_", "text"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_bad_messages_are_invalid_arguments_and_say_why(infer: Infer, request_: Request | bytes, text: str):
    with pytest.raises(grpc.RpcError) as caught:
        infer(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert text in caught.value.details()


def test_bf16_is_unimplemented(infer: Infer):
    with pytest.raises(grpc.RpcError, match="BF16 is not supported") as caught:
        infer(add(bare("a", datatype="BF16"), bare("b"), raw_input_contents=[ZEROS[:6], ZEROS]))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_message_they_differ_from_is_good(infer: Infer):
    assert list(infer(add()).outputs[0].contents.int_contents) == [2, 4, 6]
    raw = infer(add(bare("a"), bare("b"), raw_input_contents=[ZEROS, ZEROS]))
    assert list(raw.raw_output_contents) == [ZEROS, ZEROS]
    assert not raw.outputs[0].HasField("contents")


@pytest.mark.parametrize(
    ("name", "version", "code", "text"),
    [
        ("nope", "", grpc.StatusCode.NOT_FOUND, "unknown model 'nope'"),
        ("", "", grpc.StatusCode.NOT_FOUND, "unknown model ''"),
        ("add", "9", grpc.StatusCode.NOT_FOUND, "no version '9'"),
        ("broken", "", grpc.StatusCode.UNAVAILABLE, "SHA-256"),
    ],
)
def test_models_that_cannot_be_asked(server: Server, name: str, version: str, code: grpc.StatusCode, text: str):
    named = {"name": name, "version": version}
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for method, message in (
            ("ModelInfer", add(model_name=name, model_version=version)),
            ("ModelMetadata", pb.ModelMetadataRequest(**named)),
            ("ModelConfig", pb.ModelConfigRequest(**named)),
        ):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}", type(message).SerializeToString)
            with pytest.raises(grpc.RpcError) as caught:
                call(message)
            assert caught.value.code() == code
            assert text in caught.value.details()


def test_not_finite_input_is_refused_raw_and_typed(infer: Infer):
    for value in (np.nan, np.inf):
        series = np.full((1, 1, 96), value, np.float32)
        item = Request.InferInputTensor(name="series", datatype="FP32", shape=series.shape)
        raw = Request(model_name="hot-etth1", inputs=[item], raw_input_contents=[series.tobytes()])
        item.contents.fp32_contents.extend(series.ravel().tolist())
        for message in (raw, Request(model_name="hot-etth1", inputs=[item])):
            with pytest.raises(grpc.RpcError, match="'series' holds NaN or infinity") as caught:
                infer(message)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_answers_are_counted_by_code(server: Server, infer: Infer):
    def counted(code: str) -> float:
        sample = f'kronserve_grpc_requests_total{{code="{code}",method="ModelInfer"}} '
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))

    before = counted("OK"), counted("NOT_FOUND")
    infer(add())
    with pytest.raises(grpc.RpcError):
        infer(add(model_name="nope"))
    assert (counted("OK"), counted("NOT_FOUND")) == (before[0] + 1, before[1] + 1)


int32s = st.integers(-(2**31), 2**31 - 1)
names = st.sampled_from(["a", "b", "c", ""])
dimensions = st.one_of(st.sampled_from([0, 1, 2, 3, -1, 2**63 - 1]), st.integers(-(2**63), 2**63 - 1))
datatypes = st.sampled_from(["INT32", "INT8", "FP32", "FP16", "BOOL", "BYTES", "UINT64", "", "int32", "x" * 99])
elements = st.builds(
    pb.InferTensorContents,
    int_contents=st.lists(int32s, max_size=7),
    bool_contents=st.lists(st.booleans(), max_size=2),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
)
inputs = st.builds(
    Request.InferInputTensor,
    name=names,
    datatype=datatypes,
    shape=st.one_of(st.just([1, 3]), st.just([0, 3]), st.lists(dimensions, max_size=70)),
    contents=st.one_of(st.none(), elements, st.just(pb.InferTensorContents(int_contents=[1, 2, 3]))),
)
parameters = st.dictionaries(
    st.sampled_from(["timeout", "priority", "binary_data_output", "sequence_id"]),
    st.one_of(
        st.builds(pb.InferParameter, int64_param=st.one_of(st.just(10**9), st.integers(-(2**63), -1))),
        st.builds(pb.InferParameter, string_param=st.text(max_size=5)),
        st.builds(pb.InferParameter, double_param=st.floats()),
        st.just(pb.InferParameter()),
    ),
    max_size=2,
)
requests = st.builds(
    Request,
    model_name=st.just("add"),
    model_version=st.sampled_from(["", "1"]),
    id=st.text(max_size=5),
    inputs=st.one_of(st.lists(inputs, max_size=4), st.tuples(st.just(tensor("a")), inputs)),
    raw_input_contents=st.one_of(st.just([]), st.lists(st.one_of(st.just(ZEROS), st.binary(max_size=30)), max_size=4)),
    outputs=st.lists(
        st.builds(Request.InferRequestedOutputTensor, name=st.sampled_from(["sum", "difference", "zzz", ""])),
        max_size=3,
    ),
    parameters=parameters,
)


@settings(max_examples=500)
@given(request_=requests)
def test_any_message_is_ok_or_an_invalid_argument(infer: Infer, request_: Request):
    assert code_of(infer, request_) in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


@settings(max_examples=500)
@given(cut=st.integers(0, 200), place=st.integers(0, 200), rubbish=st.binary(max_size=8), kept=st.booleans())
def test_any_bytes_are_ok_or_an_error_of_the_caller(infer: Infer, cut: int, place: int, rubbish: bytes, kept: bool):
    """A good message cut short, or with other bytes somewhere in it; that may make another model's name of it."""
    good = add(bare("a"), bare("b"), raw_input_contents=[ZEROS, ZEROS]).SerializeToString()
    place %= len(good)
    message = good[:place] + rubbish + good[place + (0 if kept else len(rubbish)) :]
    code = code_of(infer, message[: len(message) - cut % len(message)])
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
