"""From rows as they are to the regular steps that a model takes: what is wrong is named row by row, or filled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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


FEWEST_ROWS = 10
"""Rows that tell the step, however few the model needs."""

FILLED_NUMBERS = 1 << 21
"""Numbers of a series whose left-out steps are all filled; one that was sent may be more."""


@dataclass(frozen=True)
class Report:
    """What became of the rows: `rows` sent, `used` steps kept, how many `faults` the rows before those have.

    filled_steps: steps that the file left out. filled_values: empty cells, those of left-out steps not counted. filled:
    (variates, used), true where the value was filled; None where none was.
    """

    rows: int
    used: int
    faults: int = 0
    filled_steps: int = 0
    filled_values: int = 0
    filled: npt.NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)

    def counts(self) -> dict[str, int]:
        """What answers say of it."""
        return {
            "rows": self.rows,
            "used": self.used,
            "faults": self.faults,
            "filled_steps": self.filled_steps,
            "filled_values": self.filled_values,
        }


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
    steps = np.arange(rows)
    offset = None
    stamps = series.timestamps
    if stamps is not None and len(stamps):
        offset = _step(series, frequency, need)
        if offset is not None:
            faults, steps = _placed(stamps, offset, fill)
            stamps = stamps[rows - len(steps) :]
    elif frequency is not None:
        offset = calendar.parse_frequency(frequency)

    values = series.values[:, rows - len(steps) :]
    total = int(steps[-1]) + 1 if len(steps) else 0
    begin = 0 if keep is None else max(0, total - keep)
    if total > max(2 * rows, FILLED_NUMBERS // len(values)) and keep is None:
        raise UnusableInput(f"{total - len(steps)} steps are missing, more than are filled", field="fill")
    known = steps >= begin
    places = steps[known] - begin
    left_out = np.ones(total - begin, np.bool_)
    left_out[places] = False
    if left_out.any():
        assert stamps is not None
        assert offset is not None
        sent, stamps = stamps[known], calendar.stamps_until(stamps, offset, total - begin)
        # A time that comes twice is the one that was sent.
        stamps = stamps.where(left_out, sent[np.cumsum(~left_out).clip(1) - 1])
    elif stamps is not None:
        stamps = stamps[-len(places) :]
    empty = np.isnan(_spread(values[:, known], places, total - begin))
    values = values[:, begin:] if fill is None else _filled(values, steps, begin, fill)
    usable = _usable_from(values)
    kept = values.shape[1] - usable
    # An own fault of too few rows is the task's to tell; here only rows that are there and cannot be used.
    if kept < need and (faults.size or usable):
        _refuse(series, offset, faults, need, fill)
    elif kept == 0:
        raise UnusableInput("the series has no steps")
    settled = replace(
        series,
        values=values[:, usable:],
        timestamps=None if stamps is None else stamps[usable:],
        frequency=series.frequency if offset is None else offset.freqstr,
    )
    filled_steps = int(left_out[usable:].sum())
    before = series.values[:, : rows - (kept - filled_steps)]
    report = Report(
        rows=rows,
        used=kept,
        faults=int(faults.size) + int((~np.isfinite(before)).any(axis=0).sum()),
        filled_steps=filled_steps,
        filled_values=int(empty[:, usable:][:, ~left_out[usable:]].sum()),
        filled=empty[:, usable:] if empty[:, usable:].any() else None,
    )
    return settled, report


def _step(series: Series, frequency: str | None, need: int) -> BaseOffset | None:
    """The step of the last rows, those that a model looks at: what the rows before them follow does not matter."""
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
    last = stamps[-max(need, FEWEST_ROWS) :]
    ordered = last if forward.all() else pd.DatetimeIndex(last.drop_duplicates().sort_values())
    offset = calendar.step_of(ordered, frequency)
    if offset is not None and not offset.is_on_offset(stamps[-1]):
        raise UnusableInput(
            f"column {series.time_name!r}, row {len(stamps)}: {stamps[-1]} is not on {offset.freqstr!r}",
            field=series.time_name,
        )
    return offset


def _placed(
    stamps: pd.DatetimeIndex, offset: BaseOffset, fill: Fill | None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows (from 0, ascending) that do not continue the row before them, and the steps, from 0, at which the rows from
    the last of them on lie. When gaps are filled, they are no faults, but lead over what they leave out."""
    rows = np.flatnonzero(~calendar.follows(stamps, offset)) + 1
    if fill is None:
        return rows, np.arange(len(stamps) - int(rows[-1]) if rows.size else len(stamps))
    clock = calendar.step_clock(stamps, offset)
    advance = np.ones(len(stamps), np.intp)
    whole = len(stamps)
    for count, at in enumerate(rows[::-1]):
        if count == MAX_GAPS:
            raise UnusableInput(
                f"more than {MAX_GAPS} places with missing steps; is the frequency right?", field="fill"
            )
        steps = calendar.steps_between(clock[at - 1], clock[at], offset) if clock[at] > clock[at - 1] else None
        if steps is None or steps > MAX_STEPS:
            faults = rows[: len(rows) - count]
            return faults, np.cumsum(advance[at:]) - 1
        advance[at] = steps
        whole += steps - 1
        if whole > 2 * MAX_STEPS:
            raise UnusableInput(
                f"more than {MAX_STEPS} steps of {offset.freqstr!r} are missing; is the frequency right?", field="fill"
            )
    return rows[:0], np.cumsum(advance) - 1


def _describe(last: pd.Timestamp, this: pd.Timestamp, offset: BaseOffset) -> str:
    if this == last:
        return f"{this} repeats the row before"
    if this < last:
        return f"{this} is earlier than the row before"
    steps = calendar.steps_between(last, this, offset)
    if steps is None:
        return f"{this} does not follow {last} by the step {offset.freqstr!r}"
    missing = "one step" if steps == 2 else f"{steps - 1} steps"
    return f"{missing} of {offset.freqstr!r} missing before {this}"


def _spread(values: npt.NDArray[np.float64], places: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.float64]:
    """Columns put at their places among `count`; the others are NaN."""
    if len(places) == count:
        return values
    spread = np.full((len(values), count), np.nan)
    spread[:, places] = values
    return spread


def _filled(
    values: npt.NDArray[np.float64], steps: npt.NDArray[np.intp], begin: int, fill: Fill
) -> npt.NDArray[np.float64]:
    """The steps from `begin` on, with every empty cell that has what it takes: a value before it, and for a line one
    behind it. `values` lie at `steps`, and those before `begin` are looked at, but not spread out."""
    inside = steps >= begin
    count = int(steps[-1]) + 1 - begin if len(steps) else 0
    spread = _spread(values[:, inside], steps[inside] - begin, count)
    empty = np.isnan(spread)
    if not empty.any():
        return spread
    filled = spread.copy()
    for row in np.flatnonzero(empty.any(axis=1)):
        known = np.flatnonzero(~np.isnan(values[row]))
        if not known.size:
            continue
        wanted = np.flatnonzero(empty[row]) + begin
        behind = count + begin if fill == "ffill" else steps[known[-1]]
        wanted = wanted[(wanted > steps[known[0]]) & (wanted < behind)]
        if fill == "ffill":
            filled[row, wanted - begin] = values[row, known[np.searchsorted(steps[known], wanted) - 1]]
        else:
            filled[row, wanted - begin] = np.interp(wanted, steps[known], values[row, known])
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
    clock = None if offset is None or series.timestamps is None else calendar.step_clock(series.timestamps, offset)
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
            assert clock is not None
            assert offset is not None
            name, what = series.time_name, _describe(clock[row - 1], clock[row], offset)
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
