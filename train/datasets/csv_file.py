"""Anybody's wide CSV as a data set, read as the service reads it: timestamps, and a column for each variate."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from app.errors import KronserveError
from app.readers.csv_table import read_csv_table
from app.readers.regularity import settle
from app.readers.series import Series as Readings
from app.readers.table import Selection, series_of
from train.datasets.folder import DatasetError
from train.datasets.series import Series, split_bounds

_FEWEST = 3
_SELECTION = Selection()
_INSTEAD = {"dates": "write them as 2024-01-31", "decimal": "write decimal points"}
"""What to do about the service's questions, which a request answers with an option."""


def load_csv(path: Path) -> Series:
    """The file's series, split 70/10/20 % in time; its name is the file's.

    Delimiters, names, dates and decimal marks are the service's (`app.readers.csv_table`), except that any number of
    rows is taken. DatasetError: not such a table, a value missing, or a step that differs from the others, since a
    window must not reach over a gap. The message names the column or the row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    try:
        readings = _readings(content)
        rows = readings.values.shape[1]
        if rows < _FEWEST:
            raise DatasetError(f"{rows} rows have no step in common")
        settled, _ = settle(readings, rows)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except KronserveError as error:
        message, asked, _ = error.message.partition("; say ")
        instead = f"; {_INSTEAD.get(error.field or '', '')}" if asked else ""
        raise DatasetError(f"{path}: {message}{instead}") from None
    assert settled.frequency is not None
    return Series(
        name=path.stem,
        variates=settled.names,
        values=np.ascontiguousarray(settled.values.T),
        bounds=split_bounds(rows, None),
        frequency=settled.frequency,
        licence="",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _readings(content: bytes) -> Readings:
    """The one series of a wide table with timestamps; its values may be missing and its steps irregular."""
    table = read_csv_table(content, _SELECTION, sys.maxsize, max_rows=sys.maxsize)
    if table.ids is not None:
        raise DatasetError("a long table, with a row for every series and time; a column for each series is needed")
    if table.time is None:
        raise DatasetError("no column holds timestamps")
    (readings,) = series_of(table, _SELECTION)
    return readings
