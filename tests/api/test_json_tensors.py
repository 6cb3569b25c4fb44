"""JSON tensors are read from the parser's memory, without a Python object for each number."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import orjson
import pytest

from app.api.oip_codec import MAX_WIDE_BYTES, decode_request
from app.engine import device
from app.engine.runtime import Model
from app.errors import InvalidRequest, PayloadTooLarge
from app.settings import Settings
from tests.tiny_models import write_identity_model


def identity_model(folder: Path, cache: Path, datatype: str) -> Model:
    """y = x over [batch, width]."""
    write_identity_model(folder / "m" / "1", datatype, "width")
    settings = Settings(repository=folder, cache_dir=cache, device="cpu", max_batch=1, plan_seconds=0.05)
    return Model(folder / "m" / "1", device.choose(settings), settings)


@pytest.mark.parametrize("nested", [False, True])
def test_a_million_numbers_take_little_more_than_their_bytes(tmp_path: Path, cache: Path, nested: bool) -> None:
    model = identity_model(tmp_path, cache, "FP64")
    values = np.random.default_rng(0).normal(size=(2, 500_000))
    data = values if nested else values.ravel()
    item = {"name": "x", "shape": values.shape, "datatype": "FP64", "data": data}
    body = orjson.dumps({"inputs": [item]}, option=orjson.OPT_SERIALIZE_NUMPY)
    tracemalloc.start()
    request = decode_request(body, None, model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(request.tensors["x"], values)
    assert peak < 3 * values.nbytes, "as Python floats they are four times their bytes"


@pytest.mark.parametrize("padding", [0, 4096], ids=["small", "large"])
def test_integers_of_more_than_64_bits_are_floats(tmp_path: Path, cache: Path, padding: int) -> None:
    """JavaScript writes 1e20 as an integer; others make ids of such numbers, where nobody reads them."""
    text = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"%s","data":%s}],"parameters":{"trace":%s},"pad":"%s"}'

    def decode(model: Model, data: bytes, trace: bytes = b"1") -> list[list[float]]:
        body = text % (model.inputs[0].datatype.encode(), data, trace, b"x" * padding)
        values: list[list[float]] = decode_request(body, None, model).tensors["x"].tolist()
        return values

    floats, integers = (identity_model(tmp_path / kind, cache, kind) for kind in ("FP64", "UINT64"))
    numbers = b"[100000000000000000000,18446744073709551616,-9223372036854775809,1]"
    assert decode(floats, numbers) == [[1e20, 2.0**64, -(2.0**63), 1.0]]
    largest = [[2**64 - 1, 2**63 + 1, 0, 1]]
    assert decode(integers, orjson.dumps(largest), trace=b"9" * 30) == largest, "to their last digit"
    for data in (numbers, b"[18446744073709551616,1,1,1]"):
        with pytest.raises(InvalidRequest, match="'x': data is not all UINT64") as caught:
            decode(integers, data)
        assert caught.value.field == "x"
    for data in (b"[1e400,1,1,1]", b"[01,1,1,1]", b"[%s,1,1,1]" % (b"9" * 400)):
        with pytest.raises(InvalidRequest, match="not valid JSON"):
            decode(floats, data)
    with pytest.raises(PayloadTooLarge, match="more than 64 bits"):
        decode(floats, numbers[:-1] + b" " * MAX_WIDE_BYTES + b"]")


def test_a_raw_body_of_booleans_is_of_0_and_1(tmp_path: Path, cache: Path) -> None:
    model = identity_model(tmp_path, cache, "BOOL")
    assert decode_request(b"\0\1", b"0", model).tensors["x"].tolist() == [[False, True]]
    with pytest.raises(InvalidRequest, match="'x': a BOOL element is a byte of 0 or 1"):
        decode_request(b"\0\2", b"0", model)
