"""Parquet and Arrow IPC against pandas' own reading, and files that are broken or swell."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnusableInput
from app.readers.formats import EVERYTHING, read_series, sniff
from app.readers.series import Series
from app.readers.table import Selection

FRAME = pd.DataFrame(
    {
        "when": pd.date_range("2021-03-27 22:00", periods=6, freq="h", tz="Europe/Berlin"),
        "a": [1.5, None, 3, 4, 5, 6],
        "b": np.arange(6, dtype=np.int16),
        "note": list("uvwxyz"),
    }
)


def parquet(frame: pd.DataFrame, **options: Any) -> bytes:
    stream = io.BytesIO()
    frame.to_parquet(stream, **options)
    return stream.getvalue()


def feather(frame: pd.DataFrame, compression: str = "uncompressed") -> bytes:
    stream = io.BytesIO()
    pyarrow.feather.write_feather(frame, stream, compression=compression)
    return stream.getvalue()


def ipc_stream(frame: pd.DataFrame) -> bytes:
    table, stream = pa.Table.from_pandas(frame), io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return stream.getvalue()


def read(data: bytes, selection: Selection = EVERYTHING, limit: int = 1 << 20) -> list[Series]:
    return read_series(data, sniff(data), limit, selection).series


@pytest.mark.parametrize(
    "data",
    [parquet(FRAME), parquet(FRAME, compression="zstd"), feather(FRAME, "zstd"), ipc_stream(FRAME)],
    ids=["parquet", "parquet.zstd", "arrow.zstd", "arrow stream"],
)
def test_wide_files(data: bytes) -> None:
    (series,) = read(data, Selection(columns=("a", "b")))
    np.testing.assert_array_equal(series.values, FRAME[["a", "b"]].to_numpy().T)
    assert series.names == ("a", "b")
    assert series.time_name == "when"
    assert series.timestamps is not None
    assert series.timestamps.equals(pd.DatetimeIndex(FRAME["when"]))


def test_long_files_and_written_dates() -> None:
    frame = pd.DataFrame(
        {
            "unique_id": pd.Categorical(["x", "x", "y"]),
            "ds": ["2020-01-01", "2020-01-02", "2020-01-01"],
            "y": [1.0, 2.0, 3.0],
        }
    )
    for data in (parquet(frame), feather(frame)):
        found = read(data)
        assert [(one.id, one.names, one.values.tolist()) for one in found] == [
            ("x", ("y",), [[1, 2]]),
            ("y", ("y",), [[3]]),
        ]
        assert found[0].timestamps is not None
        assert found[0].timestamps.equals(pd.date_range("2020-01-01", periods=2))


def test_the_index_of_a_filtered_frame_is_no_variate() -> None:
    frame = FRAME[["when", "a", "b"]].sort_values("b", ascending=False)
    frame = frame[frame["b"] != 3]
    data = parquet(frame)
    assert read(data)[0].names == ("a", "b")
    (chosen,) = read(data, Selection(columns=("__index_level_0__",)))
    assert chosen.values.tolist() == [frame.index.tolist()]


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (FRAME, UnusableInput, "'note' holds"),
        (FRAME[["when", "a"]].assign(when=[pd.NaT, *FRAME["when"][1:]]), UnusableInput, "row 1: no timestamp"),
        (pd.DataFrame({"ds": [1.0], "y": [1.0]}), UnusableInput, "'ds' holds"),
        (FRAME[["when", "a"]][:0], InvalidRequest, "no rows"),
        (pd.DataFrame({"a": np.zeros(200_000)}), PayloadTooLarge, "numbers"),
    ],
)
def test_refusals(frame: pd.DataFrame, error: type[KronserveError], message: str) -> None:
    with pytest.raises(error, match=message):
        read(parquet(frame))


def test_broken_files() -> None:
    for whole in (parquet(FRAME), feather(FRAME)):
        for data in (whole[: len(whole) // 2], whole[:200] + bytes(200) + whole[400:]):
            with pytest.raises((InvalidRequest, UnusableInput)):
                read(data)


@pytest.mark.parametrize("stream", [True, False])
def test_offsets_that_lead_elsewhere_are_refused_by_name(stream: bool) -> None:
    """pyarrow believes them: casting such a column is a read of memory that is not the file's."""
    offsets = pa.py_buffer(np.array([0, 1 << 16, 1], np.int32))
    texts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"ab"))
    table, sink = pa.table({"ds": texts, "y": [1.0, 2.0]}), io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidRequest, match=r"broken \(.*offset"):
        read(sink.getvalue())


def test_a_page_that_swells_is_refused_by_the_process() -> None:
    """A dictionary of one text of 160 MB, said to be small by nothing but its compressed size."""
    table = pa.table({"ds": ["x" * (160 << 20)], "y": [1.0]})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    data = stream.getvalue()
    assert len(data) < 1 << 20
    with pytest.raises((PayloadTooLarge, InvalidRequest)):
        read(data, limit=1 << 20)


@pytest.mark.parametrize(
    ("stamps", "unit", "zone", "message"),
    [
        ([0, 3600, 7200], "s", "Mars/Olympus", "Mars/Olympus"),
        ([0, 2**62], "us", None, "row 2.*years 1 to 9999"),
        ([-(2**62), 0], "us", "UTC", "row 1.*years 1 to 9999"),
        ([0, -(2**63)], "us", None, "row 2.*years 1 to 9999"),
        ([0, 1, -(2**63)], "ns", "Europe/Berlin", "row 3.*years 1 to 9999"),
        ([2**62], "s", None, "row 1.*years 1 to 9999"),
    ],
)
def test_stamps_that_no_calendar_has(stamps: list[int], unit: str, zone: str | None, message: str) -> None:
    stream = io.BytesIO()
    kind = pa.timestamp(unit, tz=zone)
    table = pa.table({"ds": pa.array(stamps, pa.int64()).cast(kind), "y": [1.0] * len(stamps)})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UnusableInput, match=message) as caught:
        read(stream.getvalue())
    assert caught.value.field == "ds"


def test_a_selection_may_be_longer_than_a_command_line() -> None:
    with pytest.raises(UnusableInput, match="there is no column 'c0'"):
        read(parquet(FRAME), Selection(columns=tuple(f"c{at}" for at in range(60_000))))


def test_a_package_of_the_same_name_where_the_service_runs_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    (series,) = read(parquet(FRAME), Selection(columns=("b",)))
    assert series.values.tolist() == [list(range(6))]
    assert not (tmp_path / "ran").exists()


def test_why_the_process_ended_is_logged_without_what_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, json\ndef loads(text):\n    raise RuntimeError(str(text))\n"
        "if '-m' in sys.orig_argv:\n    json.loads = loads\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InvalidRequest):
        read(parquet(FRAME), Selection(columns=("secret",)))
    assert "RuntimeError" in caplog.text
    assert "sitecustomize.py" in caplog.text
    assert "secret" not in caplog.text
