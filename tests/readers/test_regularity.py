"""Irregular rows are named, filled on request, and do not matter where no model looks."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import UnusableInput
from app.readers.regularity import Report, settle
from app.readers.series import Series

DAYS = pd.date_range("2020-01-01", periods=30)


def series(stamps: Any, values: Any = None) -> Series:
    index = pd.DatetimeIndex(stamps)
    rows = np.arange(1.0, len(index) + 1) if values is None else np.asarray(values, np.float64)
    return Series(np.atleast_2d(rows), tuple("abc"[: len(np.atleast_2d(rows))]), index, time_name="when")


def test_what_is_regular_stays_as_it_is() -> None:
    settled, report = settle(series(DAYS), 30)
    assert settled.values.tolist() == [list(range(1, 31))]
    assert settled.frequency == "D"
    assert report == Report(rows=30, used=30)
    settled, report = settle(series(DAYS), 5, keep=7)
    assert settled.values.tolist() == [list(range(24, 31))]
    assert settled.timestamps is not None
    assert settled.timestamps.equals(DAYS[23:])
    assert report == Report(rows=30, used=7)


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        (DAYS[[0, 1, 1, 2]], "row 3: 2020-01-02 00:00:00 repeats the row before"),
        (DAYS[[0, 1, 3, 2, 3, 4]], "row 3: one step of 'D' missing.*; .*row 4: 2020-01-03 .* is earlier"),
        (DAYS[[0, 1, 5, 6, 7]], "row 3: 3 steps of 'D' missing before 2020-01-06"),
        ([*DAYS[:3], "2020-01-03T12:00", *DAYS[3:6]], "row 4: .*12:00:00 does not follow .* by the step 'D'"),
        (["2020-01-01", "2020-02-01", "2020-04-01", "2020-05-01", "2020-06-01"], "row 3: one step of 'MS' missing"),
        (DAYS[::-1], "newest first"),
        (DAYS[[3, 3, 3]], "row 2: 2020-01-04 00:00:00 repeats"),
    ],
)
def test_faults_of_the_steps_are_named(stamps: Any, message: str) -> None:
    with pytest.raises(UnusableInput, match=message) as caught:
        settle(series(stamps), 6)
    assert caught.value.field == "when"


def test_ten_faults_are_named_and_the_others_counted() -> None:
    values = np.ones((2, 30))
    values[0, 3:20] = np.nan
    values[1, 5] = np.inf
    with pytest.raises(UnusableInput) as caught:
        settle(series(DAYS.delete([1, 2]).insert(28, DAYS[-1]).insert(29, DAYS[-1]), values), 30)
    text = caught.value.message
    assert text.startswith(
        "column 'when', row 2: 2 steps of 'D' missing before 2020-01-04 00:00:00; column 'a', row 4:"
    )
    assert "column 'b', row 6: the value is infinite" in text
    assert text.count("row ") - text.count("the row before") == 10
    assert text.endswith("and 11 more")  # 1 + 17 + 1 + 2 in all


def test_faults_before_the_steps_that_are_needed_do_not_matter() -> None:
    stamps = DAYS[[0, 1, 1, 3, *range(4, 30)]]
    values = np.arange(30.0)
    values[6] = np.nan
    settled, report = settle(series(stamps, values), 20)
    assert settled.values.tolist() == [list(range(7, 30))]
    assert report == Report(rows=30, used=23, faults=3)
    with pytest.raises(UnusableInput, match="row 7: the value is missing"):
        settle(series(stamps, values), 24)


def test_filling() -> None:
    stamps, values = DAYS[[5, 6, 7, 10, 11, 12]], [1, np.nan, 3, 9, np.nan, 11]
    settled, report = settle(series(stamps, values), 8, fill="linear")
    assert settled.values.tolist() == [[1, 2, 3, 5, 7, 9, 10, 11]]
    assert settled.timestamps is not None
    assert settled.timestamps.equals(DAYS[5:13])
    assert report == Report(rows=6, used=8, filled_steps=2, filled_values=2)
    settled, _ = settle(series(stamps, values), 8, fill="ffill")
    assert settled.values.tolist() == [[1, 1, 3, 3, 3, 9, 9, 11]]
    # Of the filled cells, only those among the kept steps are told.
    assert settle(series(stamps, values), 3, keep=3, fill="ffill")[1] == Report(6, 3, faults=1, filled_values=1)


@pytest.mark.parametrize(("fill", "values"), [("ffill", [np.nan, 2, 3]), ("linear", [1, 2, np.nan])])
def test_what_nothing_can_fill(fill: Any, values: list[float]) -> None:
    with pytest.raises(UnusableInput, match=f"nothing to fill them from with {fill}"):
        settle(series(DAYS[:3], values), 3, fill=fill)


def test_filling_repairs_no_repeated_or_unordered_rows() -> None:
    for rows in ([0, 1, 1, 2, 3], [0, 2, 1, 3, 4, 5, 6]):
        with pytest.raises(UnusableInput, match=r"repeats|earlier"):
            settle(series(DAYS[rows]), len(rows), fill="ffill")


@given(st.sets(st.integers(0, 59), min_size=3), st.sampled_from(["h", "D", "B", "MS", "QE-MAR", "YS-JAN", "2W-TUE"]))
def test_any_steps_left_out_are_filled_as_pandas_does(kept: set[int], frequency: str) -> None:
    whole = pd.date_range("2000-01-01", periods=60, freq=frequency, tz="America/New_York" if frequency == "D" else None)
    rows = sorted(kept)
    sent = whole[rows]
    settled, report = settle(series(sent, np.array(rows, float)), 1, frequency=frequency, fill="ffill")
    truth = pd.Series(np.array(rows, float), sent).reindex(whole[rows[0] : rows[-1] + 1]).ffill()
    assert settled.timestamps is not None
    assert settled.timestamps.equals(pd.DatetimeIndex(truth.index))
    np.testing.assert_array_equal(settled.values[0], truth.to_numpy())
    assert report.filled_steps == len(truth) - len(rows)


def test_a_given_step_that_the_rows_contradict() -> None:
    hourly = pd.date_range("2020-01-01 05:30", periods=5, freq="h")
    with pytest.raises(UnusableInput, match="row 2: one step of '30min' missing"):
        settle(series(hourly), 5, frequency="30min")
    with pytest.raises(UnusableInput, match=r"row 5.*not on 'W-MON'"):
        settle(series(hourly), 5, frequency="W-MON")


def test_gaps_without_end_are_not_filled() -> None:
    with pytest.raises(UnusableInput, match="missing"):
        settle(series(["1900-01-01T00:00:00", "1900-01-01T00:00:01", "2020-01-01T00:00:00"]), 3, fill="ffill")
    scattered = pd.DatetimeIndex(np.cumsum(np.tile([1, 2, 1], 12_000)).astype("M8[s]"))
    with pytest.raises(UnusableInput, match="more than 10000 places") as caught:
        settle(series(scattered), 30_000, fill="ffill")
    assert caught.value.field == "fill"


def test_few_rows_never_swell() -> None:
    seconds = pd.date_range("2020-01-01", periods=150, freq="s")
    tracemalloc.start()
    with pytest.raises(UnusableInput, match="missing; is the frequency right") as caught:
        settle(series(seconds), 96, frequency="us", fill="ffill")
    assert caught.value.field == "fill"
    # What is kept is all that is filled.
    settled, report = settle(series(seconds[:2]), 96, keep=100, frequency="us", fill="linear")
    with pytest.raises(UnusableInput, match="missing"):
        settle(Series(np.ones((3, 2)), ("a", "b", "c"), seconds[:2]), 96, frequency="us", fill="ffill")
    for frequency in ("B", "D"):
        with pytest.raises(UnusableInput, match="missing before 9999"):
            settle(series(["0001-01-01", "0001-01-02", "9999-12-30"]), 3, frequency=frequency, fill="ffill")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    np.testing.assert_allclose(settled.values[0], 2 - np.arange(99, -1, -1) * 1e-6)
    assert settled.timestamps is not None
    assert settled.timestamps.equals(pd.date_range(end=seconds[1], periods=100, freq="us"))
    assert report == Report(rows=2, used=100, filled_steps=99)


@pytest.mark.parametrize("fill", ["ffill", "linear"])
def test_filling_only_what_is_kept_gives_the_same(fill: Any) -> None:
    rng = np.random.default_rng(5)
    rows = np.append(np.sort(rng.choice(190, 58, replace=False)), [198, 199])  # the last two leave out nothing
    values = rng.normal(size=(3, 60))
    values[rng.random(values.shape) < 0.4] = np.nan
    stamps = pd.date_range("2019-12-01", periods=200, tz="Europe/Berlin")[rows]
    values[:, [0, -1]] = 1
    whole, _ = settle(series(stamps, values), 20, fill=fill, frequency="D")
    for keep in (1, 2, 20, 47, 150):
        part, _ = settle(series(stamps, values), 1, fill=fill, keep=keep, frequency="D")
        np.testing.assert_array_equal(part.values, whole.values[:, -keep:])
        assert part.timestamps is not None
        assert whole.timestamps is not None
        assert part.timestamps.equals(whole.timestamps[-keep:])


@pytest.mark.parametrize(
    ("stray", "first", "frequency"),
    [("2020-01-01", "2020-01-06", "W-MON"), ("2020-01-15", "2020-02-01", "MS"), ("2019-06-01", "2020-12-31", "YE-DEC")],
)
def test_a_stray_first_row_does_not_move_the_step(stray: str, first: str, frequency: str) -> None:
    stamps = pd.DatetimeIndex([stray]).append(pd.date_range(first, periods=12, freq=frequency))
    settled, report = settle(series(stamps), 12)
    assert settled.frequency == frequency
    assert (report.used, report.faults) == (12, 1)


def test_the_step_is_that_of_the_rows_that_are_needed() -> None:
    quarters = pd.date_range("2019-01-01", periods=2000, freq="15min")
    hours = pd.date_range("2020-01-01", periods=1000, freq="h")
    settled, report = settle(series(quarters.append(hours)), 96, keep=500)
    assert settled.frequency == "h"
    assert settled.timestamps is not None
    assert settled.timestamps.equals(hours[-500:])
    assert report.used == 500


def test_without_timestamps_only_values_can_be_wrong() -> None:
    plain = Series(np.array([[1, np.nan, 3.0]]), ("a",))
    assert settle(plain, 1, frequency="h")[0].frequency == "h"
    assert settle(plain, 3, fill="linear")[0].values.tolist() == [[1, 2, 3]]
    with pytest.raises(UnusableInput, match="row 2: the value is missing"):
        settle(plain, 2)
