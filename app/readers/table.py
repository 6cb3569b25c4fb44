"""A file's columns, and the series that they make: wide, a column a variate, or long, rows grouped by an identifier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.errors import PayloadTooLarge, UnusableInput
from app.readers.dates import DateOrder, NotADate, check_zone, in_zone, parse_date, parse_dates
from app.readers.decimal_mark import DecimalMark
from app.readers.series import MAX_STEPS, MAX_VARIATES, Series, check_names

if TYPE_CHECKING:
    import pandas as pd

DATE_NAMES = frozenset({"date", "ds", "timestamp", "time", "datetime"})
ID_NAMES = frozenset({"unique_id", "item_id", "series_id"})

MAX_SERIES = 4096
"""Series of one file that are forecast together."""

MAX_TEXT = 128
"""Characters of an identifier or a timestamp."""

NAMELESS = "a column of numbers has no name; give it one, or leave it out"

_INDEX_LEVEL = re.compile(r"__index_level_\d+__")
"""What pandas calls an index without a name in Parquet and Arrow."""

_UNNAMED = re.compile(r"(?:Unnamed: \d+(?:\.\d+)*)?")
"""What it is called in CSV, and once pandas has read that and written it again."""


@dataclass(frozen=True)
class Selection:
    """What of a file is to be read, and how; None leaves it to the file.

    columns: the variates. ids: the series of a long file. time_column, id_column: names. until: the last timestamp that
    counts. dates: whether day or month comes first. decimal: the mark before decimals, in CSV. zone: IANA name of the
    time zone of the timestamps.
    """

    columns: tuple[str, ...] | None = None
    ids: tuple[str, ...] | None = None
    time_column: str | None = None
    id_column: str | None = None
    until: str | None = None
    dates: DateOrder | None = None
    decimal: DecimalMark | None = None
    zone: str | None = None


@dataclass(frozen=True)
class Roles:
    """Positions of the columns: timestamps, identifiers, variates."""

    time: int | None
    identity: int | None
    variates: tuple[int, ...]

    @property
    def leads(self) -> bool:
        """Whether the first variate is the first column of the file."""
        return self.variates[:1] == (0,)


@dataclass(frozen=True, eq=False)
class Table:
    """values (variates, rows), NaN where a cell is empty; `time` as texts (bytes in UTF-8) or already as stamps."""

    names: tuple[str, ...]
    values: npt.NDArray[np.float64]
    time: npt.NDArray[Any] | pd.DatetimeIndex | None = None
    time_name: str = "date"
    ids: npt.NDArray[Any] | None = None


def named_roles(names: Sequence[str], selection: Selection) -> Roles:
    """The roles that the names alone give; `time` is None where only the content can tell. The index of a data frame is
    a variate only if it is asked for.

    Raises:
        UnusableInput: a name that was asked for and is not there, a repeated name, no variate left.
    """
    check_names(tuple(names), len(names))
    lower = [name.lower() for name in names]
    time = _asked(names, selection.time_column, "time_column")
    if time is None:
        time = next((at for at, name in enumerate(lower) if name in DATE_NAMES), None)
    identity = _asked(names, selection.id_column, "id_column")
    if identity is None and selection.columns is None:
        identity = next((at for at, name in enumerate(lower) if name in ID_NAMES and at != time), None)
    elif identity is None:
        chosen = split_names(selection.columns, names)
        identity = next((at for at, name in enumerate(lower) if name in ID_NAMES and names[at] not in chosen), None)
    if selection.ids is not None and identity is None:
        raise UnusableInput("id chooses among the series of a long file, and this has no column of ids", field="id")
    if selection.columns is None:
        variates = tuple(
            at for at, name in enumerate(names) if at not in (time, identity) and not _INDEX_LEVEL.fullmatch(name)
        )
    else:
        variates = tuple(_asked(names, name, "columns") or 0 for name in split_names(selection.columns, names))
    return Roles(time, identity, variates)


def split_names(given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Names given one by one or parted by commas; one that is known as it stands is not parted."""
    return tuple(
        name
        for text in given or ()
        for name in ([text] if text in known else [part.strip() for part in text.split(",")])
        if name
    )


def without_index(table: Table, selection: Selection, *, leads: bool) -> Table:
    """The table without the indices that a data frame was written with: first columns of whole numbers that increase,
    in a long file within each id, and have no name. One that was asked for stays.

    leads: the first variate is the first column of the file; only there is an index.

    Raises:
        UnusableInput: any other column of numbers without a name.
    """
    if selection.columns is None and leads:
        while table.names and _UNNAMED.fullmatch(table.names[0]) and _counts(table.values[0], table.ids):
            table = replace(table, names=table.names[1:], values=table.values[1:])
    if "" in table.names:
        raise UnusableInput(NAMELESS, field="columns")
    return table


def series_of(table: Table, selection: Selection) -> list[Series]:
    """The table's series, as they are: timestamps may be irregular, values may be missing.

    Raises:
        UnusableInput: texts that are no timestamps, unknown ids. PayloadTooLarge: more series than MAX_SERIES.
    """
    check_names(table.names, len(table.names))
    if selection.zone is not None:
        check_zone(selection.zone)
    whole = Series(table.values, table.names, _stamps(table, selection), time_name=table.time_name)
    if table.ids is None:
        return [_until(_zoned(whole, None, selection), selection)]
    # Each on its own: where hours come twice, the order of a series' rows tells which is which.
    grouped = _grouped(whole, table.ids, selection)
    return [_until(_zoned(one, places, selection), selection) for one, places in grouped]


def check_size(variates: int, steps: int, most: int = MAX_STEPS) -> None:
    """PayloadTooLarge for more than any forecast can use."""
    if variates > MAX_VARIATES:
        raise PayloadTooLarge(f"{variates} variates; at most {MAX_VARIATES} are forecast together")
    if steps > most:
        raise PayloadTooLarge(f"{steps} steps; at most {most} are read, and the last are those that count")


def _counts(numbers: npt.NDArray[np.float64], ids: npt.NDArray[Any] | None) -> bool:
    if not (np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all()):
        return False
    increases = numbers[1:] > numbers[:-1]
    if ids is not None and not increases.all():
        series = np.unique(ids, return_inverse=True)[1]
        order = np.argsort(series, kind="stable")
        numbers, series = numbers[order], series[order]
        increases = (numbers[1:] > numbers[:-1]) | (series[1:] != series[:-1])
    return bool(increases.all())


def _asked(names: Sequence[str], name: str | None, field: str) -> int | None:
    if name is None:
        return None
    if name not in names:
        raise UnusableInput(f"there is no column {name[:40]!r}", field=field)
    return list(names).index(name)


def _stamps(table: Table, selection: Selection) -> pd.DatetimeIndex | None:
    if table.time is None:
        return None
    if not isinstance(table.time, np.ndarray):
        return table.time
    try:
        return parse_dates(table.time, selection.dates)
    except NotADate as found:
        shown = table.time[found.row]
        text = shown.decode("utf-8", "replace") if isinstance(shown, bytes) else str(shown)
        reason = found.reason or "is not an ISO 8601 timestamp"
        raise UnusableInput(
            f"column {table.time_name!r}, row {found.row + 1}: {text[:40]!r} {reason}", field=table.time_name
        ) from None


def _zoned(series: Series, places: list[tuple[int, int]] | None, selection: Selection) -> Series:
    """The series on the zone's clock; `places` are its rows in the file, all of them if None."""
    if series.timestamps is None or selection.zone is None:
        return series
    try:
        return replace(series, timestamps=in_zone(series.timestamps, selection.zone))
    except NotADate as found:
        row = found.row
        for start, end in places or ():
            if row < end - start:
                row += start
                break
            row -= end - start
        raise UnusableInput(
            f"column {series.time_name!r}, row {row + 1}: {str(series.timestamps[found.row])!r} {found.reason}",
            field=series.time_name,
        ) from None


def _grouped(whole: Series, ids: npt.NDArray[Any], selection: Selection) -> list[tuple[Series, list[tuple[int, int]]]]:
    """One series an id, in the order in which the ids first appear, and where its rows are: from, to."""
    starts = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    ends = np.append(starts[1:], len(ids))
    runs: dict[bytes, list[tuple[int, int]]] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        runs.setdefault(bytes(ids[start]), []).append((start, end))
    if b"" in runs:
        raise UnusableInput(f"the id of row {runs[b''][0][0] + 1} is empty", field="id")
    named = {key.decode("utf-8", "replace"): places for key, places in runs.items()}
    if selection.ids is not None:
        wanted = split_names(selection.ids, tuple(named))
        unknown = [name for name in wanted if name not in named]
        if unknown:
            raise UnusableInput(f"there is no series {unknown[0][:40]!r}", field="id")
        named = {name: named[name] for name in wanted}
    if len(named) > MAX_SERIES:
        raise PayloadTooLarge(f"{len(named)} series; at most {MAX_SERIES} are forecast together")
    return [(_rows(whole, places, name), places) for name, places in named.items()]


def _rows(whole: Series, places: list[tuple[int, int]], name: str) -> Series:
    if len(places) == 1:
        start, end = places[0]
        values = whole.values[:, start:end]
        stamps = None if whole.timestamps is None else whole.timestamps[start:end]
    else:
        rows = np.concatenate([np.arange(start, end) for start, end in places])
        values = whole.values[:, rows]
        stamps = None if whole.timestamps is None else whole.timestamps[rows]
    return Series(values, whole.names, stamps, time_name=whole.time_name, id=name)


def _until(series: Series, selection: Selection) -> Series:
    if selection.until is None:
        return series
    if series.timestamps is None:
        raise UnusableInput("until needs timestamps, and this has none", field="until")
    last = parse_date(selection.until, "until", selection.dates, selection.zone)[0]
    if (last.tz is None) is not (series.timestamps.tz is None):
        raise UnusableInput("until needs an offset from UTC exactly when the timestamps have one", field="until")
    keep = np.flatnonzero(np.asarray(series.timestamps <= last))
    if not keep.size:
        raise UnusableInput(f"no row is as early as {last}", field="until")
    end = int(keep[-1]) + 1
    return Series(
        series.values[:, :end], series.names, series.timestamps[:end], time_name=series.time_name, id=series.id
    )
