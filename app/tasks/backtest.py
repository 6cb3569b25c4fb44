"""How well a model would have forecast a series whose outcome is known, beside repeating the last season."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.errors import UnusableInput
from app.manifest import Forecasting
from app.readers.series import Series
from app.tasks import intervals
from app.tasks.forecasting import Array
from app.tasks.past import MIN_ORIGINS, PAST_HORIZONS, Origins, PastForecasts, counting

LEVELS = (0.8, 0.95)
"""Central intervals whose coverage is measured."""

MAX_NUMBERS = 1 << 24
"""Numbers that the forecasts of one backtest may have: 128 MiB, and several times as much to measure them."""

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


def origins_of(series: Series, spec: Forecasting, horizon: int, most: int) -> Origins:
    """Origins over the whole series, evenly apart, each with a lookback before it and a horizon of truth behind it.

    At most `most`, and fewer of many variates and long horizons: their forecasts have MAX_NUMBERS together.

    Raises:
        UnusableInput: the series is too short for one.
    """
    first, last = spec.lookback, series.values.shape[1] - horizon
    if last < first:
        raise UnusableInput(
            f"the series has {series.values.shape[1]} steps; a backtest needs {spec.lookback} + {horizon}"
        )
    most = max(1, min(most, MAX_NUMBERS // (len(series.values) * horizon)))
    stride = max(1, -(-(last - first + 1) // most))
    return np.arange(last, first - 1, -stride)[::-1]


def backtest(
    past: PastForecasts, spec: Forecasting, horizons: Sequence[int], season: int, since: int = 0
) -> dict[str, Any]:
    """Errors and coverage by horizon, over all origins and variates, and over steps 1 to the horizon.

    past: every pass of its forecasts has been taken, and every outcome is known. since: origins before it are only past
    to those that count.

    MSE and MAE are in units of each variate's deviation over the series; MASE in units of its mean change over a season
    (Hyndman and Koehler 2006), null where it never changes. Coverage of central intervals: as the bundle's validation
    errors make them up to the head, and as an origin's own past stretches them where it has one.
    """
    series, origins = past.series, past.origins
    longest, counted = max(horizons), origins >= since
    season = season if season <= origins[0] else 1
    unit = series.values.std(axis=1)
    unit = np.where(unit > 0, unit, 1.0)
    change = np.abs(series.values[:, season:] - series.values[:, :-season]).mean(axis=1)
    truth = np.stack([series.values[:, at : at + longest] for at in origins])
    model = past.forecasts[:, :, :longest]
    naive = np.stack([series.values[:, at - season + np.arange(longest) % season] for at in origins])
    covered = _coverage(past, spec)
    return {
        str(horizon): {
            "model": _errors((model - truth)[counted], unit, change, horizon),
            "seasonal_naive": _errors((naive - truth)[counted], unit, change, horizon),
            "coverage": {
                kind if horizon <= spec.horizon else "history": {
                    f"{level:g}": float(np.nanmean(inside[level][counted, :, :horizon])) for level in LEVELS
                }
                for kind, inside in covered.items()
                if np.isfinite(inside[LEVELS[0]][counted, :, :horizon]).any()
                and (horizon <= spec.horizon or kind != "validation")
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


def _coverage(past: PastForecasts, spec: Forecasting) -> dict[str, dict[float, Array]]:
    """By calibration and level: 1 where the outcome lies inside, 0 where not, NaN where that calibration has no say."""
    if spec.intervals is None:
        return {}
    errors, origins, horizon = past.errors(), past.origins, past.horizon
    pairs = [(0.5 - level / 2, 0.5 + level / 2) for level in LEVELS]
    probabilities = sorted(edge for pair in pairs for edge in pair)
    shapes = intervals.shapes(past.series, spec, horizon, probabilities)
    plain = shapes.offsets(None)
    found = {
        kind: {level: np.full(errors.shape, np.nan) for level in LEVELS}
        for kind in ("validation", "validation and history")
    }
    for number, origin in enumerate(origins):
        back = origin - origins
        before = np.flatnonzero((back > 0) & (back <= horizon + PAST_HORIZONS * spec.horizon))
        stretched = None
        if (back[before] >= horizon).sum() * 2 >= MIN_ORIGINS:
            stretched = shapes.offsets(counting(errors[before], origins[before], int(origin), spec.horizon))
        for kind, away in (("validation", plain), ("validation and history", stretched)):
            if away is None:
                continue
            for level, (low, high) in zip(LEVELS, pairs, strict=True):
                inside = (errors[number] >= away[probabilities.index(low)]) & (
                    errors[number] <= away[probabilities.index(high)]
                )
                found[kind][level][number] = inside
    return found
