"""The forecasting task: from a series to the graph's tensor, and from its answer back to the series' own unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.errors import InferenceFailed, UnusableInput
from app.manifest import Forecasting
from app.readers import calendar
from app.readers.series import MAX_VARIATES, Series

if TYPE_CHECKING:
    import pandas as pd

MAX_MAGNITUDE = 1e300
"""Differences of larger values overflow float64."""

MAX_PASSES = 8
"""Horizons past the head take the forecast for history and run the model again, this often at most."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tensors for the graph, {input: float32 (1, variates, lookback)}, and what turns its answer into a forecast.

    mean, scale: (variates, 1). constant: (variates), true where the window never changes.
    """

    tensors: Mapping[str, npt.NDArray[np.float32]]
    series: Series
    horizon: int
    mean: Array
    scale: Array
    constant: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Forecast:
    """values (variates, horizon), in the unit of the series; timestamps (horizon) where the series has any.

    `rolled`: its later steps took earlier ones for history.
    """

    names: tuple[str, ...]
    timestamps: pd.DatetimeIndex | None
    values: Array
    frequency: str | None
    time_name: str
    id: str | None = None
    rolled: bool = False


def standardise(window: Array) -> tuple[npt.NDArray[np.float32], Array, Array]:
    """Bring each variate's window (variates, lookback) to mean 0 and standard deviation 1.

    Returns the scaled window as float32, and mean and scale (variates, 1) with window = scaled * scale + mean. A window
    that never changes is scaled to zeros with scale 1.

    Every variate is measured from its own first value and in units of its own range, so that neither a large offset nor
    a tiny or huge unit costs digits: the scaled window is the same for x, 1e-6 x, 1e6 x and x + offset.
    """
    origin = window[:, :1]
    distance = window - origin
    reach = np.abs(distance).max(axis=1, keepdims=True)
    # Below the normal range there are no digits left to forecast from.
    varies = reach >= np.finfo(np.float64).tiny
    unit = np.where(varies, reach, 1.0)
    relative = np.where(varies, distance / unit, 0.0)
    centre = relative.mean(axis=1, keepdims=True)
    deviation = np.where(varies, relative.std(axis=1, keepdims=True), 1.0)
    scaled = (relative - centre) / deviation
    return scaled.astype(np.float32), origin + centre * unit, deviation * unit


def as_taken(window: Array, spec: Forecasting) -> tuple[npt.NDArray[np.float32], Array, Array]:
    """Windows (variates, lookback) as the model takes them, standardised or as they are; the mean and scale of each.

    Raises:
        UnusableInput: values past float range.
    """
    if spec.standardise:
        check_magnitude(window)
        return standardise(window)
    if np.abs(window).max() > np.finfo(np.float32).max:
        raise UnusableInput("this model takes values as they are, in float32; some are too large for it")
    return window.astype(np.float32), np.zeros((len(window), 1)), np.ones((len(window), 1))


def check_magnitude(values: Array) -> None:
    """UnusableInput for values past MAX_MAGNITUDE."""
    if np.abs(values).max() > MAX_MAGNITUDE:
        raise UnusableInput(f"values past {MAX_MAGNITUDE:g} cannot be forecast")


def prepare(
    series: Series,
    spec: Forecasting,
    horizon: int | None = None,
    *,
    input_name: str = "series",
    width: int = -1,
) -> Prepared:
    """Take the last `spec.lookback` steps of every variate to the tensor `input_name`.

    Args:
        horizon: steps to answer, 1 to MAX_PASSES heads of `spec.horizon`; one head if None.
        width: variates that the graph takes; -1: any number.

    Raises:
        UnusableInput: too short a series, a horizon out of range, variates that the model does not take, or values past
        float range.
    """
    variates, steps = series.values.shape
    if horizon is None:
        horizon = spec.horizon
    most = MAX_PASSES * spec.horizon
    if not 1 <= horizon <= most:
        raise UnusableInput(
            f"horizon is {horizon}; this model forecasts 1 to {spec.horizon} steps, and rolls forward to {most}",
            field="horizon",
        )
    if steps < spec.lookback:
        raise UnusableInput(f"the series has {steps} steps; the lookback of this model is {spec.lookback}")
    if variates > MAX_VARIATES:
        raise UnusableInput(f"the series has {variates} variates; at most {MAX_VARIATES} are forecast together")
    if width not in (-1, variates):
        raise UnusableInput(f"the series has {variates} variates; this model takes exactly {width}")

    window = series.values[:, -spec.lookback :]
    scaled, mean, scale = as_taken(window, spec)
    constant = np.asarray(~scaled.any(axis=1) & spec.standardise)
    return Prepared({input_name: scaled[np.newaxis]}, series, horizon, mean, scale, constant)


def finish(prepared: Prepared, outputs: Mapping[str, npt.NDArray[np.generic]]) -> Forecast:
    """The forecast from the graph's one output (1, variates, spec.horizon), of which the first steps are taken: all of
    them where the horizon is past the head.

    A variate that was constant stays what it was: the graph saw zeros there and knows no scale. The others are rounded
    to a millionth of their spread, which is what float32 arithmetic resolves; digits past it would only look exact.

    Raises:
        InferenceFailed: the graph gave NaN or infinity.
    """
    (output,) = outputs.values()
    values = unscaled(output[0, :, : prepared.horizon], prepared.mean, prepared.scale, prepared.constant)
    if not np.isfinite(values).all():
        raise InferenceFailed("the model's forecast is not finite")
    values = drop_noise(values, prepared.scale, prepared.constant)
    series, timestamps = prepared.series, None
    if series.timestamps is not None and series.frequency is not None:
        timestamps = calendar.stamps_after(series.timestamps, series.frequency, values.shape[1])
    return Forecast(series.names, timestamps, values, series.frequency, series.time_name, series.id)


def unscaled(answer: npt.NDArray[Any], mean: Array, scale: Array, constant: npt.NDArray[np.bool_]) -> Array:
    """The graph's answer (.., variates, steps) in the unit of the series; a constant variate stays what it was."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(constant[..., np.newaxis], mean, answer.astype(np.float64) * scale + mean)


def advanced(windows: Array, forecasts: Array) -> Array:
    """The windows (.., variates, lookback) that follow when forecasts (.., variates, steps) are taken for history."""
    return np.concatenate([windows, forecasts], axis=-1)[..., -windows.shape[-1] :]


def roll(prepared: Prepared, forecast: Forecast, spec: Forecasting) -> Prepared:
    """The next pass, for the steps that `forecast` does not reach: its values are taken for history."""
    series = prepared.series
    stamps = series.timestamps
    if stamps is not None and forecast.timestamps is not None:
        stamps = calendar.follow(stamps, forecast.timestamps)[-spec.lookback :]
    values = advanced(series.values[:, -spec.lookback :], forecast.values)
    (name,) = prepared.tensors
    rest = prepared.horizon - forecast.values.shape[1]
    return prepare(replace(series, values=values, timestamps=stamps), spec, rest, input_name=name)


def joined(passes: Sequence[Forecast]) -> Forecast:
    """One forecast of passes that follow one another."""
    first = passes[0]
    if len(passes) == 1:
        return first
    stamps = first.timestamps
    for one in passes[1:]:
        stamps = None if stamps is None or one.timestamps is None else calendar.follow(stamps, one.timestamps)
    values = np.concatenate([one.values for one in passes], axis=1)
    return replace(first, timestamps=stamps, values=values, rolled=True)


def drop_noise(values: Array, scale: Array, constant: npt.NDArray[np.bool_]) -> Array:
    """Values (.., variates, steps) in decimals down to a millionth of their variate's scale (variates, 1); as they are
    where decimals do not reach that far, or the variate is constant."""
    decimals = 6 - np.floor(np.log10(scale[:, 0])).astype(int)
    rounded = values.copy()
    for places in np.unique(decimals[~constant]):
        if -15 <= places <= 15:
            rows = (decimals == places) & ~constant
            rounded[..., rows, :] = values[..., rows, :].round(places)
    return rounded
