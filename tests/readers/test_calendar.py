"""Timestamps and frequencies against pandas' own calendar."""

from __future__ import annotations

import pandas as pd
import pytest

from app.errors import UnusableInput
from app.readers.calendar import isoformat, parse_frequency, parse_stamps, regular_frequency, stamps_after, stamps_from

FREQUENCIES = ["s", "10min", "h", "90min", "D", "3D", "W-MON", "2W-FRI", "B", "MS", "ME", "2MS", "QS-OCT", "QE-DEC"]
FREQUENCIES += ["YS-JAN", "YE-JUN"]


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_every_frequency_is_inferred_and_continued(frequency: str) -> None:
    truth = pd.date_range("2015-12-20 00:00", periods=60, freq=frequency)
    offset = regular_frequency(truth[:40], None, "date")
    assert offset is not None
    assert stamps_after(truth[39], offset.freqstr, 20).equals(truth[40:])
    given = regular_frequency(truth[:40], frequency, "date")
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
        offset = regular_frequency(truth[:15], None, "date")
        assert offset is not None
        assert offset.freqstr == frequency
        assert stamps_after(truth[14], frequency, 5).equals(truth[15:])


def stamps(*texts: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(list(texts))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (stamps("2020-01-01", "2020-01-02", "2020-01-02"), "row 3.*repeats"),
        (stamps("2020-01-01", "2020-01-03", "2020-01-02"), "row 3.*earlier"),
        (stamps("2020-01-01", "2020-01-02", "2020-01-04", "2020-01-05"), "row 3.*does not follow.*most frequent.*'D'"),
        (stamps("2020-01-01", "2020-02-01", "2020-04-01", "2020-05-01", "2020-06-01"), "row 3.*'MS'"),
    ],
)
def test_the_first_bad_row_is_named(index: pd.DatetimeIndex, message: str) -> None:
    with pytest.raises(UnusableInput, match=message) as caught:
        regular_frequency(index, None, "when")
    assert caught.value.field == "when"


def test_a_given_frequency_that_the_stamps_contradict() -> None:
    hourly = pd.date_range("2020-01-01 05:30", periods=5, freq="h")
    with pytest.raises(UnusableInput, match=r"row 2.*given step '30min'"):
        regular_frequency(hourly, "30min", "date")
    with pytest.raises(UnusableInput, match=r"row 1.*not on 'W-MON'"):
        regular_frequency(hourly, "W-MON", "date")


def test_one_stamp_has_no_frequency_of_its_own() -> None:
    assert regular_frequency(stamps("2020-01-01"), None, "date") is None


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("2016-07-01 05:00:00", "2016-07-01T05:00"),
        ("2016-07-01", "2016-07-01T00:00"),
        ("2016-07-01T05:00:00.25Z", "2016-07-01T05:00:00.25+00:00"),
        ("2016/7/1 5:00", "2016-07-01T05:00"),
        ("2016/7/1", "2016-07-01T00:00"),
    ],
)
def test_date_formats(text: str, truth: str) -> None:
    index, bad = parse_stamps([text])
    assert bad is None
    assert index[0] == pd.Timestamp(truth)


def test_offsets_that_change_are_brought_to_utc() -> None:
    index, bad = parse_stamps(["2021-03-28T01:00:00+01:00", "2021-03-28T03:00:00+02:00"])
    assert bad is None
    assert index.equals(pd.date_range("2021-03-28T00:00Z", periods=2, freq="h"))


def test_the_first_text_that_is_no_date_is_found() -> None:
    assert parse_stamps(["2020-01-01", "2020-01-02", "soon", "later"])[1] == 2
    assert parse_stamps(["01/02/2020"])[1] == 0


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
        stamps_after(pd.Timestamp("9999-01-01"), frequency, 9000)


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
