"""Series from CSV, JSON and .npy: equal to what was written, and precise about what is wrong."""

from __future__ import annotations

import codecs
import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnsupportedMediaType, UnusableInput
from app.readers.series import MAX_STEPS, MAX_VARIATES, read_csv, read_json, read_series, sniff

LIMIT = 1 << 20


def frame(rows: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((rows, 3)) * [1e-6, 1.0, 1e6]
    table = pd.DataFrame(values, columns=["load", "temperature", "Größe [m]"])
    table.insert(0, "date", pd.date_range("2016-07-01", periods=rows, freq="h"))
    return table


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_csv_round_trip(encoding: str, line_end: str) -> None:
    table = frame()
    series = read_csv(table.to_csv(index=False, lineterminator=line_end).encode(encoding))
    np.testing.assert_allclose(series.values, table.iloc[:, 1:].to_numpy().T, rtol=1e-15)
    assert series.names == ("load", "temperature", "Größe [m]")
    assert series.timestamps is not None
    assert series.timestamps.equals(pd.DatetimeIndex(table["date"]))
    assert (series.frequency, series.time_name) == ("h", "date")


@pytest.mark.parametrize("name", ["date", "DS", "Timestamp", "time", "datetime", "when it was"])
@pytest.mark.parametrize("position", [0, 2])
def test_the_time_column_is_found(name: str, position: int) -> None:
    table = frame().drop(columns="date")
    table.insert(position, name, pd.date_range("2020-01-01", periods=len(table), freq="D"))
    series = read_csv(table.to_csv(index=False).encode())
    assert (series.time_name, series.frequency) == (name, "D")
    assert series.names == ("load", "temperature", "Größe [m]")


def test_csv_without_timestamps() -> None:
    series = read_csv(b"a,b\n1,2\n3,4\n5,6\n")
    assert series.values.tolist() == [[1, 3, 5], [2, 4, 6]]
    assert (series.timestamps, series.frequency) == (None, None)
    assert read_csv(b"a\n1\n2\n", "hour").frequency == "h"


def test_quotes_blanks_and_huge_integers() -> None:
    series = read_csv(b'\n\n"date","a, b", c\n"2020-01-01", 1 ,123456789012345678901234567890\n\n2020-01-02,2,-1e3\n')
    assert series.names == ("a, b", "c")
    assert series.values.tolist() == [[1, 2], [123456789012345678901234567890.0, -1000]]


@pytest.mark.parametrize(
    ("text", "error", "message", "field"),
    [
        ("date,a\n2020-01-01,1\n2020-01-02,\n", UnusableInput, "'a', row 2: the value is missing", "a"),
        ("date,a\n2020-01-01,NaN\n", UnusableInput, "'a', row 1: the value is missing or NaN", "a"),
        ("date,a,b\n2020-01-01,1,2\n2020-01-02,3,-inf\n", UnusableInput, "'b', row 2: the value is infinite", "b"),
        ("date,a,b\n2020-01-01,1,2\n2020-01-02,x,y\n", UnusableInput, "'a', row 2: 'x' is not a number", "a"),
        ("date,a\n2020-01-01,True\n2020-01-02,False\n", UnusableInput, "'a', row 1: 'True'", "a"),
        ("date,a,b\n2020-01-01,1,2\n2020-01-02,3\n", UnusableInput, "'b', row 2: the value is missing", "b"),
        ("date,a\n2020-01-01,1\n2020-01-02,3,4\n", InvalidRequest, "Expected 2 fields", None),
        ("date,a\n2020-01-01,1,2\n2020-01-02,3,4\n", InvalidRequest, "first row has more", None),
        ("date,a,a\n2020-01-01,1,2\n", UnusableInput, "'a' stands for two", "names"),
        ("date,a\n2020-01-01,1\nsoon,2\n", UnusableInput, "'date', row 2: 'soon'", "date"),
        ("date,a\n2020-01-01,1\n,2\n", UnusableInput, "'date', row 2", "date"),
        ("date,a\n1,1\n2,2\n", UnusableInput, "'date' holds numbers", "date"),
        ("date,a\n2020-01-01,1\n2020-01-01,2\n", UnusableInput, "row 2.*repeats", "date"),
        ("date\n2020-01-01\n", UnusableInput, "no variate", None),
        ("date,a\n", InvalidRequest, "no rows", None),
        ("\n \n", InvalidRequest, "empty", None),
        ('date,"a\n2020-01-01,1\n', InvalidRequest, "header is broken", None),
        ("a\0b\n1\n", InvalidRequest, "not text", None),
    ],
)
def test_csv_faults(text: str, error: type[KronserveError], message: str, field: str | None) -> None:
    with pytest.raises(error, match=message) as caught:
        read_csv(text.encode())
    assert caught.value.field == field


def test_json() -> None:
    body = {"target": [[1, 2.5, 3], [4, 5, 6]], "names": ["a", "b"], "start": "2020-01-31", "freq": "ME", "horizon": 9}
    payload = read_json(json.dumps(body).encode(), LIMIT)
    series = payload.series
    assert payload.horizon == 9
    assert series.values.tolist() == [[1, 2.5, 3], [4, 5, 6]]
    assert series.names == ("a", "b")
    assert series.timestamps is not None
    assert [stamp.isoformat()[:10] for stamp in series.timestamps] == ["2020-01-31", "2020-02-29", "2020-03-31"]
    assert series.frequency == "ME"


def test_json_flat_list_is_one_variate() -> None:
    payload = read_json(b'{"target": [1, 2, 3]}', LIMIT, "hour")
    assert payload.series.values.tolist() == [[1, 2, 3]]
    assert payload.series.names == ("variate_0",)
    assert (payload.series.timestamps, payload.series.frequency, payload.horizon) == (None, "h", None)


@pytest.mark.parametrize(
    ("body", "error", "field"),
    [
        ({"target": [[1, 2], [3]]}, InvalidRequest, "target"),
        ({"target": [[1, None]]}, UnusableInput, "target"),
        ({"target": [[[1]]]}, UnusableInput, "target"),
        ({"target": []}, UnusableInput, "target"),
        ({"target": [[], []]}, UnusableInput, "target"),
        ({"names": ["a"]}, InvalidRequest, "target"),
        ({"target": [1], "names": ["a", "b"]}, UnusableInput, "names"),
        ({"target": [[1], [2]], "names": ["a", "a"]}, UnusableInput, "names"),
        ({"target": [1], "names": "a"}, InvalidRequest, "names"),
        ({"target": [1], "names": [1]}, InvalidRequest, "names"),
        ({"target": [1], "horizon": 1.5}, InvalidRequest, "horizon"),
        ({"target": [1], "horizon": True}, InvalidRequest, "horizon"),
        ({"target": [1], "start": 5}, InvalidRequest, "start"),
        ({"target": [1], "start": "2020-01-01"}, UnusableInput, "freq"),
        ({"target": [1], "start": "soon", "freq": "h"}, UnusableInput, "start"),
        ({"target": [1], "freq": "fortnight"}, UnusableInput, "freq"),
        ({"target": [1], "frequency": "h"}, InvalidRequest, "frequency"),
    ],
)
def test_json_faults(body: dict[str, Any], error: type[KronserveError], field: str) -> None:
    with pytest.raises(error) as caught:
        read_json(json.dumps(body).encode(), LIMIT)
    assert caught.value.field == field


def test_two_frequencies_that_differ() -> None:
    body = b'{"target": [1, 2], "freq": "h"}'
    assert read_json(body, LIMIT, "h").series.frequency == "h"
    with pytest.raises(UnusableInput, match="beside"):
        read_json(body, LIMIT, "D")


@pytest.mark.parametrize("dtype", ["f8", "f4", ">f4", "i2", "u1", "f2"])
def test_npy(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    for written, truth in ((array, array), (np.asfortranarray(array), array), (array[0], array[:1])):
        series = read_series(npy(written), "npy", LIMIT).series
        assert series.values.dtype == np.float64
        assert series.values.flags.c_contiguous
        np.testing.assert_array_equal(series.values, truth)


def test_npy_faults() -> None:
    for array in (np.zeros((1, 2, 3)), np.zeros((0, 3)), np.float64(1), np.array([1, np.nan]), np.array([[np.inf]])):
        with pytest.raises(UnusableInput):
            read_series(npy(np.asarray(array)), "npy", LIMIT)
    with pytest.raises(PayloadTooLarge):
        read_series(npy(np.zeros(100)), "npy", 799)
    with pytest.raises(UnsupportedMediaType):
        read_series(b"", "parquet", LIMIT)


def test_series_past_any_use_are_refused_before_they_are_parsed() -> None:
    wide = b"date" + b",a" * (MAX_VARIATES + 1) + b"\n1"
    long = b"a\n" + b"broken\n" * (MAX_STEPS + 1)
    for body in (wide, long):
        with pytest.raises(PayloadTooLarge):
            read_csv(body)
    for array in (np.zeros((MAX_VARIATES + 1, 2)), np.zeros(MAX_STEPS + 1)):
        with pytest.raises(PayloadTooLarge):
            read_series(npy(array), "npy", 1 << 30)


def test_sniff() -> None:
    assert [sniff(data) for data in (npy(np.zeros(1)), b' \n{"target"', b"[1]", b"date,a", b"")] == [
        "npy",
        "json",
        "json",
        "csv",
        "csv",
    ]


CELLS = st.one_of(
    st.floats().map(str), st.sampled_from(["2020-01-01", "", '"', "x", "1e999", "\x85", "é"]), st.text(max_size=4)
)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=5).map(lambda rows: "\n".join(rows).encode()),
        st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=5).map(
            lambda rows: "\n".join(("date,a,b", *rows)).encode("utf-16-le", "replace")[::2]
        ),
    ),
    st.sampled_from(["csv", "json", "npy"]),
)
def test_anything_raises_only_our_errors(data: bytes, payload_format: str) -> None:
    try:
        series = read_series(data, payload_format, 1000).series
    except KronserveError:
        return
    assert np.isfinite(series.values).all()
    assert len(series.names) == len(series.values)


def test_pandas_is_not_loaded_before_the_first_timestamp() -> None:
    script = (
        "import sys, app.readers.series, app.readers.volumes, app.tasks.forecasting, app.tasks.classification\n"
        "app.readers.series.read_json(b'{\"target\": [1, 2]}', 100)\n"
        "print([name for name in ('pandas', 'nibabel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_fields_are_parted_as_the_header_shows(delimiter: str, mark: bytes) -> None:
    rows = [["date", "a", "b (x)"], ["2020-01-01", "1.5", "-2"], ["2020-01-02", "2.5", "1e3"]]
    text = mark + "\n".join(delimiter.join(row) for row in rows).encode()
    found = read_csv(text)
    assert found.names == ("a", "b (x)")
    assert found.values.tolist() == [[1.5, 2.5], [-2.0, 1000.0]]
    assert found.timestamps is not None


def test_a_semicolon_in_a_name_parts_nothing() -> None:
    assert read_csv(b"date,a;b,c\n2020-01-01,1,2\n2020-01-02,3,4\n").names == ("a;b", "c")
    assert read_csv(b'date;"a;b,c";d\n2020-01-01;1;2\n2020-01-02;3;4\n').names == ("a;b,c", "d")


@pytest.mark.parametrize(
    "first",
    [
        b"2020-01-01 00:00:00,1.5,2",
        b"2020-01-01T00:00:00+01:00;1;2",
        b"1,2.5,-3e4",
        b"5",
        b"2020/1/1\t1\t2",
        b"1,nan,2",
    ],
)
def test_a_file_without_header_is_told_so(first: bytes) -> None:
    with pytest.raises(UnusableInput, match="no header"):
        read_csv(b"\n".join([first] * 3))


@pytest.mark.parametrize("header", [b"date,2019,2020", b",0,1", b"2 rooms,3 rooms,4", b"1st,2,3"])
def test_names_that_begin_with_digits_are_names(header: bytes) -> None:
    rows = b"\n".join(b"2020-01-%02d,%d,%d" % (day, day, day) for day in (1, 2, 3))
    assert len(read_csv(header + b"\n" + rows).names) == 2
