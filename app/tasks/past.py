"""Forecasts from points in a series' own past, whose outcome is known: intervals and backtests take errors there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from app.manifest import Forecasting
from app.readers.series import Series
from app.tasks.forecasting import Array, advanced, standardise, unscaled

Origins = npt.NDArray[np.intp]

PAST_HORIZONS = 2
"""How far back the past's forecasts begin, in heads of the model, before the latest whose outcome is known."""

MAX_ORIGINS = 160
"""Forecasts of the past for one request's history."""

MIN_ORIGINS = 30
"""Fewer forecasts of the past say too little about the ends of their errors."""

MIN_KNOWN = MIN_ORIGINS // 2
"""Of how many of them an outcome has to be known, for a variate's errors to count."""

MAX_NUMBERS = 1 << 25
"""Numbers that the forecasts of one series' past may have together: 256 MiB, and their errors as much again."""


def steps_of_use(spec: Forecasting, horizon: int) -> int:
    """Steps of history of which intervals `horizon` steps ahead can make use."""
    return spec.lookback + horizon + PAST_HORIZONS * spec.horizon


def fewest_steps(spec: Forecasting, horizon: int) -> int:
    """Steps of history without which it says nothing about `horizon` steps ahead."""
    return spec.lookback + horizon + spec.horizon - 1


def past_origins(series: Series, spec: Forecasting, horizon: int, budget: int) -> Origins | None:
    """The points to forecast from in a series' own past; None where it is too short for `horizon` steps ahead.

    budget: most rows that the graph may be given, over all its passes.
    """
    variates, steps = series.values.shape
    passes = -(-horizon // spec.horizon)
    count = min(MAX_ORIGINS, budget // passes, MAX_NUMBERS // (variates * horizon))
    if count < MIN_ORIGINS or steps < fewest_steps(spec, horizon) or not spec.standardise:
        return None
    first = max(spec.lookback, steps - horizon - PAST_HORIZONS * spec.horizon)
    stride = max(1, -(-(steps - first) // count))
    return np.arange(steps - 1, first - 1, -stride)[::-1]


class PastForecasts:
    """Forecasts of one series from many origins, ascending, each from the `lookback` values before it.

    `rows` are the graph's inputs of the next pass, `take` wants its answer to them; passes are over when `rows` is
    None. A pass takes the forecasts before it for history, as `forecasting.roll` does, and leaves out origins so near
    to the series' end that the outcome of none of its steps is known.

    forecasts: (origins, variates, horizon) in the unit of the series, NaN for steps of passes that were left out.
    scale: (origins, variates, 1), the deviation of each window. constant: (origins, variates), windows without any.
    """

    def __init__(self, series: Series, spec: Forecasting, origins: Origins, horizon: int) -> None:
        self.series, self.origins, self.horizon = series, origins, horizon
        self._head, self._made = spec.horizon, 0
        self.forecasts: Array = np.full((len(origins), len(series.values), horizon), np.nan)
        self._windows = np.stack([series.values[:, origin - spec.lookback : origin] for origin in origins])
        self.rows: npt.NDArray[np.float32] | None
        self.rows, self._mean, self._scale, self._constant = _scaled(self._windows)
        self.scale, self.constant = self._scale, self._constant

    def take(self, answer: npt.NDArray[np.floating]) -> None:
        """The graph's answer to `rows`: (origins of the pass, variates, head)."""
        begin, self._made = self._made, min(self._made + self._head, self.horizon)
        values = unscaled(answer, self._mean, self._scale, self._constant)
        self.forecasts[: len(values), :, begin : self._made] = values[:, :, : self._made - begin]
        self.rows = None
        known = self.series.values.shape[1] - self.origins - self._made > 0
        count = int(known.sum())  # those that lie farthest back
        if self._made < self.horizon and count:
            self._windows = advanced(self._windows[:count], values[:count])
            self.rows, self._mean, self._scale, self._constant = _scaled(self._windows)

    def errors(self) -> Array:
        """Outcomes less forecasts, in units of the windows' deviations (origins, variates, horizon); NaN where one of
        both is not known, and after windows that never change: they have no deviation to count in."""
        padded = np.concatenate([self.series.values, np.full((len(self.series.values), self.horizon), np.nan)], axis=1)
        errors: Array = np.stack([padded[:, origin : origin + self.horizon] for origin in self.origins])
        with np.errstate(over="ignore", invalid="ignore"):
            errors -= self.forecasts
            errors /= self.scale
        errors[self.constant] = np.nan
        return errors


def counting(errors: Array, origins: Origins, end: int, head: int) -> Array:
    """Errors (origins, variates, horizon) as they count for a forecast from `end`.

    NaN where the outcome comes after it, and in each pass where the origin lies further back than it would for a
    horizon that ends with the pass.
    """
    horizon = errors.shape[2]
    steps = np.arange(horizon)
    reach = np.minimum((steps // head + 1) * head, horizon) + PAST_HORIZONS * head
    back = end - origins[:, np.newaxis]
    counts = (steps < back) & (back <= reach)
    return np.where(counts[:, np.newaxis], errors, np.nan)


def _scaled(windows: Array) -> tuple[npt.NDArray[np.float32], Array, Array, npt.NDArray[np.bool_]]:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled, mean, scale = standardise(windows.reshape(-1, windows.shape[2]))
    rows: npt.NDArray[np.float32] = scaled.reshape(windows.shape)
    shape = (*windows.shape[:2], 1)
    constant: npt.NDArray[np.bool_] = np.asarray(~rows.any(axis=2))
    return rows, mean.reshape(shape), scale.reshape(shape), constant
