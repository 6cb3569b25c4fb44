"""From rows as they are to the regular steps that a model takes: what is wrong is named row by row, or filled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput
from app.readers import calendar
from app.readers.series import MAX_STEPS, Series

if TYPE_CHECKING:
    import pandas as pd
    from pandas.tseries.offsets import BaseOffset

Fill = Literal["ffill", "linear"]

MAX_NAMED = 10
"""Faults that a refusal names; the rest are counted."""

MAX_GAPS = 10_000
"""Places where left-out steps are filled; a file with more of them has another step."""


@dataclass(frozen=True)
class Report:
    """What became of the rows: `rows` sent, `used` steps kept, how many `faults` the rows before those have.

    filled_steps: steps that the file left out. filled_values: empty cells, those of left-out steps not counted.
    """

    rows: int
    used: int
    faults: int = 0
    filled_steps: int = 0
    filled_values: int = 0


def settle(
    series: Series, need: int, *, keep: int | None = None, frequency: str | None = None, fill: Fill | None = None
) -> tuple[Series, Report]:
    """The longest end of a series that is regular and complete, with what was done to it.

    A model looks at its last `need` steps alone, so faults before them do not matter and are counted only.

    Args:
        keep: most steps to keep; all of them if None.
        frequency: the step; the most frequent one if None.
        fill: how to fill left-out steps and empty cells: with the value before, or on a line between its neighbours.

    Raises:
        UnusableInput: fewer than `need` steps are usable. It names what is wrong with the rows that would be needed.
    """
    rows = series.values.shape[1]
    faults: npt.NDArray[np.intp] = np.empty(0, np.intp)
    offset = None
    values, stamps = series.values, series.timestamps
    first_row, filled_steps = 0, 0
    if stamps is not None and len(stamps):
        offset = _step(series, frequency)
        if offset is not None:
            faults = _faulty_rows(stamps, offset, fill)
        first_row = int(faults[-1]) if faults.size else 0
        values, stamps = values[:, first_row:], stamps[first_row:]
        if fill is not None and offset is not None:
            values, stamps = _with_left_out_steps(values, stamps, offset)
            filled_steps = values.shape[1] - (rows - first_row)
    elif frequency is not None:
        offset = calendar.parse_frequency(frequency)

    empty = np.isnan(values)
    if fill is not None:
        values = _filled(values, fill)
    usable = _usable_from(values)
    start = usable if keep is None else max(usable, values.shape[1] - keep)
    kept = values.shape[1] - start
    # An own fault of too few rows is the task's to tell; here only rows that are there and cannot be used.
    if kept < need and (faults.size or usable):
        _refuse(series, offset, faults, need, fill)
    elif kept == 0:
        raise UnusableInput("the series has no steps")
    absent = _left_out(series.timestamps, stamps, first_row) if filled_steps else np.zeros(values.shape[1], np.bool_)
    settled = replace(
        series,
        values=values[:, start:],
        timestamps=None if stamps is None else stamps[start:],
        frequency=series.frequency if offset is None else offset.freqstr,
    )
    filled_steps = int(absent[start:].sum())
    before = series.values[:, : rows - (kept - filled_steps)]
    report = Report(
        rows=rows,
        used=kept,
        faults=int(faults.size) + int((~np.isfinite(before)).any(axis=0).sum()),
        filled_steps=filled_steps,
        filled_values=int(empty[:, start:][:, ~absent[start:]].sum()),
    )
    return settled, report


def _step(series: Series, frequency: str | None) -> BaseOffset | None:
    import pandas as pd

    stamps = series.timestamps
    assert stamps is not None
    steps = np.diff(stamps.asi8)
    forward = steps > 0
    if len(stamps) > 1 and not forward.any() and frequency is None:
        if (steps < 0).all():
            fault = "the rows are newest first; a series is read from the oldest on"
        else:
            row = int((steps == 0).argmax()) + 1
            fault = f"row {row + 1}: {stamps[row]} repeats the row before, and no row is later than the one before it"
        raise UnusableInput(f"column {series.time_name!r}, {fault}", field=series.time_name)
    ordered = stamps if forward.all() else pd.DatetimeIndex(stamps.drop_duplicates().sort_values())
    offset = calendar.step_of(ordered, frequency)
    if offset is not None and not offset.is_on_offset(stamps[-1]):
        raise UnusableInput(
            f"column {series.time_name!r}, row {len(stamps)}: {stamps[-1]} is not on {offset.freqstr!r}",
            field=series.time_name,
        )
    return offset


def _faulty_rows(stamps: pd.DatetimeIndex, offset: BaseOffset, fill: Fill | None) -> npt.NDArray[np.intp]:
    """Rows (from 0, ascending) that do not continue the row before them; when gaps are filled, up to the last of them
    that is no mere gap."""
    rows = np.flatnonzero(~calendar.follows(stamps, offset)) + 1
    if fill is None:
        return rows
    for count, at in enumerate(rows[::-1]):
        if count == MAX_GAPS:
            raise UnusableInput(
                f"more than {MAX_GAPS} places with missing steps; is the frequency right?", field="fill"
            )
        last, this = stamps[at - 1], stamps[at]
        missing = _missing_between(last, this, offset) if this > last else None
        if missing is None or missing > MAX_STEPS:
            return rows[: len(rows) - count]
    return rows[:0]


def _describe(last: pd.Timestamp, this: pd.Timestamp, offset: BaseOffset) -> str:
    if this == last:
        return f"{this} repeats the row before"
    if this < last:
        return f"{this} is earlier than the row before"
    missing = _missing_between(last, this, offset)
    if missing is None:
        return f"{this} does not follow {last} by the step {offset.freqstr!r}"
    steps = "one step" if missing == 1 else f"{missing} steps"
    return f"{steps} of {offset.freqstr!r} missing before {this}"


def _missing_between(last: pd.Timestamp, this: pd.Timestamp, offset: BaseOffset) -> int | None:
    """Steps left out between two stamps; None where no number of steps leads from one to the other."""
    import pandas as pd

    if isinstance(offset, pd.tseries.offsets.Tick):
        steps, rest = divmod(this - last, pd.Timedelta(offset))
        return None if rest else int(steps) - 1
    between = pd.date_range(last, this, freq=offset)
    return len(between) - 2 if len(between) and between[0] == last and between[-1] == this else None


def _with_left_out_steps(
    values: npt.NDArray[np.float64], stamps: pd.DatetimeIndex, offset: BaseOffset
) -> tuple[npt.NDArray[np.float64], pd.DatetimeIndex]:
    import pandas as pd

    if calendar.follows(stamps, offset).all():
        return values, stamps
    whole = pd.date_range(stamps[0], stamps[-1], freq=offset)
    if len(whole) > 2 * MAX_STEPS:
        raise UnusableInput(f"{len(whole) - len(stamps)} steps are missing, more than are filled", field="fill")
    spread = np.full((len(values), len(whole)), np.nan)
    spread[:, whole.get_indexer(stamps)] = values
    return spread, whole


def _left_out(sent: pd.DatetimeIndex | None, stamps: pd.DatetimeIndex | None, first_row: int) -> npt.NDArray[np.bool_]:
    assert sent is not None
    assert stamps is not None
    return np.asarray(~stamps.isin(sent[first_row:]))


def _filled(values: npt.NDArray[np.float64], fill: Fill) -> npt.NDArray[np.float64]:
    """Every empty cell that has what it takes: a value before it, and for a line one behind it."""
    empty = np.isnan(values)
    if not empty.any():
        return values
    filled = values.copy()
    steps = np.arange(values.shape[1])
    for row in np.flatnonzero(empty.any(axis=1)):
        known = np.flatnonzero(~empty[row])
        if not known.size:
            continue
        if fill == "ffill":
            before = np.maximum.accumulate(np.where(empty[row], -1, steps))
            filled[row] = np.where(before < 0, np.nan, values[row, before])
        else:
            inside = slice(int(known[0]), int(known[-1]) + 1)
            filled[row, inside] = np.interp(steps[inside], known, values[row, known])
    return filled


def _usable_from(values: npt.NDArray[np.float64]) -> int:
    """The step from which on every value is a finite number."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
    return int(bad[-1]) + 1 if bad.size else 0


def _refuse(
    series: Series, offset: BaseOffset | None, faults: npt.NDArray[np.intp], need: int, fill: Fill | None
) -> None:
    """Name the faults of the last `need` rows, in the order of the file."""
    rows = series.values.shape[1]
    first = max(0, rows - need)
    wrong = faults[faults > first]
    bad = ~np.isfinite(series.values[:, first:])
    steps, variates = np.nonzero(bad.T)
    places = sorted(
        [(row, -1) for row in wrong.tolist()[:MAX_NAMED]]
        + [
            (first + step, variate)
            for step, variate in zip(steps.tolist()[:MAX_NAMED], variates.tolist(), strict=False)
        ]
    )
    named: list[str] = []
    for row, variate in places[:MAX_NAMED]:
        if variate < 0:
            assert series.timestamps is not None
            assert offset is not None
            name, what = series.time_name, _describe(series.timestamps[row - 1], series.timestamps[row], offset)
        else:
            name = series.names[variate]
            missing = np.isnan(series.values[variate, row])
            what = "the value is missing or NaN" if missing else "the value is infinite"
        named.append(f"column {name!r}, row {row + 1}: {what}")
    text = "; ".join(named)
    rest = len(wrong) + len(steps) - len(named)
    if rest:
        text += f"; and {rest} more"
    if fill is not None and len(steps):
        text += f" (nothing to fill them from with {fill})"
    field = series.time_name if places[0][1] < 0 else series.names[places[0][1]]
    raise UnusableInput(text, field=field)
