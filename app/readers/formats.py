"""The formats of series: CSV, JSON, .npy, Parquet and Arrow IPC; told by media type, file name or content."""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, UnsupportedMediaType, UnusableInput
from app.readers import calendar, npy
from app.readers.bounded import Buffer
from app.readers.columnar import ARROW_MAGIC, PARQUET_MAGIC, read_columnar
from app.readers.csv_table import read_csv_table
from app.readers.numeric_json import read_document
from app.readers.records import read_records
from app.readers.series import Series, check_names
from app.readers.table import Selection, check_size, series_of

Format = Literal["csv", "json", "npy", "parquet", "arrow"]

MEDIA_TYPES: dict[str, Format] = {
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    "application/csv": "csv",
    "application/json": "json",
    "application/x-npy": "npy",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.file": "arrow",
    "application/vnd.apache.arrow.stream": "arrow",
}
UNSPECIFIC = frozenset(
    {"", "application/octet-stream", "text/plain", "application/vnd.ms-excel", "application/x-www-form-urlencoded"}
)
"""Media types that senders give without knowing: the first bytes decide, or the file's name."""

EVERYTHING = Selection()

SUFFIXES: dict[str, Format] = {"csv": "csv", "tsv": "csv", "json": "json", "npy": "npy"}


@dataclass(frozen=True, eq=False)
class SeriesPayload:
    """The series of one payload, the step that it says they have, and the horizon that it asks for (JSON only)."""

    series: list[Series]
    frequency: str | None = None
    horizon: int | None = None


def format_of(data: Buffer, media_type: str, filename: str = "") -> Format:
    """The format of a payload. UnsupportedMediaType: the media type says that it is none of them."""
    known = MEDIA_TYPES.get(media_type)
    if known is not None:
        return known
    if media_type not in UNSPECIFIC:
        raise UnsupportedMediaType(f"Content-Type must be one of {', '.join(MEDIA_TYPES)}, multipart/form-data")
    return SUFFIXES.get(filename.lower().rpartition(".")[2]) or sniff(data)


def sniff(data: Buffer) -> Format:
    """The format of bytes that nobody named."""
    head = bytes(data[:64])
    if head.startswith(npy.MAGIC):
        return "npy"
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if head.startswith((ARROW_MAGIC, b"\xff\xff\xff\xff")):
        return "arrow"
    return "json" if _begins(head).startswith((b"{", b"[")) else "csv"


def _begins(head: bytes) -> bytes:
    """Without what may stand before the first character: a mark of UTF-8, and space."""
    return head.removeprefix(BOM_UTF8).lstrip()


def read_series(
    data: Buffer, payload_format: Format, limit: int, selection: Selection = EVERYTHING, frequency: str | None = None
) -> SeriesPayload:
    """The series of a payload, as they are: irregular timestamps and missing values are `regularity.settle`'s.

    Args:
        limit: most bytes of numbers.
        frequency: the step given beside the payload; one inside it must agree.

    Raises:
        InvalidRequest: malformed bytes. UnusableInput: values, names or timestamps that no forecast can start from.
        PayloadTooLarge: more numbers than `limit` holds. NotSupported: a format whose library is not installed.
    """
    if payload_format == "json" and bytes(data[: len(BOM_UTF8)]) == BOM_UTF8:
        data = memoryview(data)[len(BOM_UTF8) :]
    if payload_format == "json" and bytes(data[:64]).lstrip().startswith(b"{"):
        _refuse_selection(selection, "a JSON object")
        return _read_document(data, limit, frequency)
    if payload_format == "npy":
        _refuse_selection(selection, ".npy")
        return SeriesPayload([_plain(_as_variates(npy.read_npy(data, limit), "array"), None)], frequency)
    if payload_format != "csv" and selection.decimal is not None:
        raise UnusableInput(f"decimal is for CSV; this is {payload_format}", field="decimal")
    if payload_format == "csv":
        table = read_csv_table(data, selection, limit)
    elif payload_format == "json":
        table = read_records(data, selection, limit)
    else:
        table = read_columnar(data, payload_format, selection, limit)
    return SeriesPayload(series_of(table, selection), frequency)


def _read_document(data: Buffer, limit: int, frequency: str | None) -> SeriesPayload:
    """{"target": [[..], ..], "names"?, "start"?, "freq"?, "horizon"?}; target is variates x time, or flat for one."""
    members, target = read_document(data, "target", limit, gaps=True)
    unknown = sorted(set(members) - {"names", "start", "freq", "horizon"})
    if unknown:
        raise InvalidRequest(f"unknown member {unknown[0][:40]!r}", field=unknown[0][:40])
    values = _as_variates(target, "target")
    names = members.get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InvalidRequest("names must be a list of strings", field="names")
    horizon = members.get("horizon")
    if horizon is not None and type(horizon) is not int:
        raise InvalidRequest("horizon must be an integer", field="horizon")
    for member in ("start", "freq"):
        if not isinstance(members.get(member), str | None):
            raise InvalidRequest(f"{member} must be a string", field=member)
    inner: str | None = members.get("freq")
    if frequency is not None and inner is not None and frequency != inner:
        raise UnusableInput(f"freq is {inner[:40]!r} in the body but {frequency[:40]!r} beside it", field="freq")
    frequency = frequency or inner
    series = started(_plain(values, None if names is None else tuple(names)), members.get("start"), frequency)
    return SeriesPayload([series], frequency, horizon)


def started(series: Series, start: str | None, frequency: str | None) -> Series:
    """A series without timestamps, with those from `start` on.

    Raises:
        UnusableInput: no frequency, or one it is not on; a start that is no timestamp, or may be one of two days.
    """
    if start is None:
        return series
    if frequency is None:
        raise UnusableInput("start needs freq: without it the steps have no length", field="freq")
    try:
        stamps, offset = calendar.stamps_from(start, frequency, series.values.shape[1])
    except UnusableInput as error:
        if error.field != "dates":
            raise
        raise UnusableInput(
            f"start {start[:40]!r}: nothing tells the day from the month; write it as 2020-01-31", field="start"
        ) from None
    return Series(series.values, series.names, stamps, offset.freqstr)


def _plain(values: npt.NDArray[np.float64], names: tuple[str, ...] | None) -> Series:
    if names is None:
        names = tuple(f"variate_{index}" for index in range(len(values)))
    check_names(names, len(values))
    return Series(values, names)


def _as_variates(array: npt.NDArray[Any], field: str) -> npt.NDArray[np.float64]:
    if array.ndim not in (1, 2):
        raise UnusableInput(f"{field} has {array.ndim} dimensions; it must be [variates, time] or [time]", field=field)
    values = np.atleast_2d(array)
    check_size(*values.shape)
    if values.size == 0:
        raise UnusableInput(f"{field} has no values", field=field)
    return np.ascontiguousarray(values, np.float64)


def _refuse_selection(selection: Selection, kind: str) -> None:
    """Columns, ids and dates are of tables; elsewhere they would be silently ignored."""
    for field, value in vars(selection).items():
        if value is not None:
            field = {"ids": "id", "zone": "tz"}.get(field, field)
            raise UnusableInput(f"{field} is for tables of named columns; this is {kind}", field=field)
