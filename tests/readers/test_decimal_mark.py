"""Decimal marks: what is clear decides, what is not is asked for, and thousands are never taken for decimals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.errors import UnusableInput
from app.readers.formats import read_series
from app.readers.table import Selection


def values(rows: list[str], header: str = "date;load;temp", **selection: Any) -> Any:
    days = [f"2020-01-{day:02d}" for day in range(1, len(rows) + 1)]
    mark = next(mark for mark in ";\t," if mark in header)
    text = "\n".join([header, *(f"{day}{mark}{row}" for day, row in zip(days, rows, strict=True))])
    return read_series(text.encode(), "csv", 1 << 20, Selection(**selection)).series[0].values.tolist()


@pytest.mark.parametrize(
    "rows",
    [
        ["1.234;3,5", "1.235;3,5"],
        ["1,234;3.5", "1,235;3.5"],
        ["3,5;1", "4,5;1", "5,5;1.250"],
        ["3.5;1", "4.5;1", "5.5;1,250"],
        ["1.234,5;1", "2.234,5;1"],
        ["1,234.5;1", "2,234.5;1"],
        ["1.050;2", "1.100;3"],
        ["1,050;2", "1,100;3"],
        ["1.050;2,100", "1.100;3,200"],
        ["1.234.567;1", "2.000.000;1"],
    ],
)
def test_what_may_be_decimals_or_thousands_is_asked_for(rows: list[str]) -> None:
    with pytest.raises(UnusableInput, match="decimal=comma or decimal=point") as caught:
        values(rows)
    assert caught.value.field == "decimal"


@pytest.mark.parametrize(
    ("rows", "decimal", "truth"),
    [
        (["1.234;3,5", "1.235;-3,5"], "comma", [[1234, 1235], [3.5, -3.5]]),
        (["1.234.567,25;3,5", "-1.235;1e3"], "comma", [[1234567.25, -1235], [3.5, 1000]]),
        (["1,234;3.5", "1,235,000.5;3.5"], "point", [[1234, 1235000.5], [3.5, 3.5]]),
        (["1.050;2", "1.100;3"], "point", [[1.05, 1.1], [2, 3]]),
        (["1.050;2", "1.100;3"], "comma", [[1050, 1100], [2, 3]]),
        (["1,050;2", "1,100;"], "comma", [[1.05, 1.1], [2, np.nan]]),
    ],
)
def test_what_the_caller_says_is_done(rows: list[str], decimal: Any, truth: list[list[float]]) -> None:
    np.testing.assert_array_equal(values(rows, decimal=decimal), truth)


def test_a_clear_number_decides_wherever_it_is() -> None:
    rows = [f"{row % 7};1" for row in range(300)] + ["5,5;0,25"]
    text = "date;a;b\n" + "".join(f"2020-01-{1 + at // 24:02d} {at % 24:02d}:00;{row}\n" for at, row in enumerate(rows))
    series = read_series(text.encode(), "csv", 1 << 20).series[0]
    assert series.values[:, -1].tolist() == [5.5, 0.25]
    assert values(["1,050;2", "0,100;3"]) == [[1.05, 0.1], [2, 3]]
    assert values(["1.050\t2", "12.34\t3"], "date\ta\tb") == [[1.05, 12.34], [2, 3]]
    assert values([" 1,5 ;2", "2,5;+3,"]) == [[1.5, 2.5], [2, 3]]


def test_where_commas_part_the_fields_quoted_ones_are_asked_for() -> None:
    rows = ['"1,234",3.5', '"2,345",3.5']
    with pytest.raises(UnusableInput, match="decimal=comma"):
        values(rows, "date,load,temp")
    assert values(rows, "date,load,temp", decimal="point") == [[1234, 2345], [3.5, 3.5]]
    assert values(['"1,234",3', '"2,345",4'], "date,load,temp", decimal="comma") == [[1.234, 2.345], [3, 4]]


@pytest.mark.parametrize("cell", ["1.23", "12.34.567", "1.2345", "1,2,3", "1_000,5", "01.234"])
def test_groups_are_of_three_digits(cell: str) -> None:
    with pytest.raises(UnusableInput, match="is not a number"):
        values([f"{cell};1", "1,5;2"], decimal="comma")


def test_the_mark_is_of_csv() -> None:
    with pytest.raises(UnusableInput) as caught:
        read_series(b'[{"date": "2020-01-01", "a": 1}]', "json", 1 << 20, Selection(decimal="comma"))
    assert caught.value.field == "decimal"
