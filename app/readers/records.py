"""JSON records: a list of objects, one a row, with the columns' names as keys; null is an empty cell."""

from __future__ import annotations

import re
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import simdjson

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer
from app.readers.numeric_json import MAX_NUMBERS
from app.readers.table import MAX_TEXT, Roles, Selection, Table, check_size, named_roles, without_index

_LONG_INTEGER = re.compile(rb'"(?:[^"\\]|\\.)*"|(?<![\d.eE+-])-?\d{19,}(?![\d.eE])')
"""A string, so that none is looked into, or an integer that may be past 64 bits."""


def read_records(data: Buffer, selection: Selection, limit: int) -> Table:
    """The columns that a selection asks for; every record has the keys of the first, or fewer.

    Raises:
        InvalidRequest: not a list of objects, or one with other keys. UnusableInput: a value that is no number.
        PayloadTooLarge: more numbers than `limit` bytes hold.
    """
    text = bytes(data)
    cells = text.count(b":")
    if cells > MAX_NUMBERS or cells * 8 > limit:
        raise PayloadTooLarge(
            f"the JSON holds up to {cells} values, more than the limit of {min(MAX_NUMBERS, limit // 8)}"
        )
    try:
        try:
            records = simdjson.Parser().parse(text)
        except (ValueError, RuntimeError) as exc:
            if "BIGINT" not in str(exc):
                raise
            # An integer past 64 bits is a number like any other.
            records = simdjson.Parser().parse(_LONG_INTEGER.sub(_as_float, text))
    except (ValueError, RuntimeError) as exc:
        raise InvalidRequest(f"not valid JSON: {exc}") from exc
    if not isinstance(records, simdjson.Array) or not len(records):
        raise InvalidRequest("the JSON must be an object with a target, or a list of records")
    first = _record(records[0], 0)
    names = list(first)
    check_size(len(names) - 1, len(records))
    roles = _with_time(named_roles(names, selection), names, first)
    variates = {names[at]: array("d") for at in roles.variates}
    texts: dict[str, list[bytes]] = {names[at]: [] for at in (roles.time, roles.identity) if at is not None}
    known = set(names)
    try:
        for row, item in enumerate(records):
            record = _record(item, row)
            if not known.issuperset(record):
                other = next(key for key in record if key not in known)
                raise InvalidRequest(
                    f"record {row + 1} has the key {other[:40]!r}, which the first has not", field=other[:40]
                )
            for name, numbers in variates.items():
                numbers.append(_number(record.get(name), name, row))
            for name, cells_of in texts.items():
                cells_of.append(_text(record.get(name), name, row))
    except (ValueError, RuntimeError) as exc:
        raise InvalidRequest(f"not valid JSON: {exc}") from exc
    table = Table(
        names=tuple(variates),
        values=np.array([np.frombuffer(numbers, np.float64) for numbers in variates.values()]),
        time=_column(texts, names, roles.time),
        time_name="date" if roles.time is None else names[roles.time],
        ids=_column(texts, names, roles.identity),
    )
    return without_index(table, selection, leads=roles.leads)


def _record(item: Any, row: int) -> dict[str, Any]:
    if not isinstance(item, simdjson.Object):
        raise InvalidRequest(f"record {row + 1} is not an object")
    record: dict[str, Any] = item.as_dict()
    return record


def _as_float(found: re.Match[bytes]) -> bytes:
    token = found[0]
    return token if token.startswith(b'"') else token + b"e0"


def _with_time(roles: Roles, names: list[str], first: dict[str, Any]) -> Roles:
    if roles.time is not None:
        return roles
    for at, name in enumerate(names):
        if at != roles.identity and isinstance(first[name], str):
            return Roles(at, roles.identity, tuple(other for other in roles.variates if other != at))
    return roles


def _number(value: Any, name: str, row: int) -> float:
    if value is None:
        return np.nan
    if type(value) not in (int, float):
        raise UnusableInput(f"column {name!r}, row {row + 1}: {str(value)[:40]!r} is not a number", field=name)
    try:
        return float(value)
    except OverflowError as exc:
        raise UnusableInput(f"column {name!r}, row {row + 1}: past the range of float64", field=name) from exc


def _text(value: Any, name: str, row: int) -> bytes:
    if value is None:
        return b""
    if type(value) not in (int, str):
        raise UnusableInput(f"column {name!r}, row {row + 1}: {str(value)[:40]!r} is not a text", field=name)
    text = str(value).encode("utf-8", "replace")
    if len(text) > MAX_TEXT:
        raise UnusableInput(f"column {name!r}, row {row + 1}: more than {MAX_TEXT} characters", field=name)
    return text


def _column(texts: dict[str, list[bytes]], names: list[str], at: int | None) -> npt.NDArray[Any] | None:
    return None if at is None else np.array(texts[names[at]], dtype=np.bytes_)
