"""Decimal points and decimal commas: which of them a file of texts uses, and the numbers that its cells are.

"1.234" is a number between 1 and 2 in one country and a thousand in another. What is clear decides: "3,5", "0.123",
"12.34". Where nothing is, or a cell speaks against the others, the caller has to say it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isnan
from typing import Literal

from app.errors import UnusableInput

DecimalMark = Literal["point", "comma"]

MARKS: dict[DecimalMark, str] = {"point": ".", "comma": ","}

MAX_DOUBTS = 100_000
"""Cells that might be either, after which no clear one is waited for."""

_CLEAR = re.compile(r"\s*[+-]?(?:\d*[.,]\d*|\d[\d.,]*[.,]\d*)(?:[eE][+-]?\d+)?\s*")
_GROUPED = re.compile(r"\s*[+-]?[1-9]\d{0,2}(?:(?:\.\d{3})+|(?:,\d{3})+)\s*")
_GROUPS = {
    ".": re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?"),
    ",": re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d*)?"),
}
_ASK = "say decimal=comma or decimal=point"


def is_written_number(text: str) -> bool:
    """Whether a text is a number with either mark, grouped in thousands or not."""
    return any(_value(text, mark, grouped=True) is not None for mark in MARKS.values())


def find_mark(cells: Iterable[tuple[str, str]]) -> str:
    """The mark that the first clear one of cells, each with its column's name, has; a point where none has any mark.

    Raises:
        UnusableInput: every mark might just as well part thousands.
    """
    doubtful: tuple[str, str] | None = None
    doubts = 0
    for name, text in cells:
        if "." not in text and "," not in text:
            continue
        if _GROUPED.fullmatch(text):
            doubtful, doubts = doubtful or (name, text), doubts + 1
            if doubts == MAX_DOUBTS:
                break
        elif _CLEAR.fullmatch(text):
            return "," if text.rfind(",") > text.rfind(".") else "."
    if doubtful is not None:
        name, text = doubtful
        raise UnusableInput(
            f"column {name!r}: numbers like {text.strip()[:40]!r} may have decimals or thousands; {_ASK}",
            field="decimal",
        )
    return "."


def number(text: str, mark: str, *, grouped: bool) -> float | None:
    """The number that a cell is; None where it is none. `grouped` allows the other mark between thousands.

    Raises:
        UnusableInput: a number only by the other mark.
    """
    found = _value(text, mark, grouped=grouped)
    if found is None and not grouped and is_written_number(text):
        raise UnusableInput(f"{text.strip()[:40]!r} has another decimal mark than the rest, or thousands; {_ASK}")
    return found


def _value(text: str, mark: str, *, grouped: bool) -> float | None:
    text = text.strip()
    other = "." if mark == "," else ","
    if grouped and _GROUPS[mark].fullmatch(text):
        text = text.replace(other, "")
    if other in text or "_" in text or not text.isascii():
        return None
    try:
        found = float(text.replace(mark, "."))
    except ValueError:
        return None
    return None if isnan(found) else found
