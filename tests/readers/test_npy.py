"""The .npy reader against numpy's own writer, and against what numpy would have believed."""

from __future__ import annotations

import contextlib
import io
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnusableInput
from app.readers.npy import read_npy


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), version)
    return stream.getvalue()


@given(
    hnp.arrays(
        st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.boolean_dtypes()),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    st.booleans(),
)
def test_reads_what_numpy_writes(array: npt.NDArray[Any], fortran: bool) -> None:
    array = np.asfortranarray(array) if fortran else array
    data = saved(array)
    read = read_npy(data, array.nbytes)
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()
    if array.nbytes:
        with pytest.raises(PayloadTooLarge):
            read_npy(data, array.nbytes - 1)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions(version: tuple[int, int]) -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert (read_npy(saved(array, version), 48) == array).all()


def with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def header(shape: str = "(2,)", descr: str = "'<f8'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def test_a_small_file_that_claims_to_be_huge() -> None:
    for shape in ("(1000000, 1000000)", f"({2**62}, {2**62}, {2**62})"):
        with pytest.raises(PayloadTooLarge):
            read_npy(with_header(header(shape), bytes(16)), 1 << 20)


@pytest.mark.parametrize(
    "bad",
    [
        header("(-2,)"),
        header("(True,)"),
        header("[2]"),
        header("(2.0,)"),
        header(f"({', '.join('1' * 40)})"),
        header(f"(0, {2**63})"),
        header(f"(0, {2**62}, {2**62})"),
        header(descr="'<f3'"),
        header(fortran="0"),
        "{'descr': '<f8', 'shape': (2,)}",
        "__import__('os')",
        "(" * 3000,
        "",
        "[]",
    ],
)
def test_broken_headers(bad: str) -> None:
    with pytest.raises(InvalidRequest, match="header is broken"):
        read_npy(with_header(bad, bytes(0 if "(0" in bad else 16)), 1 << 20)


def test_pickles_text_and_records_are_never_read() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("a pickle was executed",)

    objects = with_header(header("(1,)", "'|O'"), pickle.dumps([Trap()]))
    for data in (objects, saved(np.array(["text"])), saved(np.zeros(2, "f8,i4")), saved(np.zeros(2, complex))):
        with pytest.raises(UnusableInput):
            read_npy(data, 1 << 20)


@pytest.mark.parametrize("change", [-1, 1, -16])
def test_length_and_header_must_agree(change: int) -> None:
    data = saved(np.zeros(2))
    data = data[:change] if change < 0 else data + bytes(change)
    with pytest.raises(InvalidRequest):
        read_npy(data, 1 << 20)


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_raise_only_our_errors(data: bytes, magic: bool) -> None:
    with contextlib.suppress(KronserveError):
        read_npy((b"\x93NUMPY\x01\x00" if magic else b"") + data, 1000)
