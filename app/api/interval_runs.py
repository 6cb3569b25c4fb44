"""Quantiles of forecasts: the past of each series through the scheduler, where it is long enough to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request

from app.api.forecast_runs import run_rows
from app.engine.runtime import Model
from app.errors import UnusableInput
from app.manifest import Forecasting
from app.readers.libraries import offload_with
from app.readers.series import Series
from app.service import Service
from app.tasks import intervals
from app.tasks.forecasting import Array, Forecast, Prepared, drop_noise

MAX_ROWS = 4096
"""Forecasts of the past for one request, over all its series."""


@dataclass(frozen=True, eq=False)
class Quantiles:
    """values (probabilities, variates, horizon) in the unit of the series, and what they were calibrated on.

    calibration: "validation" (the bundle's own data), "validation and history" (brought to the level of the past of the
    request), "history" (other variates: the past of the request alone says how wide), "other data" (other variates
    and no past to learn from: no more than a guess). origins: how many forecasts of the past were made.
    """

    probabilities: tuple[float, ...]
    values: Array
    calibration: str
    origins: int


def history_needed(spec: Forecasting, probabilities: Sequence[float]) -> int | None:
    """Steps of history to keep: the lookback, or with intervals all that they can use."""
    if not probabilities:
        return spec.lookback
    return spec.lookback + (intervals.PAST_HORIZONS + 1) * spec.horizon


def check_intervals(model: Model, spec: Forecasting, horizon: int, probabilities: Sequence[float]) -> None:
    """UnusableInput where the bundle has no intervals, or none so far ahead."""
    if probabilities and spec.intervals is None:
        raise UnusableInput(
            f"{model.name}/{model.version} has no intervals; `kronserve calibrate` adds them", field="quantiles"
        )
    if probabilities and horizon > spec.horizon:
        raise UnusableInput(
            f"intervals reach as far as the model's own {spec.horizon} steps; past them errors were never measured",
            field="horizon",
        )


async def run_quantiles(
    service: Service,
    request: Request,
    model: Model,
    prepared: Sequence[Prepared],
    forecasts: Sequence[Forecast],
    probabilities: tuple[float, ...],
) -> list[Quantiles]:
    """Quantiles of every forecast, in order."""
    assert model.manifest is not None
    spec = model.manifest.task
    assert isinstance(spec, Forecasting)
    found = []
    for one, forecast in zip(prepared, forecasts, strict=True):
        horizon = forecast.values.shape[1]
        past = intervals.past_of(one.series, spec, horizon, MAX_ROWS // len(prepared))
        errors = None if past is None else await _errors(service, request, model, spec, one.series, past)

        def finish(
            one: Prepared = one, forecast: Forecast = forecast, errors: Array | None = errors, horizon: int = horizon
        ) -> Array:
            away = intervals.shapes(one.series, spec, horizon, probabilities).offsets(errors)
            away[:, one.constant] = 0.0
            quantiles: Array = forecast.values + away * one.scale
            for variate in np.flatnonzero(~one.constant):
                quantiles[:, variate] = drop_noise(quantiles[:, variate], float(one.scale[variate, 0]))
            return quantiles

        values = await offload_with("pandas", 8 * len(probabilities) * forecast.values.size, finish)
        known = intervals.is_known(one.series, spec)
        if errors is None:
            calibration = "validation" if known else "other data"
        else:
            calibration = "validation and history" if known else "history"
        found.append(Quantiles(probabilities, values, calibration, 0 if past is None else len(past.origins)))
    return found


async def _errors(
    service: Service, request: Request, model: Model, spec: Forecasting, series: Series, past: intervals.Past
) -> Array:
    size = series.values.nbytes + len(past.origins) * len(series.names) * spec.lookback * 8
    windows, mean, scale = await offload_with("pandas", size, lambda: intervals.past_windows(series, spec, past))
    answer = await run_rows(service, request, model, windows)
    return await offload_with(
        "pandas", 2 * answer.nbytes, lambda: intervals.past_errors(series, past, np.asarray(answer), mean, scale)
    )
