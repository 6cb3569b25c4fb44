"""JSON documents whose bulk is numbers: nested lists straight to float64, without a Python float for each."""

from __future__ import annotations

import math
import re
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer

MAX_NUMBERS = 8 << 20
"""Numbers in one document, a volume of 200 voxels a side or a thousand variates of 8000 steps; more belongs in .npy."""

MAX_GENERAL_BYTES = 4 << 20
"""Documents up to this size are also read the general way, which takes thirty times their bytes as Python objects."""

MAX_DEPTH = 8

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')


def read_document(
    body: Buffer, array_key: str, limit: int, *, gaps: bool = False
) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    """Split a JSON object into its array `array_key` (nested lists of numbers, any depth) and all its other members.

    Args:
        gaps: null is a missing number, NaN in the array.

    Raises:
        InvalidRequest: not JSON (NaN and Infinity are not), not an object, or the array is absent or ragged.
        UnusableInput: an element of the array is null (without `gaps`), text or a boolean; the message names its place.
        PayloadTooLarge: its numbers would take more than `limit` bytes as float64.
    """
    text = bytes(body)
    numbers = text.count(b",") + 1
    if numbers > MAX_NUMBERS or numbers * 8 > limit:
        most = min(MAX_NUMBERS, limit // 8)
        raise PayloadTooLarge(f"the JSON holds up to {numbers} numbers, more than the limit of {most}")
    fast = _read_fast(text, array_key, gaps)
    if fast is not None:
        return fast
    if len(text) > MAX_GENERAL_BYTES:
        raise InvalidRequest(f"{array_key!r} must be regular nested lists of numbers in valid JSON", field=array_key)
    return _read_general(text, array_key, gaps)


def _read_fast(text: bytes, array_key: str, gaps: bool) -> tuple[dict[str, Any], npt.NDArray[np.float64]] | None:
    """None wherever the document is anything but plain: the general way then finds the answer, or the fault's place."""
    try:
        document = simdjson.Parser().parse(text)
        if not isinstance(document, simdjson.Object):
            return None
        members: dict[str, Any] = {}
        array = None
        for key in document:
            if key == array_key:
                array = document[key]
            else:
                value = document[key]
                members[key] = value.as_list() if isinstance(value, simdjson.Array) else value
                if isinstance(value, simdjson.Object):
                    members[key] = value.as_dict()
        if not isinstance(array, simdjson.Array):
            return None
        shape, lists, rows = _regular_shape(array)
        values = _numbers(array, rows, gaps)
    except (ValueError, TypeError, RuntimeError, KeyError):
        return None
    # The buffer flattens whatever is nested. Only if the text opens no more lists than the regular shape has (and the
    # other members' own) is it certain that [1, [2]] was not taken for [1, 2].
    lists += sum(_count_lists(value) for value in members.values())
    if math.prod(shape) != values.size or not _opens(text, lists):
        return None
    return members, values.reshape(shape)


def _opens(text: bytes, lists: int) -> bool:
    """Whether valid JSON opens so many lists; brackets within its strings open none."""
    brackets = text.count(b"[")
    return brackets == lists or brackets - sum(found[0].count(b"[") for found in _STRING.finditer(text)) == lists


def _numbers(array: Any, rows: list[Any], gaps: bool) -> npt.NDArray[np.float64]:
    """The numbers of a nested list whose last level are `rows`, flat; with `gaps`, NaN for null.

    Raises:
        TypeError: an element is no number.
    """
    try:
        return np.array(np.frombuffer(array.as_buffer(of_type="d"), np.float64))
    except TypeError:
        if not gaps:
            raise
    return np.fromiter(map(_or_nan, chain.from_iterable(rows)), np.float64, sum(map(len, rows)))


def _or_nan(number: Any) -> float:
    if number is not None and type(number) not in (int, float):
        raise TypeError(f"{type(number)} is no number")
    return math.nan if number is None else number


def _regular_shape(array: Any) -> tuple[tuple[int, ...], int, list[Any]]:
    """Shape of a nested list that is regular in the levels that are lists, how many lists it is made of, and those of
    the last level."""
    shape, lists = [len(array)], 1
    level = [array]
    while shape[-1] and len(shape) < MAX_DEPTH:
        children = [item for parent in level for item in _child_lists(parent)]
        if not children:
            break
        level = children
        sizes = {len(item) for item in level}
        if len(sizes) > 1 or len(level) != math.prod(shape):
            raise ValueError("ragged")
        shape.append(sizes.pop())
        lists += len(level)
    return tuple(shape), lists, level


def _child_lists(parent: Any) -> list[Any]:
    # A list of numbers is recognised by its first element, or every number would become a Python object after all.
    return list(parent) if isinstance(parent[0], simdjson.Array) else []


def _count_lists(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(_count_lists, value))
    if isinstance(value, dict):
        return sum(map(_count_lists, value.values()))
    return 0


def _read_general(text: bytes, array_key: str, gaps: bool) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"not valid JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise InvalidRequest("the JSON body must be an object")
    if array_key not in document:
        raise InvalidRequest(f"{array_key!r} is missing", field=array_key)
    nested = document.pop(array_key)
    if not isinstance(nested, list):
        raise InvalidRequest(f"{array_key!r} must be nested lists of numbers", field=array_key)
    return document, to_array(nested, array_key, gaps=gaps)


def to_array(nested: list[Any], field: str, *, gaps: bool = False) -> npt.NDArray[np.float64]:
    """Nested lists of numbers, as orjson reads them, as an array.

    Args:
        gaps: None is a missing number, NaN in the array.

    Raises:
        InvalidRequest: the lists are ragged.
        UnusableInput: an element is None (without `gaps`), text or a boolean, which the message names by its place; or
            a number that float64 cannot hold.
    """
    if not _plain(nested, gaps):
        _check(nested, _first_shape(nested), field, field, gaps)
    try:
        return np.array(nested, np.float64)
    except (OverflowError, ValueError) as exc:
        raise UnusableInput(f"{field!r} holds a number that float64 cannot", field=field) from exc


def _plain(nested: list[Any], gaps: bool) -> bool:
    """Whether these are numbers, or lists of as many numbers each, which needs no look at every one in Python."""
    rows = nested if nested and isinstance(nested[0], list) else [nested]
    allowed = {int, float, type(None)} if gaps else {int, float}
    return (
        all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows)
        and set(map(type, chain.from_iterable(rows))) <= allowed
    )


def _first_shape(nested: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(nested, list) and len(shape) < MAX_DEPTH:
        shape.append(len(nested))
        nested = nested[0] if nested else None
    return tuple(shape)


def _check(nested: Any, shape: tuple[int, ...], place: str, field: str, gaps: bool) -> None:
    """Every element where the first ones say it should be; the first that is not is named."""
    if not shape:
        if isinstance(nested, list):
            raise InvalidRequest(f"{place} is a list, its neighbours are numbers", field=field)
        if type(nested) not in (int, float) and not (gaps and nested is None):
            kind = {type(None): "null", bool: "a boolean", str: "text"}.get(type(nested), "an object")
            raise UnusableInput(f"{place} is {kind}, not a number", field=field)
        return
    if not isinstance(nested, list):
        raise InvalidRequest(f"{place} is not a list, its neighbours are", field=field)
    if len(nested) != shape[0]:
        raise InvalidRequest(f"{place} has {len(nested)} elements, its neighbours have {shape[0]}", field=field)
    for index, item in enumerate(nested):
        _check(item, shape[1:], f"{place}[{index}]", field, gaps)
