"""Quantiles of forecasts: the past of each series through the scheduler, where it is long enough to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from app.api.forecast_runs import run_past
from app.engine.runtime import Model
from app.errors import UnusableInput
from app.manifest import Forecasting
from app.readers.libraries import offload_with
from app.readers.offload import SERIES_BYTES
from app.service import Service
from app.tasks import intervals, past
from app.tasks.forecasting import MAX_PASSES, Array, Forecast, Prepared, drop_noise

MAX_ROWS = 4096
"""Forecasts of the past for one request, over all its series and passes."""


@dataclass(frozen=True, eq=False)
class Quantiles:
    """values (probabilities, variates, horizon) in the unit of the series, and what they were calibrated on.

    calibration: "validation" (the bundle's own data), "validation and history" (brought to the level of the past of the
    request), "history" (other variates, or steps past the head: the past of the request alone says how wide), "other
    data" (other variates and no past to learn from: no more than a guess). origins: how many points of the past were
    forecast from.
    """

    probabilities: tuple[float, ...]
    values: Array
    calibration: str
    origins: int


def history_needed(spec: Forecasting, horizon: int | None, probabilities: Sequence[float]) -> int:
    """Steps of history to keep: the lookback, or with intervals all that they can use."""
    if not probabilities:
        return spec.lookback
    # A horizon out of range is refused later, by whoever prepares the series.
    return past.steps_of_use(spec, min(max(horizon or 0, spec.horizon), MAX_PASSES * spec.horizon))


def check_intervals(
    model: Model, spec: Forecasting, prepared: Sequence[Prepared], probabilities: Sequence[float]
) -> None:
    """UnusableInput where the bundle has no intervals, or a series no past that tells of steps past the head."""
    if not probabilities:
        return
    if spec.intervals is None:
        raise UnusableInput(
            f"{model.name}/{model.version} has no intervals; `kronserve calibrate` adds them to trained bundles",
            field="quantiles",
        )
    for number, one in enumerate(prepared):
        rolled = one.horizon > spec.horizon
        if rolled and past.past_origins(one.series, spec, one.horizon, MAX_ROWS // len(prepared)) is None:
            which = f"series {one.series.id[:40]!r}: " if one.series.id is not None else f"series {number + 1}: "
            why = _why_none(one, spec, len(prepared))
            raise UnusableInput(f"{which if len(prepared) > 1 else ''}{why}", field="horizon")


def _why_none(one: Prepared, spec: Forecasting, count: int) -> str:
    """Why there are no intervals past the head."""
    ahead = f"intervals {one.horizon} steps ahead"
    if not spec.standardise:
        return f"{ahead}: this model takes values as they are, and has intervals for its own {spec.horizon} steps alone"
    steps, needed = one.series.values.shape[1], past.fewest_steps(spec, one.horizon)
    if steps < needed:
        return (
            f"{ahead}, past the model's own {spec.horizon}, come from the series' own past alone, which must "
            f"have {needed} regular steps; it has {steps}"
        )
    return (
        f"{ahead} take too many forecasts of the past for {count} series of {len(one.series.names)} variates; "
        "ask for fewer together"
    )


async def run_quantiles(
    service: Service,
    request: Request,
    model: Model,
    prepared: Sequence[Prepared],
    forecasts: Sequence[Forecast],
    probabilities: tuple[float, ...],
    filled: Sequence[npt.NDArray[np.bool_] | None] | None = None,
) -> list[Quantiles]:
    """Quantiles of every forecast, in order.

    filled: of each series, (variates, time), values that nobody sent; they tell nothing of how far forecasts miss.

    Raises:
        UnusableInput: no outcome that was sent tells of steps past the head.
    """
    assert model.manifest is not None
    spec = model.manifest.task
    assert isinstance(spec, Forecasting)
    found = []
    for one, forecast, unsent in zip(prepared, forecasts, filled or [None] * len(prepared), strict=True):
        horizon = forecast.values.shape[1]
        origins = past.past_origins(one.series, spec, horizon, MAX_ROWS // len(prepared))
        errors = None
        if origins is not None:
            made = await run_past(service, request, model, one.series, origins, horizon)
            errors = await offload_with("pandas", 2 * made.forecasts.nbytes, partial(_counting, made, spec, unsent))
            moves = ~one.constant
            told = intervals.telling(errors[:, moves], spec.horizon if forecast.rolled else None)
            if forecast.rolled and not told.all():
                field, fault = ("fill", "was filled") if unsent is not None else ("horizon", "never changes")
                why = f"come from the series' own past, and too much of it {fault}"
                raise UnusableInput(f"intervals {horizon} steps ahead {why}", field=field)
            if moves.any() and not told.any():
                errors, origins = None, None

        def finish(
            one: Prepared = one, forecast: Forecast = forecast, errors: Array | None = errors, horizon: int = horizon
        ) -> Array:
            away = intervals.shapes(one.series, spec, horizon, probabilities).offsets(errors)
            away[:, one.constant] = 0.0
            with np.errstate(over="ignore", invalid="ignore"):
                quantiles: Array = forecast.values + away * one.scale
            if not np.isfinite(quantiles).all():
                raise UnusableInput("intervals reach past float range", field="quantiles")
            return drop_noise(quantiles, one.scale, one.constant)

        # One after the other: the loop has no pause between those that are done in it.
        size = 8 * len(probabilities) * (forecast.values.size + (0 if errors is None else errors.size))
        size += len(prepared) * len(probabilities) * SERIES_BYTES
        values = await offload_with("pandas", size, finish)
        listed = intervals.is_known(one.series, spec)
        if errors is None:
            calibration = "validation" if listed else "other data"
        else:
            calibration = "validation and history" if listed and not forecast.rolled else "history"
        found.append(Quantiles(probabilities, values, calibration, 0 if origins is None else len(origins)))
    return found


def _counting(made: past.PastForecasts, spec: Forecasting, unsent: npt.NDArray[np.bool_] | None) -> Array:
    """Errors that count: outcomes that were sent, of forecasts made when the value before had been sent."""
    errors = made.errors()
    if unsent is not None:
        padded = np.pad(unsent, ((0, 0), (0, made.horizon)))
        for error, origin in zip(errors, made.origins, strict=True):
            error[padded[:, origin : origin + made.horizon] | padded[:, origin - 1 : origin]] = np.nan
    return past.counting(errors, made.origins, made.series.values.shape[1], spec.horizon)
