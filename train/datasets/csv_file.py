"""Anybody's wide CSV as a data set: a first column of timestamps, one column of numbers for each variate."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from train.datasets.folder import DatasetError
from train.datasets.series import Series, split_bounds


def load_csv(path: Path) -> Series:
    """The file's series, split 70/10/20 % in time; its name is the file's.

    UTF-8, or Latin-1 where it is not. DatasetError: not such a table, a value missing, or a step that differs from the
    others, since a window must not reach over a gap. The message names the column or the row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    try:
        table = pd.read_csv(io.StringIO(text), index_col=0)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it tells how it guesses the format
            times = pd.DatetimeIndex(pd.to_datetime(table.index.astype(str)))
    except (ValueError, pd.errors.ParserError) as error:
        raise DatasetError(f"{path} is not a wide CSV with timestamps in its first column: {error}") from None
    if table.empty:
        raise DatasetError(f"{path} needs rows, and a column of numbers beside the timestamps")
    for name, column in table.items():
        if column.dtype.kind not in "iuf":
            raise DatasetError(f"{path}: column {str(name)!r} is not of numbers")
    values = table.to_numpy(dtype=np.float64)
    if not (finite := np.isfinite(values)).all():
        row, column = np.argwhere(~finite)[0]
        raise DatasetError(f"{path}: row {row + 1} has no finite value in column {str(table.columns[column])!r}")
    return Series(
        name=path.stem,
        variates=tuple(str(name) for name in table.columns),
        values=values,
        bounds=split_bounds(len(values), None),
        frequency=_frequency(times, path),
        licence="",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _frequency(times: pd.DatetimeIndex, path: Path) -> str:
    """The step of all the timestamps as a pandas alias ("h", "10min", "MS")."""
    if len(times) < 3:
        raise DatasetError(f"{path}: {len(times)} rows have no step in common")
    steps = np.diff(times.to_numpy())
    if steps[0] <= np.timedelta64(0):
        raise DatasetError(f"{path}: the timestamps do not increase")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of its answer's type to come
        offset = pd.infer_freq(times)  # months, quarters and business days have no constant step
    if offset is None:
        kinds, counts = np.unique(steps, return_counts=True)
        usual = kinds[counts.argmax()]
        row = int(np.flatnonzero(steps != usual)[0]) + 1
        raise DatasetError(
            f"{path}: the usual step is {pd.Timedelta(usual)}, but row {row + 1} ({times[row]}) follows after "
            f"{pd.Timedelta(steps[row - 1])}"
        )
    return str(getattr(offset, "freqstr", offset))
