"""How well a model would have forecast a series whose outcome is known, beside repeating the last season."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput
from app.manifest import Forecasting
from app.readers.series import Series
from app.tasks import intervals
from app.tasks.forecasting import Array

LEVELS = (0.8, 0.95)
"""Central intervals whose coverage is measured."""

_SEASONS = {"s": 60, "min": 60, "h": 24, "D": 7, "B": 5, "W": 52, "M": 12, "Q": 4}


def season_of(frequency: str | None) -> int:
    """Steps of the season that a frequency usually has: a day of minutes and hours, a week of days, a year of more."""
    if frequency is None:
        return 1
    head = frequency.split("-")[0]
    count = int("".join(letter for letter in head if letter.isdigit()) or 1)
    unit = head.lstrip("0123456789")
    if unit == "min":
        return 24 * 60 // count if 24 * 60 % count == 0 else 1
    steps = _SEASONS.get(unit if unit in _SEASONS else unit[:1], 1)
    return steps // count if steps % count == 0 else 1


def origins_of(series: Series, spec: Forecasting, horizon: int, most: int) -> npt.NDArray[np.intp]:
    """Origins over the whole series, evenly apart, each with a lookback before it and a horizon of truth behind it.

    Raises:
        UnusableInput: the series is too short for one.
    """
    first, last = spec.lookback, series.values.shape[1] - horizon
    if last < first:
        raise UnusableInput(
            f"the series has {series.values.shape[1]} steps; a backtest needs {spec.lookback} + {horizon}"
        )
    stride = max(1, -(-(last - first + 1) // most))
    return np.arange(last, first - 1, -stride)[::-1]


def backtest(
    series: Series,
    spec: Forecasting,
    origins: npt.NDArray[np.intp],
    forecasts: npt.NDArray[np.floating[Any]],
    mean: Array,
    scale: Array,
    horizons: Sequence[int],
    season: int,
    since: int = 0,
) -> dict[str, Any]:
    """Errors and coverage by horizon, over all origins and variates, and over steps 1 to the horizon.

    forecasts: the graph's (origins, variates, head), still on the scale of their windows, whose `mean` and `scale` are
    (origins, variates, 1). since: origins before it are only past to those that count.

    MSE and MAE are in units of each variate's deviation over the series; MASE in units of its mean change over a season
    (Hyndman and Koehler 2006), null where it never changes. Coverage of central intervals: as the bundle's validation
    errors make them, and as an origin's own past stretches them where it has one.
    """
    longest, counted = max(horizons), origins >= since
    season = season if season <= origins[0] else 1
    unit = series.values.std(axis=1)
    unit = np.where(unit > 0, unit, 1.0)
    change = np.abs(series.values[:, season:] - series.values[:, :-season]).mean(axis=1)
    truth = np.stack([series.values[:, at : at + longest] for at in origins])
    model = forecasts[:, :, :longest] * scale + mean
    naive = np.stack([series.values[:, at - season + np.arange(longest) % season] for at in origins])
    covered = _coverage(series, spec, origins, (truth - mean) / scale - forecasts[:, :, :longest])
    return {
        str(horizon): {
            "model": _errors((model - truth)[counted], unit, change, horizon),
            "seasonal_naive": _errors((naive - truth)[counted], unit, change, horizon),
            "coverage": {
                kind: {f"{level:g}": float(np.nanmean(inside[level][counted, :, :horizon])) for level in LEVELS}
                for kind, inside in covered.items()
                if np.isfinite(inside[LEVELS[0]][counted, :, :horizon]).any()
            },
        }
        for horizon in horizons
    }


def _errors(error: Array, unit: Array, change: Array, horizon: int) -> dict[str, float | None]:
    error = error[..., :horizon]
    scaled = error / unit[:, np.newaxis]
    by_variate = np.abs(error).mean(axis=(0, 2))
    moves = change > 0
    return {
        "mse": float((scaled**2).mean()),
        "mae": float(np.abs(scaled).mean()),
        "mase": float((by_variate[moves] / change[moves]).mean()) if moves.any() else None,
    }


def _coverage(
    series: Series, spec: Forecasting, origins: npt.NDArray[np.intp], errors: Array
) -> dict[str, dict[float, Array]]:
    """By calibration and level: 1 where the outcome lies inside, 0 where not, NaN where that calibration has no say."""
    if spec.intervals is None:
        return {}
    horizon = errors.shape[2]
    pairs = [(0.5 - level / 2, 0.5 + level / 2) for level in LEVELS]
    probabilities = sorted(edge for pair in pairs for edge in pair)
    shapes = intervals.shapes(series, spec, horizon, probabilities)
    plain = shapes.offsets(None)
    found = {
        kind: {level: np.full(errors.shape, np.nan) for level in LEVELS}
        for kind in ("validation", "validation and history")
    }
    steps = np.arange(horizon)
    for number, origin in enumerate(origins):
        reach = intervals.PAST_HORIZONS * spec.horizon + horizon
        before = np.flatnonzero((origins < origin) & (origins >= origin - reach))
        told = origins[before][:, np.newaxis] + steps < origin
        stretched = None
        if told[:, -1].sum() * 2 >= intervals.MIN_ORIGINS:
            past = np.where(told[:, np.newaxis], errors[before], np.nan)
            stretched = shapes.offsets(past)
        for kind, away in (("validation", plain), ("validation and history", stretched)):
            if away is None:
                continue
            for level, (low, high) in zip(LEVELS, pairs, strict=True):
                inside = (errors[number] >= away[probabilities.index(low)]) & (
                    errors[number] <= away[probabilities.index(high)]
                )
                found[kind][level][number] = inside
    return found
