"""Prediction intervals: split-conformal errors of the bundle, brought to the level that the series' own past asks for.

The bundle holds quantiles of validation errors for each variate and step, in units of the deviation of the window. They
give the shape of an interval: how it widens, and how lopsided it is. How wide it must be differs from one stretch of
time to another, and from one series to another. So where the request's history is long enough, the model forecasts from
points in it whose outcome is known, and intervals are stretched by the factor that would have covered these outcomes as
often as asked: conformal prediction with the scaled error as the score (Vovk et al. 2005; for the scaling Romano et al.
2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput
from app.manifest import Forecasting, Intervals
from app.readers.series import Series
from app.tasks.forecasting import Array, standardise

BANDS = (1, 24, 96, 192, 336, 528)
"""First steps of the bands in which the factor of a series' own errors is estimated; the last has no end."""

PAST_HORIZONS = 2
"""How far back the past's forecasts begin, in heads of the model, before the latest whose outcome is known."""

MAX_ORIGINS = 160
"""Forecasts of the past for one request's history."""

MIN_ORIGINS = 30
"""Fewer forecasts of the past say too little about the ends of their errors."""

TINY = 1e-9


@dataclass(frozen=True, eq=False)
class Past:
    """Origins of forecasts in a series' own past: each is forecast from the values before it, for those from it on."""

    origins: npt.NDArray[np.intp]


def parse_probabilities(quantiles: Sequence[str] | None, levels: Sequence[str] | None) -> tuple[float, ...]:
    """Ascending probabilities from quantiles (0 to 1) and from levels of central intervals (percent).

    Raises:
        UnusableInput: not numbers, or outside of what the ends of a validation split can tell.
    """
    wanted: set[float] = set()
    found: tuple[float, ...]
    for field, texts in (("quantiles", quantiles), ("level", levels)):
        for text in (part for given in texts or () for part in given.split(",")):
            try:
                number = float(text)
            except ValueError:
                raise UnusableInput(f"{field} must be numbers, not {text[:20]!r}", field=field) from None
            if field == "quantiles":
                found = (number,)
                if not 0.005 <= number <= 0.995:
                    raise UnusableInput(f"quantiles lie between 0.005 and 0.995, not at {number:g}", field=field)
            else:
                if not 0 <= number <= 99:
                    raise UnusableInput(f"a level lies between 0 and 99 percent, not at {number:g}", field=field)
                found = (0.5 - number / 200, 0.5 + number / 200)
            wanted.update(round(one, 6) for one in found)
    return tuple(sorted(wanted))


def is_known(series: Series, spec: Forecasting) -> bool:
    """Whether a series has the variates and the step that the bundle was calibrated on."""
    assert spec.intervals is not None
    known = all(name in spec.intervals.errors for name in series.names)
    return known and series.frequency in (None, spec.frequency)


def past_of(series: Series, spec: Forecasting, horizon: int, budget: int) -> Past | None:
    """The origins to forecast from in the series' own past; None where it is too short for `horizon` steps ahead.

    budget: most forecasts.
    """
    steps = series.values.shape[1]
    first = max(spec.lookback, steps - horizon - PAST_HORIZONS * spec.horizon)
    # Enough origins must lie before the last whose farthest outcome is known.
    span = steps - horizon - first + 1
    count = min(MAX_ORIGINS, budget)
    if count < MIN_ORIGINS or span < spec.horizon or not spec.standardise:
        return None
    stride = max(1, -(-(steps - first) // count))
    return Past(np.arange(steps - 1, first - 1, -stride)[::-1])


def past_windows(series: Series, spec: Forecasting, past: Past) -> tuple[npt.NDArray[np.float32], Array, Array]:
    """Scaled windows (origins, variates, lookback) with their mean and scale (origins, variates, 1)."""
    windows = np.stack([series.values[:, origin - spec.lookback : origin] for origin in past.origins])
    flat = windows.reshape(-1, spec.lookback)
    scaled, mean, scale = standardise(flat)
    shape = (*windows.shape[:2], 1)
    return scaled.reshape(windows.shape), mean.reshape(shape), scale.reshape(shape)


def past_errors(series: Series, past: Past, forecasts: npt.NDArray[np.floating], mean: Array, scale: Array) -> Array:
    """Errors in units of the window's deviation (origins, variates, head); NaN where the outcome is not known yet."""
    head = forecasts.shape[2]
    padded = np.concatenate([series.values, np.full((len(series.values), head), np.nan)], axis=1)
    targets = np.stack([padded[:, origin : origin + head] for origin in past.origins])
    return (targets - mean) / scale - forecasts


@dataclass(frozen=True, eq=False)
class Shapes:
    """How validation errors spread about the forecasts of one series, in units of the window's deviation.

    up, down: by level of the central interval, how far it reaches to either side (variates, horizon).
    """

    probabilities: tuple[float, ...]
    up: dict[float, Array]
    down: dict[float, Array]

    def offsets(self, errors: Array | None) -> Array:
        """How far each quantile lies from the forecast: (probabilities, variates, horizon).

        errors: those of the series' own past, as `past_errors` gives them; None: the validation errors alone.
        """
        away = []
        factors: dict[float, Array] = {}
        for probability in self.probabilities:
            level = _level(probability)
            up, down = self.up[level], self.down[level]
            if level not in factors:
                factors[level] = np.ones(up.shape)
                if errors is not None and level:
                    factors[level] = _factors(errors[:, :, : up.shape[1]], up, down, level)
            if not level:
                away.append(np.zeros(up.shape))  # the middle is the forecast itself
            else:
                away.append(factors[level] * (up if probability > 0.5 else -down))
        return _nested(np.array(away), np.asarray(self.probabilities))


def shapes(series: Series, spec: Forecasting, horizon: int, probabilities: Sequence[float]) -> Shapes:
    """The bundle's errors for a series' variates, by name, or of all variates where it does not know a name."""
    assert spec.intervals is not None
    up, down = {}, {}
    for level in {_level(probability) for probability in probabilities}:
        up[level] = np.maximum(_shape(series.names, spec.intervals, horizon, 0.5 + level / 2), TINY)
        down[level] = np.maximum(-_shape(series.names, spec.intervals, horizon, 0.5 - level / 2), TINY)
    return Shapes(tuple(probabilities), up, down)


def _level(probability: float) -> float:
    return round(abs(2 * probability - 1), 6)


def _shape(names: Sequence[str], intervals: Intervals, horizon: int, probability: float) -> Array:
    """Validation errors at a probability (variates, horizon), interpolated between the steps that are stored."""
    steps = np.arange(1, horizon + 1)
    rows = []
    for name in names:
        table = np.array(intervals.errors.get(name, intervals.errors[""]))
        at_steps = [np.interp(probability, intervals.probabilities, row) for row in table]
        rows.append(np.interp(steps, intervals.steps, at_steps))
    return np.array(rows)


def _factors(errors: Array, up: Array, down: Array, level: float) -> Array:
    """What intervals from -down to up must be stretched by to cover the past at `level`, by band of steps."""
    scores = np.maximum(errors / up, -errors / down)
    factors = np.ones(up.shape)
    bounds = [start - 1 for start in BANDS if start <= errors.shape[2]] + [errors.shape[2]]
    for start, stop in pairwise(bounds):
        band = scores[:, :, start:stop].transpose(1, 0, 2).reshape(len(up), -1)
        known = np.isfinite(band).sum(axis=1)
        for variate in np.flatnonzero(known):
            own = band[variate][np.isfinite(band[variate])]
            # (n + 1) in place of n: the forecast to come is one more of them.
            rank = min(1.0, level * (own.size + 1) / own.size)
            factors[variate, start:stop] = max(float(np.quantile(own, rank)), 0.0)
    return factors


def _nested(found: Array, probabilities: npt.NDArray[np.float64]) -> Array:
    """Quantiles in their order: none may lie inside one that is nearer to the middle."""
    above = np.flatnonzero(probabilities > 0.5)
    below = np.flatnonzero(probabilities < 0.5)[::-1]
    found[above] = np.maximum.accumulate(found[above], axis=0)
    found[below] = np.minimum.accumulate(found[below], axis=0)
    return found
