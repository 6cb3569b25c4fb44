"""JSON tensors are read from the parser's memory, without a Python object for each number."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import orjson
import pytest

from app.api.oip_codec import decode_request
from app.engine import device
from app.engine.runtime import Model
from app.settings import Settings
from tests.tiny_models import write_identity_model


@pytest.mark.parametrize("nested", [False, True])
def test_a_million_numbers_take_little_more_than_their_bytes(tmp_path: Path, cache: Path, nested: bool) -> None:
    write_identity_model(tmp_path / "m" / "1", "FP64", "width")
    settings = Settings(repository=tmp_path, cache_dir=cache, device="cpu", max_batch=1)
    model = Model(tmp_path / "m" / "1", device.choose(settings), settings)
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
