"""JSON arrays of numbers: equal to json + numpy, and strict where those are lenient."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnusableInput
from app.readers import numeric_json
from app.readers.numeric_json import read_document

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**64 - 1), st.integers(-1000, 1000)
)
JSON = st.recursive(
    st.one_of(NUMBERS, st.booleans(), st.none(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(st.data(), hnp.array_shapes(max_dims=4, max_side=4), JSON)
def test_equals_json_and_numpy(data: st.DataObject, shape: tuple[int, ...], other: Any) -> None:
    flat = data.draw(st.lists(NUMBERS, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    nested: Any = flat
    for size in reversed(shape[1:]):
        nested = [nested[start : start + size] for start in range(0, len(nested), size)]
    text = json.dumps({"other": other, "a": nested}).encode()
    members, array = read_document(text, "a", 1 << 20)
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, np.array(nested, np.float64), strict=True)
    assert members == {"other": other}


def test_the_fast_way_is_taken_for_plain_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(numeric_json, "_read_general")
    text = b'{"names": ["a", "b"], "a": [[1, 2.5], [-3e2, 4]], "horizon": 3}'
    members, array = read_document(text, "a", 1000)
    assert array.tolist() == [[1.0, 2.5], [-300.0, 4.0]]
    assert members == {"names": ["a", "b"], "horizon": 3}


@pytest.mark.parametrize(
    ("text", "error", "place"),
    [
        ("[[1, 2], [3]]", InvalidRequest, r"a\[1\] has 1"),
        ("[1, [2]]", InvalidRequest, r"a\[1\] is a list"),
        ("[[], [1, 2]]", InvalidRequest, r"a\[1\] has 2"),
        ("[[1], 2]", InvalidRequest, r"a\[1\] is not a list"),
        ("[[1, null]]", UnusableInput, r"a\[0\]\[1\] is null"),
        ("[true]", UnusableInput, r"a\[0\] is a boolean"),
        ('["1"]', UnusableInput, r"a\[0\] is text"),
        ("[{}]", UnusableInput, r"a\[0\] is an object"),
        ("3", InvalidRequest, "nested lists"),
        ("[NaN]", InvalidRequest, "not valid JSON"),
        ("[Infinity]", InvalidRequest, "not valid JSON"),
        ("[1e999]", InvalidRequest, "not valid JSON"),
        ("[1,]", InvalidRequest, "not valid JSON"),
        ("[" * 1000 + "]" * 1000, InvalidRequest, "is a list"),
    ],
)
def test_faults_are_named(text: str, error: type[KronserveError], place: str) -> None:
    with pytest.raises(error, match=place):
        read_document(f'{{"a": {text}}}'.encode(), "a", 1 << 20)


def test_a_list_hidden_behind_a_bracket_in_a_name_is_found() -> None:
    assert read_document(b'{"a": [1, 2], "names": ["[C]"]}', "a", 99)[1].tolist() == [1, 2]
    with pytest.raises(InvalidRequest, match="is a list"):
        read_document(b'{"a": [1, [2]], "names": ["[C]"]}', "a", 99)
    with pytest.raises(InvalidRequest, match="is a list"):
        read_document(b'{"a": [1, [2]], "names": ["\\u005bC]"]}', "a", 99)


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        (b'{"names": ["load [MW]", "a\\"[", "\\\\"], "[": {"[[": "["}, "a": [[1, 2], [3, 4]]}', [[1, 2], [3, 4]]),
        (b'{"a": [[1, null], [null, 4]]}', [[1, np.nan], [np.nan, 4]]),
        (b'{"a": [null, 2, 18446744073709551615]}', [np.nan, 2, 2**64]),
        (b'{"names": ["["], "a": [null]}', [np.nan]),
    ],
)
def test_large_documents_have_brackets_in_names_and_gaps(
    monkeypatch: pytest.MonkeyPatch, text: bytes, truth: list[Any]
) -> None:
    small = read_document(text, "a", 1000, gaps=True)
    monkeypatch.setattr(numeric_json, "MAX_GENERAL_BYTES", 0)
    members, array = read_document(text, "a", 1000, gaps=True)
    np.testing.assert_array_equal(array, np.array(truth, np.float64), strict=True)
    np.testing.assert_array_equal(array, small[1])
    assert members == small[0]


@pytest.mark.parametrize(
    "array", ["[1, [2]]", "[null, [2]]", "[null, true]", '[null, "1"]', "[[null], 1]", "[[null], [1, 2]]", "[null, {}]"]
)
def test_large_documents_that_are_not_regular(monkeypatch: pytest.MonkeyPatch, array: str) -> None:
    monkeypatch.setattr(numeric_json, "MAX_GENERAL_BYTES", 0)
    for names in ('["[C]"]', '["\\u005bC]"]'):
        with pytest.raises(InvalidRequest, match="regular"):
            read_document(f'{{"a": {array}, "names": {names}}}'.encode(), "a", 1000, gaps=True)


def test_not_an_object_and_missing() -> None:
    with pytest.raises(InvalidRequest, match="object"):
        read_document(b"[1]", "a", 99)
    with pytest.raises(InvalidRequest, match="missing"):
        read_document(b"{}", "a", 99)


def test_too_many_numbers_are_refused_before_they_are_parsed() -> None:
    text = b'{"a": [' + b"0," * 1000 + b"0]}"
    assert read_document(text, "a", 8008)[1].size == 1001
    with pytest.raises(PayloadTooLarge):
        read_document(text[:-3], "a", 7999)  # not even valid JSON


def test_a_large_irregular_document_is_refused_without_building_it() -> None:
    text = b'{"a": [' + b"0.5," * (2 << 20) + b"[1]]}"
    with pytest.raises(InvalidRequest, match="regular"):
        read_document(text, "a", 1 << 30)


@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps({"a": value}).encode())))
def test_anything_raises_only_our_errors(text: bytes) -> None:
    with contextlib.suppress(KronserveError):
        read_document(text, "a", 1000)
