"""Texts to timestamps: ISO 8601 and the common written forms, day or month first, with a time zone or without.

pandas is imported when the first timestamp arrives: a service that has seen none does not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput

if TYPE_CHECKING:
    import pandas as pd

DateOrder = Literal["dmy", "mdy"]

SLICE = 1 << 16
"""Texts that become Python strings at a time."""

LONGEST = 64
"""Characters of a timestamp beside the data or of a header's name that may be one: some fifty forms are tried."""

_DAY_AND_MONTH = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{4}(?!\d)")
_OFFSET_AT_END = re.compile(r"[T ]\d{1,2}.*(?:[zZ]|[+-]\d{2}(?::?\d{2})?)$")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", "T%H:%M", "T%H:%M:%S", " %H:%M:%S%z")
_YEAR_FIRST = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d")
_NAMED_MONTH = ("%d %b %Y", "%d-%b-%Y", "%d %B %Y", "%b %d %Y", "%b %d, %Y", "%B %d, %Y")


class NotADate(Exception):
    """`row`, counted from 0, holds no timestamp; `reason` where there is more to say than that."""

    def __init__(self, row: int, reason: str | None = None) -> None:
        super().__init__(row, reason)
        self.row, self.reason = row, reason


def parse_dates(
    texts: Sequence[str] | npt.NDArray[Any], order: DateOrder | None = None, zone: str | None = None
) -> pd.DatetimeIndex:
    """Timestamps of texts (or of an array of UTF-8 bytes), all of one form.

    Day-first and month-first dates are told apart where a number over 12 does so. Offsets that differ, as over daylight
    saving, become UTC, or `zone`: an IANA name, in which texts without an offset are wall-clock times.

    Raises:
        NotADate: the first text that is no timestamp.
        UnusableInput: day and month cannot be told apart, an unknown zone.
    """
    if zone is not None:
        check_zone(zone)
    return in_zone(_parse(texts, order), zone)


def parse_date(text: str, field: str, order: DateOrder | None = None, zone: str | None = None) -> pd.DatetimeIndex:
    """The one timestamp that a request gives as its part `field`, beside the data.

    Raises:
        UnusableInput: it is none, or what `parse_dates` says.
    """
    if len(text) > LONGEST:
        raise UnusableInput(
            f"{field} {text[:40]!r}.. has {len(text)} characters; a timestamp has at most {LONGEST}", field=field
        )
    try:
        return parse_dates([text], order, zone)
    except NotADate as found:
        fault = found.reason or "is not an ISO 8601 timestamp"
        raise UnusableInput(f"{field} {text[:40]!r} {fault}", field=field) from None


def is_date(text: str) -> bool:
    """Whether a text alone reads as a timestamp of any known form."""
    if len(text) > LONGEST:
        return False
    try:
        _parse([text], None)
    except NotADate:
        return False
    except UnusableInput:  # one of two days, but a date
        return True
    return True


def _parse(texts: Sequence[str] | npt.NDArray[Any], order: DateOrder | None) -> pd.DatetimeIndex:
    first = str(next(_slices(texts))[0]) if len(texts) else ""
    if _DAY_AND_MONTH.match(first):
        return _parse_day_and_month(texts, first, order)
    bad = -1
    for date_format in ("ISO8601", *(f"{date}{time}" for date in (*_YEAR_FIRST, *_NAMED_MONTH) for time in _TIMES)):
        if date_format == "ISO8601" or _fits(first, date_format):
            try:
                return _convert(texts, date_format)
            except NotADate as found:
                if found.reason:
                    raise
                bad = max(bad, found.row)
    raise NotADate(bad)


def _parse_day_and_month(
    texts: Sequence[str] | npt.NDArray[Any], first: str, order: DateOrder | None
) -> pd.DatetimeIndex:
    match = _DAY_AND_MONTH.match(first)
    assert match is not None
    mark = match[1]
    read: dict[DateOrder, pd.DatetimeIndex] = {}
    bad = -1
    dates: dict[DateOrder, str] = {"dmy": f"%d{mark}%m{mark}%Y", "mdy": f"%m{mark}%d{mark}%Y"}
    for one, date in dates.items():
        time = next((time for time in _TIMES if _fits(first, date + time)), None)
        if time is None or order not in (None, one):
            continue
        try:
            read[one] = _convert(texts, date + time)
        except NotADate as found:
            bad = max(bad, found.row)
    if not read:
        raise NotADate(max(bad, 0))
    if len(read) == 2 and not read["dmy"].equals(read["mdy"]):
        raise UnusableInput(
            f"dates like {first[:20]!r}: nothing tells the day from the month; say dates=dmy or dates=mdy",
            field="dates",
        )
    return next(iter(read.values()))


def _convert(texts: Sequence[str] | npt.NDArray[Any], date_format: str) -> pd.DatetimeIndex:
    import pandas as pd

    parts: list[pd.DatetimeIndex] = []
    at, differ = 0, False
    for part in _slices(texts):
        try:
            index = pd.DatetimeIndex(pd.to_datetime(part, format=date_format, errors="coerce"))
        except ValueError:  # offsets that differ: UTC is the one zone that holds them all
            index, differ = pd.DatetimeIndex(pd.to_datetime(part, format=date_format, errors="coerce", utc=True)), True
        missing = np.asarray(index.isna())
        # pandas takes "now" and "today" for dates of any form.
        missing |= np.char.isalpha(np.asarray(part, np.str_))
        if missing.any():
            raise NotADate(at + int(missing.argmax()))
        if index.tz is not None:
            _check_offsets(part, at)
        if parts and (index.tz is None) is not (parts[0].tz is None):
            raise NotADate(at, "some have an offset from UTC and others none")
        parts.append(index)
        at += len(part)
    if not parts:
        return pd.DatetimeIndex([])
    if differ or len({str(part.tz) for part in parts}) > 1:
        parts = [part.tz_convert("UTC") for part in parts]
    return pd.DatetimeIndex(parts[0].append(parts[1:]))


def _slices(texts: Sequence[str] | npt.NDArray[Any]) -> Iterator[Any]:
    """Parts of at most SLICE texts, as lists or arrays of strings, without the blanks around each."""
    for start in range(0, len(texts), SLICE):
        part = texts[start : start + SLICE]
        if isinstance(part, np.ndarray) and part.dtype.kind == "S":
            try:
                part = part.astype(np.str_)
            except UnicodeDecodeError:
                part = np.char.decode(part, "utf-8", "replace")
        yield np.char.strip(part) if isinstance(part, np.ndarray) else [text.strip() for text in part]


def _fits(text: str, date_format: str) -> bool:
    import pandas as pd

    try:
        return not pd.isna(pd.to_datetime(text, format=date_format, errors="coerce"))
    except ValueError:
        return False


def _check_offsets(part: Sequence[str] | npt.NDArray[Any], at: int) -> None:
    """With offsets on some texts and not on others, nothing says what the others mean."""
    with_offset = [_OFFSET_AT_END.search(str(text)) is not None for text in part]
    if not all(with_offset):
        raise NotADate(at + with_offset.index(False), "some have an offset from UTC and others none")


def check_zone(zone: str) -> None:
    """UnusableInput for what is no IANA name."""
    try:
        ZoneInfo(zone)
    except (ValueError, OSError, LookupError) as exc:
        raise UnusableInput(f"unknown time zone {zone[:40]!r}; one like Europe/Berlin", field="tz") from exc


def in_zone(stamps: pd.DatetimeIndex, zone: str | None) -> pd.DatetimeIndex:
    """Stamps of one series in a zone; those without an offset are its clock's, and their order tells which of two
    equal hours each is in.

    Raises:
        NotADate: one in an hour that is skipped, or that comes twice with nothing to tell which.
    """
    if zone is None:
        return stamps
    if stamps.tz is not None:
        return stamps.tz_convert(zone)
    try:
        return stamps.tz_localize(zone, ambiguous="infer")
    except ValueError:
        missing = np.asarray(stamps.tz_localize(zone, ambiguous="NaT", nonexistent="NaT").isna())
        raise NotADate(
            int(missing.argmax()), f"it falls into the change of the clocks in {zone}; give its offset from UTC"
        ) from None
