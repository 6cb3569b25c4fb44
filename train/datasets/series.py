"""Multivariate series: the long-term forecasting benchmarks and their splits.

Splits (as in Autoformer, iTransformer, PatchTST): ETT hourly has 8640/2880/2880 rows (12, 4 and 4 months of 30 days,
the rest unused), the others 70/10/20 %. A standard scaler is fitted on the training rows. Validation and test windows
start `lookback` rows earlier, so that their first target is the split's first row; every window counts.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from train.datasets.folder import DatasetError, read_bytes

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
ETT_HOURLY = (8640, 2880, 2880)


@dataclass(frozen=True)
class Source:
    """One published file.

    member: the CSV inside a zip. rows: rows per split; None means 70/10/20 %. renamed: headers to put right.
    """

    file: str
    md5: str
    frequency: str
    licence: str
    member: str | None = None
    rows: tuple[int, int, int] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


SOURCES: dict[str, Source] = {
    "etth1": Source(
        file="ETTh1.csv",
        md5="8381763947c85f4be6ac456c508460d6",
        frequency="h",
        licence="CC BY-ND 4.0 (ETDataset, Zhou et al.)",
        rows=ETT_HOURLY,
    ),
    "weather": Source(
        file="weather.zip",
        md5="985467208abb5f8d13a7cafef345560d",
        frequency="10min",
        licence="free with acknowledgement (Max Planck Institute for Biogeochemistry, Jena)",
        member="weather/weather.csv",
        # A recoding on its way to the benchmarks turned the station's Latin-1 signs into U+FFFD.
        renamed={
            "SWDR (W/m\ufffd)": "SWDR (W/m²)",
            "PAR (\ufffdmol/m\ufffd/s)": "PAR (µmol/m²/s)",
            "max. PAR (\ufffdmol/m\ufffd/s)": "max. PAR (µmol/m²/s)",
        },
    ),
}


@dataclass(frozen=True)
class Series:
    """A series and its splits.

    values: float64 [time, variates], in the file's units. bounds: first and past-the-end row of train, val and test.
    """

    name: str
    variates: tuple[str, ...]
    values: NDArray[np.float64]
    bounds: dict[Split, tuple[int, int]]
    frequency: str
    licence: str
    sha256: str

    @property
    def splits(self) -> dict[str, list[int]]:
        """`bounds` as JSON has them."""
        return {split: [start, stop] for split, (start, stop) in self.bounds.items()}

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of every variate over the training rows."""
        start, stop = self.bounds["train"]
        mean: NDArray[np.float64] = self.values[start:stop].mean(axis=0)
        return mean

    @property
    def scale(self) -> NDArray[np.float64]:
        """Biased standard deviation of every variate over the training rows; 1 for a constant one."""
        start, stop = self.bounds["train"]
        rows = self.values[start:stop]
        deviation: NDArray[np.float64] = rows.std(axis=0)
        return np.where((rows == rows[:1]).all(axis=0), 1.0, deviation)

    def scaled(self, split: Split, lookback: int) -> NDArray[np.float64]:
        """Rows of a split on the scaler's scale, [rows, variates]; val and test with `lookback` rows before them."""
        start, stop = self.bounds[split]
        if start:
            start -= lookback
        if start < 0:
            raise DatasetError(f"{self.name}: {split} has no {lookback} rows before it")
        rows: NDArray[np.float64] = (self.values[start:stop] - self.mean) / self.scale
        return rows

    def with_windows(self, split: Split, lookback: int, horizon: int) -> NDArray[np.float64]:
        """`scaled`, of a split that holds at least one window. DatasetError: it holds none."""
        rows = self.scaled(split, lookback)
        if not window_count(len(rows), lookback, horizon):
            raise DatasetError(
                f"{self.name}: {len(rows)} rows for split {split} hold no window of {lookback} + {horizon} steps"
            )
        return rows


def split_bounds(total: int, rows: tuple[int, int, int] | None) -> dict[Split, tuple[int, int]]:
    """First and past-the-end row of each split; `rows` None: 70 % train, 20 % test, what is left between them val."""
    if rows is None:
        train, test = int(total * 0.7), int(total * 0.2)
        rows = (train, total - train - test, test)
    if sum(rows) > total:
        raise DatasetError(f"{total} rows are fewer than the splits need ({sum(rows)})")
    first, second, third = rows[0], rows[0] + rows[1], sum(rows)
    return {"train": (0, first), "val": (first, second), "test": (second, third)}


def window_count(rows: int, lookback: int, horizon: int) -> int:
    """Windows of `lookback` inputs and `horizon` targets in `rows` consecutive rows."""
    return max(0, rows - lookback - horizon + 1)


def lookback_windows(rows: NDArray[np.float64], lookback: int) -> NDArray[np.float64]:
    """A read-only view of every run of `lookback` rows: [time, variates] -> [windows, variates, lookback]."""
    return sliding_window_view(rows, lookback, axis=0)


def load_series(name: str, folder: Path) -> Series:
    """A benchmark series from its file. DatasetError: unknown name, missing or altered file, missing values."""
    if name not in SOURCES:
        raise DatasetError(f"unknown series {name!r}; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    content, sha256 = read_bytes(folder, source.file, source.md5)
    if source.member is not None:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(source.member)
    table = pd.read_csv(io.BytesIO(content), index_col="date").rename(columns=dict(source.renamed))
    values = table.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise DatasetError(f"{source.file} has missing values")
    return Series(
        name=name,
        variates=tuple(str(column) for column in table.columns),
        values=values,
        bounds=split_bounds(len(values), source.rows),
        frequency=source.frequency,
        licence=source.licence,
        sha256=sha256,
    )
