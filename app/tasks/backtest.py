"""How well a model would have forecast a series whose outcome is known, beside repeating the last season."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import InferenceFailed, UnusableInput
from app.manifest import Forecasting
from app.readers.series import Series
from app.tasks import intervals
from app.tasks.forecasting import Array, check_magnitude
from app.tasks.past import (
    MAX_ORIGINS,
    MIN_KNOWN,
    MIN_ORIGINS,
    PAST_HORIZONS,
    Origins,
    PastForecasts,
    counting,
)

LEVELS = (0.8, 0.95)
"""Central intervals whose coverage is measured."""

_EDGES = sorted(0.5 + side * level / 2 for level in LEVELS for side in (-1, 1))

MAX_COMPARED = 1 << 28
"""Errors that a backtest goes through to find how the intervals of every origin would have been stretched: of many
origins, variates and steps, fewer of the past than an answer takes, but never fewer than it needs."""

PART = 1 << 20
"""Errors that are gone through at a time."""

MAX_NUMBERS = 1 << 24
"""Numbers that the forecasts of one backtest may have: 128 MiB, and several times as much to measure them."""

_SEASONS = {"s": 60, "min": 60, "h": 24, "D": 7, "B": 5, "W": 52, "M": 12, "Q": 4}


def season_for(series: Series, horizon: int, asked: int | None) -> int:
    """Steps of the season to measure a series with: the one that was asked for, or the usual one.

    Raises:
        UnusableInput: the one that was asked for leaves no outcome of `horizon` steps behind it.
    """
    steps = series.values.shape[1]
    if asked is None:
        return season_of(series.frequency, steps - horizon)
    if asked > steps - horizon:
        raise UnusableInput(
            f"the series has {steps} steps; a season of {asked} needs {asked} + {horizon}", field="season"
        )
    return asked


def season_of(frequency: str | None, most: int) -> int:
    """Steps of the season that a frequency usually has: a day of minutes and hours, a week of days, a year of more.

    1 where that is more than `most`.
    """
    steps = 1 if frequency is None else _usual_season(frequency)
    return steps if steps <= most else 1


def _usual_season(frequency: str) -> int:
    head = frequency.split("-")[0]
    count = int("".join(letter for letter in head if letter.isdigit()) or 1)
    unit = head.lstrip("0123456789")
    if unit == "min":
        return 24 * 60 // count if 24 * 60 % count == 0 else 1
    steps = _SEASONS.get(unit if unit in _SEASONS else unit[:1], 1)
    return steps // count if steps % count == 0 else 1


def origins_of(series: Series, spec: Forecasting, horizon: int, season: int, most: int) -> Origins:
    """Origins over the whole series, evenly apart, each with a lookback and a season before it and a horizon of truth
    behind it: the model and the baseline forecast from the same ones.

    At most `most`, and fewer of many variates and long horizons: their forecasts have MAX_NUMBERS together.

    Raises:
        UnusableInput: the series is too short for one, or has values past float range.
    """
    first, last = max(spec.lookback, season), series.values.shape[1] - horizon
    if last < first:
        raise UnusableInput(f"the series has {series.values.shape[1]} steps; a backtest needs {first} + {horizon}")
    check_magnitude(series.values)
    most = max(1, min(most, MAX_NUMBERS // (len(series.values) * horizon)))
    stride = max(1, -(-(last - first + 1) // most))
    return np.arange(last, first - 1, -stride)[::-1]


class Coverage:
    """Which outcomes lay inside their intervals, found a part of the origins at a time, since that takes long.

    by: calibration and level -> (origins, variates, horizon), 1 where the outcome lies inside, 0 where not, NaN where
    that calibration has no say.

    Intervals are those of an answer. After a window that never changes they have no width.
    """

    def __init__(self, past: PastForecasts, spec: Forecasting, filled: npt.NDArray[np.bool_] | None = None) -> None:
        """past: every pass of its forecasts has been taken. filled: (variates, time), values that are no outcomes."""
        self.by: dict[str, dict[float, Array]] = {}
        self.part = len(past.origins)
        """Origins to measure at a time, which takes about a tenth of a second."""
        self._past, self._spec, self._origins = past, spec, past.origins
        if spec.intervals is None:
            return
        self._errors = past.errors()
        outcomes = np.stack([past.series.values[:, at : at + past.horizon] for at in past.origins])
        known = np.ones(outcomes.shape, bool)
        if filled is not None:
            known = ~np.stack([filled[:, at : at + past.horizon] for at in past.origins])
            self._errors[~known] = np.nan
        shapes = intervals.shapes(past.series, spec, past.horizon, _EDGES)
        self._shapes, self._plain = shapes, shapes.offsets(None)
        # Of windows that never change nothing is stretched: what they say is the same for every level and calibration.
        still = np.broadcast_to(past.constant[:, :, np.newaxis], outcomes.shape)
        self._still = np.where(still & known, outcomes == past.forecasts, np.nan)
        self.by = {
            kind: {level: np.full(outcomes.shape, np.nan) for level in LEVELS}
            for kind in ("validation", "validation and history")
        }
        numbers = max(1, outcomes[0].size * len(self._origins))
        self._most = min(MAX_ORIGINS, max(MIN_ORIGINS, MAX_COMPARED // numbers))
        self.part = max(1, PART // (outcomes[0].size * self._most))

    def measure(self, start: int, stop: int) -> None:
        """Look at the origins from number `start` up to `stop`."""
        horizon = self._past.horizon
        for number in range(start, min(stop, len(self._origins))) if self.by else ():
            back = self._origins[number] - self._origins
            before = np.flatnonzero((back > 0) & (back <= horizon + PAST_HORIZONS * self._spec.horizon))
            stretched = None
            if (back[before] >= horizon).sum() >= MIN_KNOWN:
                before = before[:: -max(1, -(-len(before) // self._most))][::-1]
                origins, end, head = self._origins[before], int(self._origins[number]), self._spec.horizon
                counted = counting(self._errors[before], origins, end, head)
                stretched = self._shapes.offsets(counted)
                if horizon > head:  # where an answer would have none
                    stretched[:, ~intervals.telling(counted, head), head:] = np.nan
            error, still = self._errors[number], self._still[number]
            for kind, away in (("validation", self._plain), ("validation and history", stretched)):
                if away is None:
                    continue
                for level in LEVELS:
                    low, high = away[_EDGES.index(0.5 - level / 2)], away[_EDGES.index(0.5 + level / 2)]
                    inside = np.where(np.isnan(error) | np.isnan(low), still, (error >= low) & (error <= high))
                    self.by[kind][level][number] = inside


def backtest(
    past: PastForecasts,
    spec: Forecasting,
    horizons: Sequence[int],
    season: int,
    since: int = 0,
    filled: npt.NDArray[np.bool_] | None = None,
    coverage: Coverage | None = None,
) -> dict[str, Any]:
    """Errors and coverage by horizon, over all origins and variates, and over steps 1 to the horizon.

    past: every pass of its forecasts has been taken, and every outcome is known. since: origins before it are only past
    to those that count, and those have a season before them. filled: (variates, time), values of the series that nobody
    sent; they are no outcomes. coverage: of all origins, where it was measured beforehand.

    MSE and MAE are in units of each variate's deviation over what was sent; MASE in units of its mean change over a
    season (Hyndman and Koehler 2006), null where it never changes. Coverage of central intervals: as the bundle's
    validation errors make them up to the head, and as an origin's own past stretches them where it has one.

    Raises:
        UnusableInput: a horizon has no outcome that was sent. InferenceFailed: a forecast is NaN or infinite.
    """
    longest, counted = max(horizons), past.origins >= since
    origins, forecasts = past.origins[counted], past.forecasts[counted, :, :longest]
    assert season <= origins[0]
    if not np.isfinite(forecasts).all():
        raise InferenceFailed("the model's forecast is not finite")
    # By a power of two near each variate's largest value: no digit changes, and no square is past float range.
    power = -np.frexp(np.abs(past.series.values).max(axis=1, keepdims=True))[1]
    values = np.ldexp(past.series.values, power)
    outcomes = values if filled is None else np.where(filled, np.nan, values)
    mean, _ = _means(outcomes, (1,))
    variance, _ = _means((outcomes - mean[:, np.newaxis]) ** 2, (1,))
    unit = np.where(variance > 0, np.sqrt(variance), 1.0)
    change, _ = _means(np.abs(outcomes[:, season:] - outcomes[:, :-season]), (1,))
    truth = np.stack([outcomes[:, at : at + longest] for at in origins])
    naive = np.stack([values[:, at - season + np.arange(longest) % season] for at in origins])
    errors = {"model": np.ldexp(forecasts, power) - truth, "seasonal_naive": naive - truth}
    if coverage is None:
        coverage = Coverage(past, spec, filled)
        coverage.measure(0, len(past.origins))
    return {
        str(horizon): {
            **{who: _errors(error[..., :horizon], unit, change) for who, error in errors.items()},
            "coverage": {
                kind if horizon <= spec.horizon else "history": {
                    f"{level:g}": float(np.nanmean(inside[level][counted, :, :horizon])) for level in LEVELS
                }
                for kind, inside in coverage.by.items()
                if np.isfinite(inside[LEVELS[0]][counted, :, :horizon]).any()
                and (horizon <= spec.horizon or kind != "validation")
            },
        }
        for horizon in horizons
    }


def _errors(error: Array, unit: Array, change: Array) -> dict[str, float | None]:
    """Of errors (origins, variates, steps), NaN where the outcome is not known."""
    by_variate, known = _means(np.abs(error), (0, 2))
    if not known.any():
        raise UnusableInput("no outcome was sent within the horizon: all were filled", field="fill")
    scaled = error / unit[:, np.newaxis]
    moves = (change > 0) & known
    return {
        "mse": float(np.nanmean(scaled**2)),
        "mae": float(np.nanmean(np.abs(scaled))),
        "mase": float((by_variate[moves] / change[moves]).mean()) if moves.any() else None,
    }


def _means(values: Array, axes: tuple[int, ...]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Means of what is known along `axes`, 0 where nothing is, and where anything is."""
    counts = (~np.isnan(values)).sum(axis=axes)
    return np.nansum(values, axis=axes) / np.maximum(counts, 1), counts > 0
