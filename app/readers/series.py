"""A multivariate time series, and how large one may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput

if TYPE_CHECKING:
    import pandas as pd

MAX_VARIATES = 1024
"""Attention over variates takes memory with the square of their number; 1024 take a HOT forecaster about 0.5 GB."""

MAX_STEPS = 1 << 20
"""A model looks at its lookback alone: longer series only cost time to read."""


@dataclass(frozen=True, eq=False)
class Series:
    """values (variates, time) float64; names of the variates; timestamps (time) where they are known.

    As read, timestamps may be irregular and values NaN; `regularity.settle` gives the part that a model can take.
    `frequency` is the pandas alias that the timestamps follow, or that the caller gave without any timestamps.
    `time_name` is the name of the timestamps' column. `id` is the series' own among those of a long file.
    """

    values: npt.NDArray[np.float64]
    names: tuple[str, ...]
    timestamps: pd.DatetimeIndex | None = None
    frequency: str | None = None
    time_name: str = "date"
    id: str | None = None


def check_names(names: tuple[str, ...], variates: int) -> None:
    """UnusableInput unless there is one name a variate, each of them once."""
    if variates == 0:
        raise UnusableInput("the series has no variate: not one column of numbers")
    if len(names) != variates:
        raise UnusableInput(f"{len(names)} names for {variates} variates", field="names")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UnusableInput(f"the name {name[:40]!r} stands for two variates", field="names")
        seen.add(name)
