"""Written dates against Python's own calendar, and those that mean two days."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from app.errors import UnusableInput
from app.readers.dates import LONGEST, SLICE, NotADate, is_date, parse_date, parse_dates


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("2016-07-01 05:00:00", "2016-07-01T05:00"),
        ("2016-07-01", "2016-07-01T00:00"),
        ("2016-07", "2016-07-01T00:00"),
        ("20160701", "2016-07-01T00:00"),
        ("20160701T0530", "2016-07-01T05:30"),
        ("2016-07-01T05:00:00.25Z", "2016-07-01T05:00:00.25+00:00"),
        ("2016-07-01T05:00:00+05:30", "2016-07-01T05:00+05:30"),
        ("2016/7/1 5:00", "2016-07-01T05:00"),
        ("2016/7/1", "2016-07-01T00:00"),
        ("2016.7.1 05:00", "2016-07-01T05:00"),
        ("31.12.2016", "2016-12-31T00:00"),
        ("31/12/2016 23:15", "2016-12-31T23:15"),
        ("12/31/2016 11:15 PM", "2016-12-31T23:15"),
        ("12-31-2016 11:15:30 am", "2016-12-31T11:15:30"),
        ("7/7/2016", "2016-07-07T00:00"),
        ("1 Jul 2016", "2016-07-01T00:00"),
        ("01-Jul-2016 13:00", "2016-07-01T13:00"),
        ("July 1, 2016", "2016-07-01T00:00"),
        ("2016-07-01 05:00:00 ", "2016-07-01T05:00"),
        (" 2016-07-01T05:00:00Z\t", "2016-07-01T05:00:00+00:00"),
        ("31/12/2016 23:15 ", "2016-12-31T23:15"),
        ("1 Jul 2016\u00a0", "2016-07-01T00:00"),
    ],
)
def test_date_formats(text: str, truth: str) -> None:
    for texts in ([text], np.array([text.encode()])):
        (stamp,) = parse_dates(texts)
        assert stamp == pd.Timestamp(truth)
    assert is_date(text)


def test_day_and_month_are_told_by_a_number_over_12_anywhere() -> None:
    assert parse_dates(["01/02/2020", "01/13/2020"]).strftime("%m-%d").tolist() == ["01-02", "01-13"]
    assert parse_dates(["01/02/2020", "13/02/2020"]).strftime("%m-%d").tolist() == ["02-01", "02-13"]
    assert parse_dates(["01/02/2020"], "dmy")[0] == pd.Timestamp("2020-02-01")
    assert parse_dates(["01/02/2020"], "mdy")[0] == pd.Timestamp("2020-01-02")


@pytest.mark.parametrize("texts", [["01/02/2020"], ["01.02.2020", "02.02.2020"], ["3-4-2020 10:00", "3-5-2020 10:00"]])
def test_day_and_month_that_nothing_tells_apart(texts: list[str]) -> None:
    with pytest.raises(UnusableInput, match="dates=dmy") as caught:
        parse_dates(texts)
    assert caught.value.field == "dates"


@pytest.mark.parametrize(
    ("texts", "row"),
    [
        (["2020-01-01", "2020-01-02", "soon", "later"], 2),
        (["soon"], 0),
        (["2020-01-01", ""], 1),
        (["2020-02-30"], 0),
        (["01/13/2020", "13/01/2020"], 1),
        (["2020-01-01T00:00Z", "2020-01-01"], 1),
        (["1", "2"], 0),
        (["99/99/2020"], 0),
    ],
)
def test_the_first_text_that_is_no_date_is_found(texts: list[str], row: int) -> None:
    with pytest.raises(NotADate) as caught:
        parse_dates(texts)
    assert caught.value.row == row
    with pytest.raises(NotADate) as caught:
        parse_dates(np.array([text.encode() for text in texts]))
    assert caught.value.row == row


def test_a_fault_past_the_first_slice_has_its_row() -> None:
    texts = np.full(SLICE + 10, b"2020-01-01")
    texts[SLICE + 3] = b"soon"
    with pytest.raises(NotADate) as caught:
        parse_dates(texts)
    assert caught.value.row == SLICE + 3
    mixed = np.full(SLICE + 10, b"2021-03-28T01:00+01:00")
    mixed[SLICE:] = b"2021-03-28T03:00+02:00"
    stamps = parse_dates(mixed)
    assert str(stamps.tz) == "UTC"
    assert stamps[[0, -1]].tolist() == [pd.Timestamp("2021-03-28T00:00Z"), pd.Timestamp("2021-03-28T01:00Z")]


def test_offsets_that_change_are_brought_to_utc() -> None:
    index = parse_dates(["2021-03-28T01:00:00+01:00", "2021-03-28T03:00:00+02:00"])
    assert index.equals(pd.date_range("2021-03-28T00:00Z", periods=2, freq="h"))


def test_a_zone_is_the_clock_of_stamps_without_offset() -> None:
    truth = pd.date_range("2021-10-31", periods=5, freq="h", tz="Europe/Berlin")
    assert parse_dates(truth.strftime("%Y-%m-%d %H:%M").tolist(), zone="Europe/Berlin").equals(truth)
    assert parse_dates([stamp.isoformat() for stamp in truth], zone="Europe/Berlin").equals(truth)
    for text in ("2021-03-28 02:30", "2021-10-31 02:30"):  # skipped; twice, and nothing tells which
        with pytest.raises(NotADate, match="change of the clocks"):
            parse_dates(["2021-01-01 00:00", text], zone="Europe/Berlin")


@pytest.mark.parametrize("text", ["now", "today", " Now ", "NaT"])
def test_words_are_no_dates(text: str) -> None:
    assert not is_date(text)
    for texts in ([text], ["2020-01-01", text]):
        with pytest.raises(NotADate) as caught:
            parse_dates(texts)
        assert caught.value.row == len(texts) - 1


def test_a_timestamp_of_a_request_is_one_that_its_refusal_names() -> None:
    assert parse_date("2020-01-31 ".ljust(LONGEST), "until") == [pd.Timestamp("2020-01-31")]
    assert parse_date("01/02/2020", "until", "dmy", "Europe/Berlin") == [pd.Timestamp("2020-02-01", tz="Europe/Berlin")]
    with pytest.raises(UnusableInput, match="until 'soon' is not an ISO 8601 timestamp") as caught:
        parse_date("soon", "until")
    assert caught.value.field == "until"
    with pytest.raises(UnusableInput, match=r"until '2021-03-28 02:30' .*Europe/Berlin"):  # the clocks skip it
        parse_date("2021-03-28 02:30", "until", None, "Europe/Berlin")


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-31".ljust(LONGEST + 1),
        "2020-01-31" + " " * 240_000,
        "1" + " " * 185_000 + "x",
        " " * 240_000,
        "1" * 60_000,
    ],
)
def test_a_long_text_is_no_date_and_is_not_looked_into(text: str) -> None:
    with pytest.raises(UnusableInput, match=f"at most {LONGEST}$") as caught:
        parse_date(text, "start")
    assert caught.value.field == "start"
    assert len(caught.value.message) < 150
    assert not is_date(text)
