"""A multivariate time series from the bytes of a CSV, JSON or .npy payload."""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType, UnusableInput
from app.readers import calendar, npy
from app.readers.bounded import Buffer
from app.readers.numeric_json import read_document

if TYPE_CHECKING:
    import pandas as pd

DATE_NAMES = frozenset({"date", "ds", "timestamp", "time", "datetime"})
MEDIA_TYPES = {
    "text/csv": "csv",
    "application/csv": "csv",
    "application/json": "json",
    "application/x-npy": "npy",
}

DELIMITERS = (",", ";", "\t")

MAX_VARIATES = 1024
"""Attention over variates takes memory with the square of their number; 1024 take a HOT forecaster about 0.5 GB."""

MAX_STEPS = 1 << 20
"""A model looks at its lookback alone: longer series only cost time to read."""


@dataclass(frozen=True, eq=False)
class Series:
    """values (variates, time) float64, finite; names of the variates; timestamps (time) where they are known.

    `frequency` is the pandas alias that the timestamps follow, or that the caller gave without any timestamps.
    `time_name` is the name of the timestamps' column.
    """

    values: npt.NDArray[np.float64]
    names: tuple[str, ...]
    timestamps: pd.DatetimeIndex | None = None
    frequency: str | None = None
    time_name: str = "date"


@dataclass(frozen=True, eq=False)
class SeriesPayload:
    """A series, and the horizon that the payload itself asks for (JSON only)."""

    series: Series
    horizon: int | None = None


def sniff(data: Buffer) -> str:
    """The format of bytes that nobody named: csv, json or npy."""
    head = bytes(data[:64])
    if head.startswith(npy.MAGIC):
        return "npy"
    return "json" if head.lstrip().startswith((b"{", b"[")) else "csv"


def read_series(data: Buffer, payload_format: str, limit: int, frequency: str | None = None) -> SeriesPayload:
    """Read a payload of format csv, json or npy.

    Args:
        limit: most bytes of numbers.
        frequency: the step given beside the payload; one inside it must agree.

    Raises:
        InvalidRequest: malformed bytes. UnusableInput: values, names or timestamps that no forecast can start from.
        PayloadTooLarge: more numbers than `limit` holds. UnsupportedMediaType: another format.
    """
    if payload_format == "csv":
        return SeriesPayload(read_csv(data, frequency))
    if payload_format == "json":
        return read_json(data, limit, frequency)
    if payload_format == "npy":
        values = _as_variates(npy.read_npy(data, limit), "array")
        return SeriesPayload(_series(values, None, frequency))
    raise UnsupportedMediaType(f"a series comes as one of {', '.join(MEDIA_TYPES)}")


def read_csv(data: Buffer, frequency: str | None = None) -> Series:
    """Wide CSV: a header line, a column of timestamps (optional), one column of numbers a variate; UTF-8 or Latin-1.

    Fields are parted by commas, semicolons or tabs, as the header shows.
    The timestamps are the first column named date, ds, timestamp, time or datetime, or else the first whose values
    are not numbers.
    """
    import pandas as pd

    raw = bytes(data)
    encoding = _encoding(raw)
    names, rows_at, delimiter = _header(raw, encoding)
    _refuse_data_as_header(names)
    _check_size(len(names) - 1, raw.count(b"\n", rows_at))
    stream = io.BytesIO(raw)
    stream.seek(rows_at)
    try:
        frame = pd.read_csv(
            stream,
            sep=delimiter,
            header=None,
            names=range(len(names)),
            encoding=encoding,
            low_memory=False,  # one dtype a column, not one a chunk
            skipinitialspace=True,
        )
    except (ValueError, OverflowError) as exc:
        raise InvalidRequest(f"the CSV is broken: {exc}") from exc
    if not isinstance(frame.index, pd.RangeIndex):
        raise InvalidRequest(f"the CSV's header has {len(names)} fields, its first row has more")
    if frame.empty:
        raise InvalidRequest("the CSV has no rows after its header (is there one?)")

    time_column = _time_column(frame, names)
    columns = [index for index in range(len(names)) if index != time_column]
    variates = tuple(names[index] for index in columns)
    _check_names(variates, len(columns))
    values = np.stack([_numbers(frame[index], names[index]) for index in columns])
    _check_finite(values, variates)
    if time_column is None:
        return _series(values, variates, frequency)

    time_name = names[time_column]
    stamps, bad = calendar.parse_stamps(frame[time_column])
    if bad is not None:
        shown = str(frame[time_column].iloc[bad])[:40]
        raise UnusableInput(
            f"column {time_name!r}, row {bad + 1}: {shown!r} is not an ISO 8601 timestamp", field=time_name
        )
    offset = calendar.regular_frequency(stamps, frequency, time_name)
    return Series(values, variates, stamps, None if offset is None else offset.freqstr, time_name)


def read_json(data: Buffer, limit: int, frequency: str | None = None) -> SeriesPayload:
    """{"target": [[..], ..], "names"?, "start"?, "freq"?, "horizon"?}; target is variates x time, or flat for one.

    Raises as `read_series` does.
    """
    members, target = read_document(data, "target", limit)
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
    series = _series(values, None if names is None else tuple(names), frequency or inner, members.get("start"))
    return SeriesPayload(series, horizon)


def _series(
    values: npt.NDArray[np.float64], names: tuple[str, ...] | None, frequency: str | None, start: str | None = None
) -> Series:
    if names is None:
        names = tuple(f"variate_{index}" for index in range(len(values)))
    _check_names(names, len(values))
    _check_finite(values, names)
    if start is not None:
        if frequency is None:
            raise UnusableInput("start needs freq: without it the steps have no length", field="freq")
        stamps, offset = calendar.stamps_from(start, frequency, values.shape[1])
        return Series(values, names, stamps, offset.freqstr)
    return Series(values, names, None, None if frequency is None else calendar.parse_frequency(frequency).freqstr)


def _as_variates(array: npt.NDArray[Any], field: str) -> npt.NDArray[np.float64]:
    if array.ndim not in (1, 2):
        raise UnusableInput(f"{field} has {array.ndim} dimensions; it must be [variates, time] or [time]", field=field)
    values = np.atleast_2d(array)
    _check_size(*values.shape)
    if values.size == 0:
        raise UnusableInput(f"{field} has no values", field=field)
    return np.ascontiguousarray(values, np.float64)


def _check_size(variates: int, steps: int) -> None:
    if variates > MAX_VARIATES:
        raise PayloadTooLarge(f"{variates} variates; at most {MAX_VARIATES} are forecast together")
    if steps > MAX_STEPS:
        raise PayloadTooLarge(f"{steps} steps; at most {MAX_STEPS} are read, and the last are those that count")


def _encoding(raw: bytes) -> str:
    if b"\0" in raw[:4096]:
        raise InvalidRequest("the CSV is not text in UTF-8 or Latin-1")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _header(raw: bytes, encoding: str) -> tuple[list[str], int, str]:
    """The fields of the first line that is not blank, the position after it, and what parts its fields.

    pandas would rename repeated names instead of telling.
    """
    position = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    while position < len(raw):
        end = raw.find(b"\n", position) + 1 or len(raw)
        _check_size(max(raw.count(delimiter.encode(), position, end) for delimiter in DELIMITERS), 0)
        line = raw[position:end].decode(encoding)
        position = end
        if line.strip():
            # The first of equals: a name may well hold a semicolon, but then the commas are more.
            fields, delimiter = max(((_split(line, one), one) for one in DELIMITERS), key=lambda found: len(found[0]))
            if any(fields):
                return fields, position, delimiter
    raise InvalidRequest("the CSV is empty")


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error as exc:
        if delimiter == DELIMITERS[0]:
            raise InvalidRequest(f"the CSV's header is broken: {exc}") from exc
        return []


def _refuse_data_as_header(names: list[str]) -> None:
    """UnusableInput if every name is a number or a timestamp: the first row would be lost."""
    texts = [name for name in names if not _is_number(name)]
    if not texts or (all(text[:1].isdigit() for text in texts) and calendar.parse_stamps(texts)[1] is None):
        raise UnusableInput("the CSV has no header: its first line holds only numbers and timestamps, not names")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _time_column(frame: pd.DataFrame, names: list[str]) -> int | None:
    from pandas.api.types import is_numeric_dtype

    for index, name in enumerate(names):
        if name.lower() in DATE_NAMES:
            if is_numeric_dtype(frame[index].dtype):
                raise UnusableInput(f"column {name!r} holds numbers, not ISO 8601 timestamps", field=name)
            return index
    for index in range(len(names)):
        if not is_numeric_dtype(frame[index].dtype) and _not_numbers(frame[index])[0]:
            return index
    return None


def _not_numbers(column: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    import pandas as pd

    return np.asarray(pd.to_numeric(column, errors="coerce").isna() & column.notna())


def _numbers(column: pd.Series[Any], name: str) -> npt.NDArray[np.float64]:
    from pandas.api.types import is_bool_dtype

    if column.dtype.kind in "iuf":
        return column.to_numpy(np.float64)
    bad = np.ones(len(column), np.bool_) if is_bool_dtype(column.dtype) else _not_numbers(column)
    if bad.any():
        row = int(bad.argmax())
        raise UnusableInput(
            f"column {name!r}, row {row + 1}: {str(column.iloc[row])[:40]!r} is not a number", field=name
        )
    return np.asarray(column, np.float64)


def _check_finite(values: npt.NDArray[np.float64], names: tuple[str, ...]) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    # The earliest row, and in it the first column: what a reader of the file meets first.
    step = int((~finite).any(axis=0).argmax())
    variate = int((~finite[:, step]).argmax())
    what = "missing or NaN" if np.isnan(values[variate, step]) else "infinite"
    raise UnusableInput(f"column {names[variate]!r}, row {step + 1}: the value is {what}", field=names[variate])


def _check_names(names: tuple[str, ...], variates: int) -> None:
    if variates == 0:
        raise UnusableInput("the series has no variate: not one column of numbers")
    if len(names) != variates:
        raise UnusableInput(f"{len(names)} names for {variates} variates", field="names")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UnusableInput(f"the name {name[:40]!r} stands for two variates", field="names")
        seen.add(name)
