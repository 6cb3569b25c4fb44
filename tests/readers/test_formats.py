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
from app.readers.formats import EVERYTHING, Format, format_of, read_series, sniff
from app.readers.records import read_records
from app.readers.regularity import Fill, settle
from app.readers.series import MAX_STEPS, MAX_VARIATES, Series
from app.readers.table import Selection

LIMIT = 1 << 20


def read(data: bytes | str, selection: Selection = EVERYTHING, frequency: str | None = None) -> list[Series]:
    raw = data.encode() if isinstance(data, str) else data
    return read_series(raw, sniff(raw), LIMIT, selection, frequency).series


def read_csv(data: bytes, frequency: str | None = None) -> Series:
    """The whole of a wide CSV, regular and complete."""
    (series,) = read(data, frequency=frequency)
    return settle(series, series.values.shape[1], frequency=frequency)[0]


def read_json(data: bytes, frequency: str | None = None) -> Series:
    """The whole of a JSON document, regular and complete."""
    payload = read_series(data, "json", LIMIT, frequency=frequency)
    (series,) = payload.series
    return settle(series, series.values.shape[1], frequency=payload.frequency)[0]


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
        ("date,a\n1,1\n2,2\n", UnusableInput, "'date', row 1: '1' is not", "date"),
        ("date,a\n2020-01-01,1\n2020-01-01,2\n", UnusableInput, "row 2.*repeats", "date"),
        ("date\n2020-01-01\n", UnusableInput, "no variate", None),
        ("date,a\n", InvalidRequest, "no rows", None),
        ("\n \n", InvalidRequest, "empty", None),
        ('date,"a\n2020-01-01,1\n', InvalidRequest, "quote is not closed.*write every name on one line", None),
        ('date,"a\nb"\n2020-01-01,1\n', InvalidRequest, "quote is not closed", None),
        ("date,a\r2020-01-01,1\r\n", InvalidRequest, "header is broken: new-line character", None),
        ("date,a,\n2020-01-01,1,2\n2020-01-02,3,4\n", UnusableInput, "no name; give it one", "columns"),
        (",date,a\n0,2020-01-01,1\n0,2020-01-02,3\n", UnusableInput, "no name; give it one", "columns"),
        (",date,a\n0.5,2020-01-01,1\n1.5,2020-01-02,3\n", UnusableInput, "no name; give it one", "columns"),
        (",date,a\n0,2020-01-01,1\n,2020-01-02,3\n", UnusableInput, "no name; give it one", "columns"),
        (",date\n0,2020-01-01\n1,2020-01-02\n", UnusableInput, "no variate", None),
        ("a\0b\n1\n", InvalidRequest, "not text", None),
    ],
)
def test_csv_faults(text: str, error: type[KronserveError], message: str, field: str | None) -> None:
    with pytest.raises(error, match=message) as caught:
        read_csv(text.encode())
    assert caught.value.field == field


def test_json() -> None:
    body = {"target": [[1, 2.5, 3], [4, 5, 6]], "names": ["a", "b"], "start": "2020-01-31", "freq": "ME", "horizon": 9}
    payload = read_series(json.dumps(body).encode(), "json", LIMIT)
    series = read_json(json.dumps(body).encode())
    assert payload.horizon == 9
    assert series.values.tolist() == [[1, 2.5, 3], [4, 5, 6]]
    assert series.names == ("a", "b")
    assert series.timestamps is not None
    assert [stamp.isoformat()[:10] for stamp in series.timestamps] == ["2020-01-31", "2020-02-29", "2020-03-31"]
    assert series.frequency == "ME"


def test_json_flat_list_is_one_variate() -> None:
    series = read_json(b'{"target": [1, 2, 3]}', "hour")
    assert series.values.tolist() == [[1, 2, 3]]
    assert series.names == ("variate_0",)
    assert (series.timestamps, series.frequency) == (None, "h")


@pytest.mark.parametrize(
    ("body", "error", "field"),
    [
        ({"target": [[1, 2], [3]]}, InvalidRequest, "target"),
        ({"target": [[1, None]]}, UnusableInput, "variate_0"),
        ({"target": [[1, "2"]]}, UnusableInput, "target"),
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
        ({"target": [1], "start": "01/02/2020", "freq": "D"}, UnusableInput, "start"),
        ({"target": [1], "freq": "fortnight"}, UnusableInput, "freq"),
        ({"target": [1], "frequency": "h"}, InvalidRequest, "frequency"),
    ],
)
def test_json_faults(body: dict[str, Any], error: type[KronserveError], field: str) -> None:
    with pytest.raises(error) as caught:
        read_json(json.dumps(body).encode())
    assert caught.value.field == field


def test_two_frequencies_that_differ() -> None:
    body = b'{"target": [1, 2], "freq": "h"}'
    assert read_json(body, "h").frequency == "h"
    with pytest.raises(UnusableInput, match="beside"):
        read_json(body, "D")


@pytest.mark.parametrize("dtype", ["f8", "f4", ">f4", "i2", "u1", "f2"])
def test_npy(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    for written, truth in ((array, array), (np.asfortranarray(array), array), (array[0], array[:1])):
        (series,) = read_series(npy(written), "npy", LIMIT).series
        assert series.values.dtype == np.float64
        assert series.values.flags.c_contiguous
        np.testing.assert_array_equal(series.values, truth)


def test_npy_faults() -> None:
    for array in (np.zeros((1, 2, 3)), np.zeros((0, 3)), np.float64(1)):
        with pytest.raises(UnusableInput):
            read_series(npy(np.asarray(array)), "npy", LIMIT)
    with pytest.raises(UnusableInput, match="columns is for tables"):
        read_series(npy(np.zeros(3)), "npy", LIMIT, Selection(columns=("a",)))
    with pytest.raises(PayloadTooLarge):
        read_series(npy(np.zeros(100)), "npy", 799)


@pytest.mark.parametrize(
    ("media_type", "name", "kind"),
    [
        ("text/csv", "", "csv"),
        ("application/x-npy", "a.csv", "npy"),
        ("", "a.TSV", "csv"),
        ("application/octet-stream", "a", "npy"),
        ("application/vnd.apache.parquet", "", "parquet"),
        ("application/vnd.apache.arrow.stream", "", "arrow"),
    ],
)
def test_the_format_is_told_by_the_media_type_the_name_or_the_content(media_type: str, name: str, kind: str) -> None:
    assert format_of(npy(np.zeros(2)), media_type, name) == kind
    with pytest.raises(UnsupportedMediaType):
        format_of(b"", "image/png", name)


def test_series_past_any_use_are_refused_before_they_are_parsed() -> None:
    wide = b"date" + b",a" * (MAX_VARIATES + 1) + b"\n1"
    long = b"a\n" + b"broken\n" * (MAX_STEPS + 1)
    for body in (wide, long):
        with pytest.raises(PayloadTooLarge):
            read(body)
    for array in (np.zeros((MAX_VARIATES + 1, 2)), np.zeros(MAX_STEPS + 1)):
        with pytest.raises(PayloadTooLarge):
            read_series(npy(array), "npy", 1 << 30)


def test_sniff() -> None:
    samples = (
        npy(np.zeros(1)),
        b' \n{"target"',
        b"[1]",
        b"date,a",
        b"",
        b"PAR1",
        b"ARROW1\0\0",
        b"\xff\xff\xff\xff\x10",
    )
    assert [sniff(data) for data in samples] == ["npy", "json", "json", "csv", "csv", "parquet", "arrow", "arrow"]


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
    st.sampled_from([None, "ffill", "linear"]),
)
def test_anything_raises_only_our_errors(data: bytes, payload_format: Format, fill: Fill | None) -> None:
    try:
        for series in read_series(data, payload_format, 1000).series:
            settled, report = settle(series, 2, fill=fill)
            assert np.isfinite(settled.values).all()
            assert len(settled.names) == len(settled.values)
            assert settled.values.shape[1] == report.used > 0
    except KronserveError:
        return


def test_pandas_is_not_loaded_before_the_first_timestamp() -> None:
    script = (
        "import sys, app.readers.formats, app.readers.volumes, app.tasks.forecasting, app.tasks.classification\n"
        "app.readers.formats.read_series(b'{\"target\": [1, 2]}', 'json', 100)\n"
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


@pytest.mark.parametrize("fields", [";", "\t"])
def test_decimal_commas_where_commas_part_nothing(fields: str) -> None:
    rows = [["date", "a", "b"], ["2020-01-01", "1,5", "-2"], ["2020-01-02", "-,25", "1000,125"]]
    series = read_csv("\n".join(fields.join(row) for row in rows).encode())
    assert series.values.tolist() == [[1.5, -0.25], [-2, 1000.125]]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r\r\n"])
def test_a_blank_line_among_those_of_one_column_is_an_empty_cell(line_end: str) -> None:
    rows = ["load", "1", "", "3", "  ", "5"]
    for end in ("", line_end, 3 * line_end, f" {line_end} \t{line_end}"):
        (series,) = read(line_end.join(rows) + end)
        np.testing.assert_array_equal(series.values, [[1, np.nan, 3, np.nan, 5]])
    with pytest.raises(UnusableInput, match="'load', row 2: the value is missing"):
        read_csv(line_end.join(rows).encode())
    (wide,) = read(line_end.join(["a,b", "1,2", "", "3,4"]))
    assert wide.values.tolist() == [[1, 3], [2, 4]]


def test_line_ends_of_classic_mac() -> None:
    assert read_csv(b"date,a\r2020-01-01,1\r2020-01-02,2\r").values.tolist() == [[1, 2]]


def test_blocks_of_rows_make_one_table() -> None:
    """More rows than a block holds, numbers that turn from whole to broken ones, and a date late in the file."""
    rows = 200_000
    values = np.arange(rows, dtype=np.float64)
    values[rows // 2 :] += 0.5
    stamps = pd.date_range("2000-01-01", periods=rows, freq="min")
    text = pd.DataFrame({"date": stamps, "a": [f"{value:g}" if value < 1e5 else str(float(value)) for value in values]})
    series = read_series(text.to_csv(index=False).encode(), "csv", 1 << 24).series[0]
    np.testing.assert_array_equal(series.values[0], [float(cell) for cell in text["a"]])
    assert series.timestamps is not None
    assert series.timestamps.equals(pd.DatetimeIndex(stamps))
    bad = text.copy()
    bad.loc[rows - 1, "a"] = "x"
    with pytest.raises(UnusableInput, match=f"row {rows}: 'x'"):
        read_series(bad.to_csv(index=False).encode(), "csv", 1 << 24)


LONG = """unique_id,ds,y
b,2020-01-01,1
b,2020-01-02,2
a,2020-01-01,10
b,2020-01-03,3
a,2020-01-02,20
"""


@pytest.mark.parametrize("name", ["unique_id", "item_id", "Series_ID"])
def test_a_long_file_is_one_series_an_id(name: str) -> None:
    series = read(LONG.replace("unique_id", name))
    assert [(one.id, one.names, one.values.tolist()) for one in series] == [
        ("b", ("y",), [[1, 2, 3]]),
        ("a", ("y",), [[10, 20]]),
    ]
    assert series[0].timestamps is not None
    assert series[0].timestamps.equals(pd.date_range("2020-01-01", periods=3))


def test_what_of_a_file_is_read() -> None:
    (one,) = read(LONG, Selection(ids=("a",)))
    assert (one.id, one.values.tolist()) == ("a", [[10, 20]])
    assert [one.id for one in read(LONG, Selection(ids=("a,b",)))] == ["a", "b"]
    wide = "ds,a,b,c\n2020-01-01,1,2,x\n2020-01-02,3,4,y\n2020-01-03,5,6,z\n"
    (one,) = read(wide, Selection(columns=("b, a",)))
    assert (one.names, one.values.tolist()) == (("b", "a"), [[2, 4, 6], [1, 3, 5]])
    (one,) = read(wide, Selection(columns=("b",), until="2020-01-02"))
    assert one.values.tolist() == [[2, 4]]
    grouped = read("k,when,v\n1,2020-01-01,5\n2,2020-01-01,6\n", Selection(id_column="k", time_column="when"))
    assert [(one.id, one.time_name, one.values.tolist()) for one in grouped] == [
        ("1", "when", [[5]]),
        ("2", "when", [[6]]),
    ]


@pytest.mark.parametrize(
    ("selection", "field"),
    [
        (Selection(columns=("z",)), "columns"),
        (Selection(ids=("z",)), "id"),
        (Selection(time_column="z"), "time_column"),
        (Selection(id_column="z"), "id_column"),
        (Selection(until="soon"), "until"),
        (Selection(until="1999-01-01"), "until"),
        (Selection(until="2020-01-01T00:00Z"), "until"),
        (Selection(zone="Nowhere/Land"), "tz"),
        (Selection(zone="/etc/localtime"), "tz"),
    ],
)
def test_what_cannot_be_read(selection: Selection, field: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        read(LONG, selection)
    assert caught.value.field == field


@pytest.mark.parametrize("step", [1, 3])
def test_the_index_of_a_data_frame_is_no_variate(step: int) -> None:
    table = frame().iloc[::step]
    truth = read_csv(table.to_csv(index=False).encode())
    again = table.rename_axis("Unnamed: 0").reset_index()
    records = json.dumps(again.astype({"date": str}).to_dict("records"))
    for data in (table.to_csv(), table.to_csv(sep=";"), again.to_csv(index=False), records):
        (series,) = read(data)
        assert series.names == truth.names
        np.testing.assert_allclose(series.values, truth.values, rtol=1e-12)
    (chosen,) = read(again.to_csv(index=False), Selection(columns=("Unnamed: 0", "load")))
    np.testing.assert_array_equal(chosen.values[0], table.index)
    turned = read(again.iloc[::-1].to_csv(index=False))[0]
    assert turned.names == ("Unnamed: 0", *truth.names)


def test_an_index_written_twice_or_of_each_series_is_no_variate() -> None:
    table = frame()
    truth = read_csv(table.to_csv(index=False).encode())
    once = pd.read_csv(io.StringIO(table.to_csv()))
    twice = pd.read_csv(io.StringIO(once.to_csv()))
    assert list(twice.columns[:2]) == ["Unnamed: 0.1", "Unnamed: 0"]
    for data in (once.to_csv(), twice.to_csv(index=False), twice.to_csv()):
        assert read(data)[0].names == truth.names
    both = pd.concat([table.assign(unique_id=name) for name in "ab"])
    for data in (both.to_csv(), both.sort_index(kind="stable").to_csv()):
        assert [one.names for one in read(data)] == [truth.names] * 2


def test_only_a_first_column_is_an_index() -> None:
    with pytest.raises(UnusableInput, match="no name"):
        read("date,,a\n2020-01-01,10,5\n2020-01-02,20,6\n2020-01-03,35,7\n")
    (series,) = read("date,Unnamed: 1,a\n2020-01-01,10,5\n2020-01-02,20,6\n2020-01-03,35,7\n")
    assert series.names == ("Unnamed: 1", "a")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_that_end_the_lines_make_no_column(delimiter: str) -> None:
    written = frame().to_csv(index=False, sep=delimiter)
    (truth,) = read(written)
    for lines in (written.splitlines(), [f"{line}{delimiter} " for line in written.splitlines()]):
        for ends in (delimiter, 3 * delimiter):
            (series,) = read("\n".join(f"{line}{ends}" for line in lines) + "\n")
            assert series.names == truth.names
            np.testing.assert_array_equal(series.values, truth.values)
    (one,) = read(f"a{delimiter}\n1{delimiter}\n2{delimiter}\n")
    np.testing.assert_array_equal(one.values, [[1, 2]])
    for late in ("5", "x"):
        lines = [f"{line}{delimiter}{delimiter}" for line in written.splitlines()]
        lines[-1] += late
        with pytest.raises(UnusableInput, match="no name"):
            read("\n".join(lines))
        (chosen,) = read("\n".join(lines), Selection(columns=truth.names[:1]))
        np.testing.assert_array_equal(chosen.values, truth.values[:1])


def test_records_are_a_table() -> None:
    rows = [
        {"ds": "2020-01-01", "a": 1, "b": None},
        {"ds": "2020-01-02", "a": 2.5},
        {"b": 7, "ds": "2020-01-03", "a": 3},
    ]
    (series,) = read(json.dumps(rows))
    np.testing.assert_array_equal(series.values, [[1, 2.5, 3], [np.nan, np.nan, 7]])
    assert series.names == ("a", "b")
    long = [{"unique_id": key, "ds": f"2020-01-0{day}", "y": day} for key in "xy" for day in (1, 2)]
    assert [(one.id, one.values.tolist()) for one in read(json.dumps(long))] == [("x", [[1, 2]]), ("y", [[1, 2]])]


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("[]", InvalidRequest, "list of records"),
        ("[1]", InvalidRequest, "record 1 is not an object"),
        ('[{"a": 1}, [2]]', InvalidRequest, "record 2 is not an object"),
        ('[{"a": 1}, {"b": 2}]', InvalidRequest, "key 'b'"),
        ('[{"a": 1}, {"a": "x"}]', UnusableInput, "row 2: 'x' is not a number"),
        ('[{"a": true}]', UnusableInput, "not a number"),
        ('[{"ds": "x", "a": 1}]', UnusableInput, "row 1: 'x' is not an ISO 8601"),
        ('[{"a": 1}, {"a": ', InvalidRequest, "JSON"),
    ],
)
def test_record_faults(body: str, error: type[KronserveError], message: str) -> None:
    with pytest.raises(error, match=message):
        read(body)


def test_records_hold_integers_of_any_size() -> None:
    big = 123456789012345678901234567890
    text = f'[{{"ds":"2020-01-01","y":{big}}},{{"ds":"12345678901234567890\\"","y":-{big}}},{{"ds":"","y":1.{big}}}]'
    table = read_records(text.encode(), EVERYTHING, 1 << 20)
    assert table.values.tolist() == [[float(big), -float(big), float(f"1.{big}")]]
    assert table.time is not None
    assert table.time.tolist() == [b"2020-01-01", b'12345678901234567890"', b""]


def test_each_series_of_a_long_file_is_on_the_zones_clock_by_itself() -> None:
    once = [f"2020-10-25 {hour:02d}:00" for hour in range(5)]
    twice = [*once[:3], *once[2:]]
    berlin = Selection(zone="Europe/Berlin")

    def long(series: dict[str, list[str]], interleaved: bool) -> str:
        rows = [(at, f"{name},{text},1") for name, texts in series.items() for at, text in enumerate(texts)]
        ordered = sorted(rows, key=lambda row: row[0]) if interleaved else rows
        return "unique_id,ds,y\n" + "".join(f"{text}\n" for _, text in ordered)

    truth = pd.date_range("2020-10-25", periods=6, freq="h", tz="Europe/Berlin")
    for interleaved in (True, False):
        for series in read(long({"a": twice, "b": twice}, interleaved), berlin):
            assert series.timestamps is not None
            assert series.timestamps.equals(truth)
        row = 5 if interleaved else 3
        with pytest.raises(UnusableInput, match=f"row {row}: '2020-10-25 02:00:00' it falls into the change"):
            read(long({"a": once, "b": once}, interleaved), berlin)
    with pytest.raises(UnusableInput, match="row 5: "):
        read(long({"a": twice[:2], "b": once}, True), berlin)


def test_null_in_a_target_is_a_missing_value() -> None:
    (found,) = read_series(b'{"target": [[1, null, 3], [4, 5, 6]]}', "json", LIMIT).series
    np.testing.assert_array_equal(found.values, [[1, np.nan, 3], [4, 5, 6]])


@pytest.mark.parametrize("text", [b'{"target": [1, 2]}', b'[{"a": 1}, {"a": 2}]'])
def test_json_may_begin_with_a_mark_of_utf_8(text: bytes) -> None:
    data = codecs.BOM_UTF8 + b" " + text
    assert sniff(data) == "json"
    (found,) = read_series(data, "json", LIMIT).series
    np.testing.assert_array_equal(found.values, [[1, 2]])
