"""Timestamps and frequencies against pandas' own calendar."""

from __future__ import annotations

import pandas as pd
import pytest

from app.errors import UnusableInput
from app.readers.calendar import (
    follows,
    isoformat,
    parse_frequency,
    stamps_after,
    stamps_from,
    stamps_until,
    step_of,
    steps_between,
)

FREQUENCIES = ["s", "10min", "h", "90min", "D", "3D", "W-MON", "2W-FRI", "B", "MS", "ME", "2MS", "QS-OCT", "QE-DEC"]
FREQUENCIES += ["YS-JAN", "YE-JUN"]


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_every_frequency_is_inferred_and_continued(frequency: str) -> None:
    truth = pd.date_range("2015-12-20 00:00", periods=60, freq=frequency)
    offset = step_of(truth[:40], None)
    assert offset is not None
    assert follows(truth[:40], offset).all()
    assert stamps_after(truth[:40], offset.freqstr, 20).equals(truth[40:])
    given = step_of(truth[:40], frequency)
    assert given is not None
    assert given.freqstr == frequency


@pytest.mark.parametrize(
    ("name", "frequency"),
    [("second", "s"), ("S", "s"), ("minute", "min"), ("T", "min"), ("hour", "h"), ("H", "h"), ("day", "D"), ("D", "D")],
)
def test_kserve_names_of_fixed_steps(name: str, frequency: str) -> None:
    assert parse_frequency(name).freqstr == frequency


@pytest.mark.parametrize(
    ("name", "first", "frequency"),
    [
        ("month", "2020-01-01", "MS"),
        ("M", "2020-02-29", "ME"),
        ("quarter", "2020-02-01", "QS-FEB"),
        ("Q", "2020-03-31", "QE-MAR"),
        ("year", "2020-04-01", "YS-APR"),
        ("Y", "2020-12-31", "YE-DEC"),
        ("week", "2020-01-01", "W-WED"),
        ("W", "2020-01-05", "W-SUN"),
    ],
)
def test_kserve_names_fall_where_the_first_stamp_does(name: str, first: str, frequency: str) -> None:
    assert parse_frequency(name, pd.Timestamp(first)).freqstr == frequency


def test_a_month_from_its_middle_is_refused() -> None:
    with pytest.raises(UnusableInput, match="first nor the last"):
        parse_frequency("month", pd.Timestamp("2020-01-15"))


@pytest.mark.parametrize("name", ["", "0h", "-1h", "fortnight", "h h", "1" * 30 + "h", "W-XYZ", "QS-XYZ", "\x00"])
def test_unknown_frequencies(name: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        parse_frequency(name)
    assert caught.value.field == "freq"


def test_daylight_saving_keeps_wall_clock_days_and_true_hours() -> None:
    days = pd.date_range("2021-03-20", periods=20, freq="D", tz="Europe/Berlin")
    hours = pd.date_range("2021-03-27 20:00", periods=20, freq="h", tz="Europe/Berlin")
    for truth, frequency in ((days, "D"), (hours, "h")):
        offset = step_of(truth[:15], None)
        assert offset is not None
        assert offset.freqstr == frequency
        assert stamps_after(truth[:15], frequency, 5).equals(truth[15:])


def stamps(*texts: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(list(texts))


def test_one_stamp_has_no_frequency_of_its_own() -> None:
    assert step_of(stamps("2020-01-01"), None) is None


def test_start_and_frequency() -> None:
    index, offset = stamps_from("2020-01-31", "M", 3)
    assert [stamp.date().isoformat() for stamp in index] == ["2020-01-31", "2020-02-29", "2020-03-31"]
    assert offset.freqstr == "ME"
    for start, frequency in (("soon", "h"), ("2020-01-02", "MS")):
        with pytest.raises(UnusableInput) as caught:
            stamps_from(start, frequency, 3)
        assert caught.value.field == "start"


@pytest.mark.parametrize("frequency", ["h", "YS", "99999YS", "999999D"])
def test_the_calendar_ends(frequency: str) -> None:
    with pytest.raises(UnusableInput):
        stamps_after(stamps("9999-01-01"), frequency, 9000)


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2020-01-01", periods=5, freq="h"),
        pd.date_range("2020-01-01", periods=5, freq="250ms"),
        pd.date_range("2021-03-28", periods=5, freq="h", tz="Europe/Berlin"),
    ],
)
def test_isoformat_is_pandas_own(index: pd.DatetimeIndex) -> None:
    assert isoformat(index) == [stamp.isoformat() for stamp in index]


@pytest.mark.parametrize(
    ("zone", "first", "skipped", "after"),
    [
        ("America/Santiago", "2023-08-01 00:00", "2023-09-03", "01:00-03:00"),
        ("Africa/Cairo", "2024-03-20 00:00", "2024-04-26", "01:00+03:00"),
        ("Europe/Berlin", "2020-02-20 02:30", "2020-03-29", "03:00+02:00"),
    ],
)
def test_days_go_on_over_an_hour_that_the_zone_skips(zone: str, first: str, skipped: str, after: str) -> None:
    days = pd.date_range(first, periods=20, tz=zone)
    ahead = stamps_after(days, "D", 720)
    assert [stamp.date() for stamp in ahead] == list(pd.date_range(days[-1].date(), periods=721).date)[1:]
    odd = {stamp for stamp in ahead if stamp.time() != days[0].time()}
    assert pd.Timestamp(f"{skipped}T{after}") in odd
    assert len(odd) <= 2
    assert follows(days.append(ahead), pd.tseries.frequencies.to_offset("D")).all()
    # The day of the change may be the last that is known.
    last = ahead.get_loc(pd.Timestamp(f"{skipped}T{after}"))
    assert stamps_after(days.append(ahead[: last + 1]), "D", 5).equals(ahead[last + 1 : last + 6])


def test_of_an_hour_that_comes_twice_the_first_counts() -> None:
    days = pd.date_range("2020-10-01 02:30", periods=20, tz="Europe/Berlin")
    ahead = stamps_after(days, "D", 10)
    assert [stamp.isoformat() for stamp in ahead[3:6]] == [
        "2020-10-24T02:30:00+02:00",
        "2020-10-25T02:30:00+02:00",
        "2020-10-26T02:30:00+01:00",
    ]
    assert stamps_after(days.append(ahead[:4]).append(stamps("2020-10-25T02:30+01:00").tz_convert(days.tz)), "D", 1)[
        0
    ] == pd.Timestamp("2020-10-26T02:30+01:00")


def test_where_days_and_years_explain_as_many_rows_it_is_years() -> None:
    years = stamps("2021-01-01", "2022-01-01", "2023-01-01", "2024-01-01")
    offset = step_of(years, None)
    assert offset is not None
    assert offset.freqstr == "YS-JAN"
    assert stamps_after(years, offset.freqstr, 1)[0] == pd.Timestamp("2025-01-01")


@pytest.mark.parametrize(
    ("first", "second", "frequency"),
    [
        ("2020-01-04", "2020-01-06", "B"),
        ("2020-01-15", "2020-02-01", "MS"),
        ("2020-01-15", "2020-01-31", "ME"),
        ("2020-01-07", "2020-01-13", "W-MON"),
        ("2020-02-10", "2020-04-01", "QS-JAN"),
        ("2020-02-10", "2021-01-01", "YS-JAN"),
    ],
)
def test_a_stamp_between_the_steps_is_followed_by_none(first: str, second: str, frequency: str) -> None:
    assert not follows(stamps(first, second), pd.tseries.frequencies.to_offset(frequency)).any()


@pytest.mark.parametrize("frequency", [*FREQUENCIES, "3B", "us"])
def test_steps_between_are_those_of_a_range(frequency: str) -> None:
    offset = pd.tseries.frequencies.to_offset(frequency)
    whole = pd.date_range("2019-12-20", periods=40, freq=frequency)
    assert [steps_between(whole[3], whole[at], offset) for at in (4, 5, 9, 39)] == [1, 2, 6, 36]
    assert steps_between(whole[3], whole[9] + pd.Timedelta("1ns"), offset) is None


@pytest.mark.parametrize("frequency", ["3MS", "ME", "QS-FEB", "2QE-DEC", "YS-JUN", "YE-DEC", "W-MON", "2W-TUE", "3B"])
def test_far_steps_are_reckoned_and_not_walked(frequency: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap of a thousand years in a small file costs no more than one of a day."""
    offset = pd.tseries.frequencies.to_offset(frequency)
    walked = pd.date_range("0001-01-20 05:00", periods=500, freq=frequency)
    ends = walked[[0, -1]]
    monkeypatch.setattr(pd, "date_range", None)
    assert steps_between(*ends, offset) == 499
    assert steps_between(ends[0], ends[1] + pd.Timedelta("1D"), offset) is None
    assert stamps_until(ends, offset, 500).equals(walked)
    assert stamps_after(walked[:9], frequency, 491).equals(walked[9:])
