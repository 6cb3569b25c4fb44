"""Tensors as raw bytes, against numpy's own, and whether they are sent as they lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.api.oip_codec import InferRequest, OutputRequest, bytes_to_write
from app.api.raw_tensors import from_bytes, raw_bytes
from app.errors import InvalidRequest

NUMERIC = st.sampled_from(["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8"]).map(np.dtype)


@given(arrays.arrays(NUMERIC, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)), st.booleans())
def test_raw_bytes_are_row_major_however_the_tensor_lies(tensor: np.ndarray, turned: bool):
    tensor = tensor.T if turned else tensor
    raw = raw_bytes(tensor)
    assert bytes(raw) == tensor.tobytes()
    assert len(raw) == tensor.nbytes


def test_raw_booleans_are_0_or_1():
    """With any other byte ONNX Runtime's operators compute what is neither."""
    given = from_bytes(memoryview(b"\0\1"), "flag", "BOOL", np.dtype(bool), [1, 2])
    assert given.tolist() == [[False, True]]
    assert from_bytes(b"", "flag", "BOOL", np.dtype(bool), [0, 2]).shape == (0, 2)
    with pytest.raises(InvalidRequest, match="'flag': a BOOL element is a byte of 0 or 1"):
        from_bytes(b"\1\7", "flag", "BOOL", np.dtype(bool), [1, 2])


def test_a_row_major_tensor_is_not_copied_and_a_part_does_not_hold_the_whole():
    batch = np.ones((4, 3, 5), np.float32)
    assert np.shares_memory(np.frombuffer(raw_bytes(batch), np.float32), batch)
    part = np.frombuffer(raw_bytes(batch[1:3]), np.float32)
    assert part.size == 30
    assert not np.shares_memory(part, batch)


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (InferRequest({}), 48),
        (InferRequest({}, binary_default=True), 0),
        (InferRequest({}, (OutputRequest("y", True),)), 0),
        (InferRequest({}, (OutputRequest("y", False),)), 48),
        (InferRequest({}, (OutputRequest("y", True, classes=2),)), 48),
    ],
)
def test_only_what_becomes_text_has_to_be_written(request_: InferRequest, size: int):
    assert bytes_to_write(request_, {"y": np.zeros((3, 4), np.float32)}) == size


def test_strings_parts_and_turned_tensors_have_to_be_written():
    binary = InferRequest({}, binary_default=True)
    assert bytes_to_write(binary, {"y": np.array(["a", "b"], dtype=object)}) == 16
    assert bytes_to_write(binary, {"y": np.zeros((3, 4), np.float32).T}) == 48
    assert bytes_to_write(binary, {"y": np.zeros((3, 4), np.float32)[:1]}) == 16
