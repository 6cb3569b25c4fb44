"""The frequency that timestamps follow, by pandas' calendar: months, quarters and daylight saving included."""

from __future__ import annotations

import re
from datetime import tzinfo
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput
from app.readers.dates import parse_date

if TYPE_CHECKING:
    import pandas as pd
    from pandas.tseries.offsets import BaseOffset

_ALIASES = {"second": "s", "S": "s", "minute": "min", "T": "min", "hour": "h", "H": "h", "day": "D"}
_ANCHORED = {"week": "W", "month": "M", "quarter": "Q", "year": "Y", "W": "W", "M": "M", "Q": "Q", "Y": "Y"}
_OFFSET = re.compile(r"([1-9][0-9]{0,5})?(ns|us|ms|s|min|h|D|B|W-[A-Z]{3}|[MQY][SE]|[QY][SE]-[A-Z]{3})")
_DAY = np.timedelta64(1, "D")
LAST_YEAR = 9999
"""ISO 8601 has no later year without prior agreement."""


def parse_frequency(name: str, first: pd.Timestamp | None = None) -> BaseOffset:
    """A sampling step from a pandas alias ("h", "10min", "MS") or a KServe name ("hour" or "H", "month" or "M").

    KServe's week, month, quarter and year do not say on which day they fall: `first`, the first timestamp, does.

    Raises:
        UnusableInput: an unknown name, or one that `first` contradicts.
    """
    from pandas.tseries.frequencies import to_offset

    alias = _ALIASES.get(name, name)
    if name in _ANCHORED:
        anchored = _anchored(_ANCHORED[name], 1, first)
        if anchored is None:
            raise UnusableInput(
                f"frequency {name!r}: {first} is neither the first nor the last day of a month", field="freq"
            )
        alias = anchored
    try:
        if _OFFSET.fullmatch(alias) is None:
            raise ValueError
        offset = to_offset(alias)
    except (ValueError, KeyError, OverflowError) as exc:
        raise UnusableInput(
            f"frequency {name[:40]!r} is not one like s, 10min, h, D, W-MON, MS, QE", field="freq"
        ) from exc
    return offset


def same_step(one: str, other: str) -> bool:
    """Whether two names of frequencies mean one step, as 60min and h do; an unknown name means no other."""
    try:
        return one == other or parse_frequency(one) == parse_frequency(other)
    except UnusableInput:
        return False


def step_of(stamps: pd.DatetimeIndex, frequency: str | None) -> BaseOffset | None:
    """The step of ordered stamps: the one given, or else the most frequent one; None for one stamp alone.

    Weeks, months, quarters and years fall where the last stamp does: the first ones may be astray.

    Raises:
        UnusableInput: an unknown frequency, or one that the last stamp contradicts.
    """
    if frequency is not None:
        return parse_frequency(frequency, stamps[-1])
    return _most_frequent(stamps) if len(stamps) > 1 else None


def follows(stamps: pd.DatetimeIndex, offset: BaseOffset) -> npt.NDArray[np.bool_]:
    """Whether each stamp but the first is one step after the one before it, and that one on the step itself.

    Raises:
        UnusableInput: a step leaves the calendar.
    """
    clock = step_clock(stamps, offset)
    try:
        ahead = clock[:-1] + offset
        # A step from between the steps leads onto them: Saturday to Monday is no business day.
        return np.asarray((ahead == clock[1:]) & (ahead - offset == clock[:-1]))
    except (ValueError, OverflowError) as exc:
        raise UnusableInput(f"steps of {offset.freqstr!r} leave the calendar") from exc


def step_clock(stamps: pd.DatetimeIndex, offset: BaseOffset) -> pd.DatetimeIndex:
    """The stamps on the clock that a step counts on: for days and longer the zone's wall clock, else true time.

    Where the zone skips the usual time of day, a stamp right after the skip counts as that time.
    """
    import pandas as pd

    if stamps.tz is None or _is_fixed(offset):
        return stamps
    walls = stamps.tz_localize(None)
    days = walls.normalize()
    times, counts = np.unique((walls - days).to_numpy(), return_counts=True)
    usual = days + times[counts.argmax()]
    return pd.DatetimeIndex(walls.where(np.asarray(_localised(usual, stamps.tz) != stamps), usual))


def steps_between(first: pd.Timestamp, last: pd.Timestamp, offset: BaseOffset) -> int | None:
    """Steps from one time to a later one, both of a `step_clock`; None where no number of steps leads there."""
    import pandas as pd

    offsets = pd.tseries.offsets
    if isinstance(offset, offsets.BusinessDay):
        on_steps = offset.is_on_offset(first) and offset.is_on_offset(last)
        if first - first.normalize() != last - last.normalize() or not on_steps:
            return None
        steps, rest = divmod(int(np.busday_count(str(first.date()), str(last.date()))), offset.n)
        return None if rest else steps
    if _is_fixed(offset) or isinstance(offset, offsets.Day | offsets.Week):
        days = {offsets.Day: 1, offsets.Week: 7}.get(type(offset))
        length = pd.Timedelta(nanoseconds=offset.nanos) if days is None else pd.Timedelta(days=days * offset.n)
        steps, left = divmod(last - first, length)
        return None if left or not offset.is_on_offset(first) else int(steps)
    if first - first.normalize() != last - last.normalize():
        return None
    if not (offset.is_on_offset(first) and offset.is_on_offset(last)):
        return None
    steps, rest = divmod(12 * (last.year - first.year) + last.month - first.month, _months(offset))
    return None if rest else steps


def stamps_from(start: str, offset_name: str, count: int) -> tuple[pd.DatetimeIndex, BaseOffset]:
    """`count` timestamps from `start` on.

    Raises:
        UnusableInput: `start` is no timestamp, is off the step, or the last would be past year 9999.
    """
    stamps = parse_date(start, "start")
    offset = parse_frequency(offset_name, stamps[0])
    if not offset.is_on_offset(stamps[0]):
        raise UnusableInput(f"start {stamps[0]} is not on {offset.freqstr!r}", field="start")
    clock = step_clock(stamps[:1], offset)
    whole = _zoned(_steps(clock[0], offset, count), stamps)
    return whole if not count or whole[0] == stamps[0] else follow(stamps[:1], whole[1:]), offset


def stamps_after(stamps: pd.DatetimeIndex, frequency: str, count: int) -> pd.DatetimeIndex:
    """The `count` timestamps that follow the last of regular ones.

    Raises:
        UnusableInput: they would pass year 9999.
    """
    offset = parse_frequency(frequency, stamps[-1])
    last = step_clock(stamps, offset)[-1]
    return _zoned(_steps(last, offset, count + 1)[1:], stamps)


def stamps_until(stamps: pd.DatetimeIndex, offset: BaseOffset, count: int) -> pd.DatetimeIndex:
    """The `count` timestamps that end with the last of some, which may leave steps out."""
    clock = step_clock(stamps, offset)
    return _zoned(_range(clock[-1], offset, count, until=True), stamps)


def follow(first: pd.DatetimeIndex, second: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Both, one after the other."""
    import pandas as pd

    return pd.DatetimeIndex(first.append(second))


def isoformat(stamps: pd.DatetimeIndex) -> list[str]:
    """The timestamps in ISO 8601, with their offset from UTC where they have one."""
    whole_seconds = stamps.tz is None and stamps.equals(stamps.floor("s"))
    if whole_seconds:  # what isoformat writes, for all of them at once
        texts: list[str] = np.datetime_as_string(stamps.to_numpy(), unit="s").tolist()
        return texts
    return [stamp.isoformat() for stamp in stamps]


def _steps(first: pd.Timestamp, offset: BaseOffset, count: int) -> pd.DatetimeIndex:
    try:
        stamps = _range(first, offset, count)
    except (ValueError, OverflowError) as exc:
        raise UnusableInput(f"{count} steps of {offset.freqstr!r} from {first} leave the calendar") from exc
    if count and stamps[-1].year > LAST_YEAR:
        raise UnusableInput(f"{count} steps of {offset.freqstr!r} from {first} pass year {LAST_YEAR}")
    return stamps


def _range(known: pd.Timestamp, offset: BaseOffset, count: int, *, until: bool = False) -> pd.DatetimeIndex:
    """`count` times from one that is on the step and of a `step_clock`, or until it.

    pandas' own date_range walks weeks, business days and months one by one.

    Raises:
        ValueError, OverflowError: they leave the calendar.
    """
    import pandas as pd

    offsets = pd.tseries.offsets
    if _is_fixed(offset) or isinstance(offset, offsets.Day):
        if until:
            return pd.date_range(end=known, periods=count, freq=offset)
        return pd.date_range(known, periods=count, freq=offset)
    steps = np.arange(count) - (count - 1 if until else 0)
    day = np.datetime64(known.date(), "D")
    if isinstance(offset, offsets.Week):
        days = day + 7 * offset.n * steps
    elif isinstance(offset, offsets.BusinessDay):
        days = np.busday_offset(day, offset.n * steps)
    else:
        months = day.astype("M8[M]") + _months(offset) * steps
        days = months.astype("M8[D]") if known.day == 1 else (months + 1).astype("M8[D]") - 1
    return pd.DatetimeIndex(days.astype("M8[s]")).as_unit(known.unit) + (known - known.normalize())


def _months(offset: BaseOffset) -> int:
    """Months in a step of months, quarters or years."""
    return int({"M": 1, "Q": 3, "Y": 12}[offset.rule_code[0]] * offset.n)


def _is_fixed(offset: BaseOffset) -> bool:
    """Whether the step always takes the same time: an hour does, a day with a change of the clocks does not."""
    import pandas as pd

    return isinstance(offset, pd.tseries.offsets.Tick)


def _zoned(clock: pd.DatetimeIndex, stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Times of a `step_clock` in the zone of the stamps that it was made of."""
    return clock if stamps.tz is None or clock.tz is not None else _localised(clock, stamps.tz)


def _localised(walls: pd.DatetimeIndex, zone: tzinfo) -> pd.DatetimeIndex:
    """Wall-clock times in a zone: one that it skips is the first after, and of two the first counts."""
    return walls.tz_localize(zone, nonexistent="shift_forward", ambiguous=np.ones(len(walls), np.bool_))


def _most_frequent(stamps: pd.DatetimeIndex) -> BaseOffset:
    """The modal step, or the calendar step of about that length that explains more of the rows."""
    import pandas as pd

    steps, counts = np.unique((stamps[1:] - stamps[:-1]).to_numpy(), return_counts=True)
    step = steps[counts.argmax()]
    if step % _DAY:
        return pd.tseries.frequencies.to_offset(pd.Timedelta(step))
    days = int(step // _DAY)
    candidates = [f"{days}D"]
    if days == 1:
        candidates = ["D", "B"]
    elif days % 7 == 0:
        candidates = [_anchored("W", days // 7, stamps[-1]) or ""]
    if days >= 28:
        months = max(1, round(days / 30.4375))
        unit, multiple = ("Y", months // 12) if months % 12 == 0 else ("M", months)
        if months == 3:
            unit, multiple = "Q", 1
        # Before the days: where as many rows speak for both, as 2021 to 2024 do, it is the calendar.
        candidates.insert(0, _anchored(unit, multiple, stamps[-1]) or candidates[0])
    offsets = [pd.tseries.frequencies.to_offset(alias) for alias in candidates]
    return max(offsets, key=lambda offset: int(follows(stamps, offset).sum()))


def _anchored(unit: str, multiple: int, first: pd.Timestamp | None) -> str | None:
    """Alias of a week, month, quarter or year that falls where `first` does; None where no alias says that."""
    count = "" if multiple == 1 else str(multiple)
    if first is None:
        return f"{count}{unit}-SUN" if unit == "W" else f"{count}{unit}E"
    if unit == "W":
        return f"{count}W-{first.day_name()[:3].upper()}"
    if first.day != 1 and not first.is_month_end:
        return None
    edge = "S" if first.day == 1 else "E"
    return f"{count}M{edge}" if unit == "M" else f"{count}{unit}{edge}-{first.month_name()[:3].upper()}"
