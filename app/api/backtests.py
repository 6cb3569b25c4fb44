"""POST /v1/models/{model}/evaluate: a series with its outcome in, the model's errors on it out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import Query, Request
from starlette.responses import Response

from app.api import deadline
from app.api.answers import error_responses
from app.api.forecast import REQUEST_BODY, Settled, decoded, decoding_size, naming
from app.api.forecast_runs import run_past
from app.api.series_query import SeriesOptions
from app.api.task_routes import require_task, task_router
from app.api.uploads import read_uploads
from app.engine.runtime import Model
from app.errors import InvalidRequest, UnusableInput
from app.manifest import Forecasting
from app.readers.libraries import offload_with
from app.readers.offload import INLINE_BYTES
from app.readers.regularity import Report
from app.readers.series import Series
from app.service import Service
from app.tasks import backtest
from app.tasks.forecasting import MAX_PASSES
from app.tasks.past import Origins
from app.timeline import note_decoding, note_model

JSON = "application/json"
MAX_WINDOWS = 1000
MAX_HORIZONS = 50

_ERRORS = {
    "type": "object",
    "properties": {"mse": {"type": "number"}, "mae": {"type": "number"}, "mase": {"type": ["number", "null"]}},
}
_HORIZON = {
    "type": "object",
    "required": ["model", "seasonal_naive", "coverage"],
    "properties": {
        "model": _ERRORS,
        "seasonal_naive": _ERRORS,
        "coverage": {"type": "object", "description": "by calibration and level, of bundles with intervals"},
    },
}
_SERIES = {
    "type": "object",
    "required": ["id", "windows", "season", "horizons", "input"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "windows": {"type": "integer"},
        "season": {"type": "integer"},
        "horizons": {"type": "object", "additionalProperties": _HORIZON},
        "input": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Errors by horizon",
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["model", "version", "series"],
                    "properties": {
                        "model": {"type": "string"},
                        "version": {"type": "string"},
                        "series": {"type": "array", "items": _SERIES},
                    },
                }
            }
        },
    },
    **error_responses(400, 404, 413, 415, 422, 429, 500, 501, 503, 504),
}

Horizons = Annotated[
    list[str] | None, Query(description="Horizons to measure, repeated or parted by commas; the model's own if absent.")
]
Windows = Annotated[int, Query(ge=1, le=MAX_WINDOWS, description="Most forecasts of each series, evenly apart.")]
Season = Annotated[
    int | None,
    Query(
        ge=1,
        le=100_000,
        description="Steps of the season that the baseline repeats; by freq if absent, or 1 where that is too long.",
    ),
]


async def evaluate(
    request: Request,
    model: str,
    options: SeriesOptions,
    horizon: Horizons = None,
    windows: Windows = 200,
    season: Season = None,
) -> Response:
    """Forecast every series in the body from many points in its past and compare with what came.

    MSE, MAE and MASE of the model and of repeating the last season, and how often central intervals of 80 and 95 %
    held, for each horizon. The file is read as for a forecast; what counts is its regular end. Of `fill`, only ffill:
    values that it fills are history, but no outcomes.
    """
    service: Service = request.app.state.service
    loaded = service.repository.get(model, request.path_params.get("version"))
    note_model(request.scope, loaded)
    spec = require_task(loaded, Forecasting, "does not forecast")
    if options.fill == "linear":
        raise UnusableInput(
            "a line to a later value tells a forecast what it could not know; a backtest fills with ffill", field="fill"
        )
    if not spec.standardise:
        raise UnusableInput(f"{loaded.name} takes values as they are; only models that scale windows are measured")
    horizons = _horizons(horizon, spec)
    with service.body_budget.lease() as lease:
        uploads = await read_uploads(request, service.settings, lease)
        service.scheduler.check_room(loaded)
        note_decoding(request.scope)
        if len(uploads) > 1:
            raise InvalidRequest("one file a request; the form has several", field="file")

        def decode() -> list[_Known]:
            settled = decoded(
                uploads[0],
                options,
                spec,
                max(horizons),
                loaded.inputs[0],
                service.settings.max_decoded_bytes,
                keep=lambda _: None,
            )
            most = max(1, windows // len(settled))
            return [_known(one, spec, max(horizons), season, most) for one in settled]

        known = await offload_with("pandas", decoding_size(uploads[0], options), decode)
        answers = [await _measured(service, request, loaded, spec, one, horizons) for one in known]
    document = {"model": loaded.name, "version": loaded.version, "series": answers}
    return Response(orjson.dumps(document), media_type=JSON)


@dataclass(frozen=True, eq=False)
class _Known:
    """A series, the points to forecast from and the season of the baseline."""

    series: Series
    report: Report
    origins: Origins
    season: int


def _known(settled: Settled, spec: Forecasting, horizon: int, season: int | None, windows: int) -> _Known:
    series = settled.prepared.series
    with naming(series):
        steps = backtest.season_for(series, horizon, season)
        return _Known(series, settled.report, backtest.origins_of(series, spec, horizon, steps, windows), steps)


async def _measured(
    service: Service, request: Request, model: Model, spec: Forecasting, known: _Known, horizons: list[int]
) -> dict[str, Any]:
    """One series' part of the answer."""
    series, report = known.series, known.report
    past = await run_past(service, request, model, series, known.origins, max(horizons))
    # In threads whatever the size, as the time does not follow that. Part by part, so that others come in between.
    coverage = await offload_with("pandas", INLINE_BYTES + 1, lambda: backtest.Coverage(past, spec, report.filled))
    for start in range(0, len(known.origins), coverage.part):
        deadline.remaining(request)
        part = partial(coverage.measure, start, start + coverage.part)
        await offload_with("pandas", INLINE_BYTES + 1, part)

    def measure() -> dict[str, Any]:
        with naming(series):
            return backtest.backtest(past, spec, horizons, known.season, filled=report.filled, coverage=coverage)

    return {
        "id": series.id,
        "windows": len(known.origins),
        "season": known.season,
        "horizons": await offload_with("pandas", INLINE_BYTES + 1, measure),
        "input": report.counts(),
    }


def _horizons(given: list[str] | None, spec: Forecasting) -> list[int]:
    if given is None:
        return [spec.horizon]
    if sum(text.count(",") + 1 for text in given) > MAX_HORIZONS:
        raise UnusableInput(f"a backtest measures {MAX_HORIZONS} horizons at most", field="horizon")
    try:
        horizons = sorted({int(part) for text in given for part in text.split(",")})
    except ValueError:
        raise UnusableInput("horizon must be whole numbers", field="horizon") from None
    most = MAX_PASSES * spec.horizon
    if not 1 <= horizons[0] <= horizons[-1] <= most:
        raise UnusableInput(f"a backtest measures horizons of 1 to {most} steps", field="horizon")
    return horizons


router = task_router(
    evaluate, "evaluate", "Backtest on a series", responses=_RESPONSES, openapi_extra={"requestBody": REQUEST_BODY}
)
