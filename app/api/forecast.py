"""POST /v1/models/{model}/forecast: a series in, its continuation out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Query, Request
from starlette.responses import Response

from app.api.answers import error_responses
from app.api.forecast_answers import CSV, FORECAST_SCHEMA, JSON, NPY, Answer, encoded
from app.api.forecast_runs import check_answer, run_forecasts
from app.api.interval_runs import check_intervals, history_needed, run_quantiles
from app.api.negotiation import choose
from app.api.series_query import SeriesOptions, SeriesQuery
from app.api.task_routes import require_task, task_router
from app.api.uploads import Upload, read_uploads
from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.manifest import Forecasting, TensorSpec
from app.readers.formats import format_of, read_series
from app.readers.libraries import offload_with
from app.readers.offload import INLINE_BYTES, SERIES_BYTES
from app.readers.regularity import Report, settle
from app.readers.series import Series
from app.readers.table import ID_NAMES
from app.service import Service
from app.tasks import forecasting
from app.tasks.intervals import parse_probabilities
from app.timeline import note_decoding, note_model

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_RECORDS = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "additionalProperties": {"type": ["number", "string", "null"]}},
    "description": "records, one a row: a table like that of a CSV",
}
_SERIES = {
    "type": "object",
    "required": ["target"],
    "additionalProperties": False,
    "properties": {
        "target": {
            "description": "variates x time, or a flat list for one variate",
            "oneOf": [{"type": "array", "items": _NUMBERS}, _NUMBERS],
        },
        "names": {"type": "array", "items": {"type": "string"}, "description": "one a variate"},
        "start": {"type": "string", "format": "date-time", "description": "timestamp of the first step; needs freq"},
        "freq": {"type": "string", "description": "sampling step", "examples": ["h", "10min", "D", "MS"]},
        "horizon": {"type": "integer", "minimum": 1},
    },
}
_BINARY = {"type": "string", "format": "binary"}
_CSV_EXAMPLE = "date,load,temperature\n2016-07-01T00:00:00,5.8,30.5\n2016-07-01T01:00:00,5.7,27.8\n"
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        CSV: {"schema": {"type": "string"}, "example": _CSV_EXAMPLE},
        JSON: {
            "schema": {"oneOf": [_SERIES, _RECORDS]},
            "example": {"target": [[5.8, 5.7], [30.5, 27.8]], "names": ["load", "temperature"], "horizon": 24},
        },
        NPY: {"schema": {**_BINARY, "description": "[variates, time] or [time]"}},
        "application/vnd.apache.parquet": {"schema": _BINARY},
        "application/vnd.apache.arrow.file": {"schema": _BINARY},
        "application/vnd.apache.arrow.stream": {"schema": _BINARY},
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}},
        },
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The forecast, in the unit of the series",
        "content": {
            JSON: {
                "schema": FORECAST_SCHEMA,
                "example": {
                    "model": "hot-etth1",
                    "version": "1",
                    "horizon": 2,
                    "rolled": False,
                    "frequency": "h",
                    "timestamps": ["2016-07-01T02:00:00", "2016-07-01T03:00:00"],
                    "forecast": {"load": [5.6, 5.7], "temperature": [27.1, 26.9]},
                    "input": {"rows": 168, "used": 96, "faults": 0, "filled_steps": 0, "filled_values": 0},
                },
            },
            CSV: {"schema": {"type": "string"}, "example": _CSV_EXAMPLE},
            NPY: {
                "schema": {
                    **_BINARY,
                    "description": "float64 [variates, horizon]; [series, variates, horizon] of a long file",
                }
            },
        },
    },
    **error_responses(400, 404, 406, 413, 415, 422, 429, 500, 501, 503, 504),
}

Horizon = Annotated[
    int | None, Query(description="Steps to forecast; the model's own horizon if absent, up to eight times that.")
]


Numbers = Annotated[
    list[str] | None,
    Query(description="quantiles: 0.005 to 0.995; level: percent of central intervals. Repeated, or parted by commas."),
]


async def forecast(
    request: Request,
    model: str,
    options: SeriesOptions,
    horizon: Horizon = None,
    quantiles: Numbers = None,
    level: Numbers = None,
) -> Response:
    """Forecast every series in the body from its last `lookback` steps.

    A wide table is one series of many variates; a long one (unique_id, ds, y) is many series, batched together. Query
    parameters and the JSON body's `horizon` and `freq` mean the same; where both are given they must agree. A horizon
    past the model's own takes forecasts for history. `quantiles` and `level` add prediction intervals. Ask for CSV or
    .npy by `Accept`.
    """
    service: Service = request.app.state.service
    loaded = service.repository.get(model, request.path_params.get("version"))
    note_model(request.scope, loaded)
    spec = require_task(loaded, Forecasting, "does not forecast")
    probabilities = parse_probabilities(quantiles, level)
    media_type = choose(", ".join(request.headers.getlist("accept")), (JSON, CSV, NPY))
    with service.body_budget.lease() as lease:
        uploads = await read_uploads(request, service.settings, lease)
        service.scheduler.check_room(loaded)
        note_decoding(request.scope)
        if len(uploads) > 1:
            raise InvalidRequest("one series a request; the form has several files", field="file")
        upload = uploads[0]

        def decode() -> list[Settled]:
            settled = decoded(
                upload,
                options,
                spec,
                horizon,
                loaded.inputs[0],
                service.settings.max_decoded_bytes,
                keep=lambda steps: history_needed(spec, steps, probabilities),
            )
            prepared = [one.prepared for one in settled]
            check_answer(prepared, len(probabilities))
            check_intervals(loaded, spec, prepared, probabilities)
            return settled

        settled = await offload_with("pandas", decoding_size(upload, options), decode)
    forecasts = await run_forecasts(service, request, loaded, [one.prepared for one in settled])
    answers = [Answer(forecast, one.report) for forecast, one in zip(forecasts, settled, strict=True)]
    if probabilities:
        prepared = [one.prepared for one in settled]
        filled = [one.report.filled for one in settled]
        found = await run_quantiles(service, request, loaded, prepared, forecasts, probabilities, filled)
        answers = [replace(answer, quantiles=one) for answer, one in zip(answers, found, strict=True)]

    def encode() -> bytes:
        return encoded(loaded, answers, media_type)

    # A number takes about twenty bytes as text.
    size = sum(20 * one.numbers + SERIES_BYTES for one in answers)
    content = await offload_with("pandas", size, encode)
    return Response(content, media_type=media_type)


@dataclass(frozen=True, eq=False)
class Settled:
    """A series ready for the model, and what was done to get it there."""

    prepared: forecasting.Prepared
    report: Report


def decoding_size(upload: Upload, options: SeriesQuery) -> int:
    """What decoding an upload costs, in bytes as `offload` counts them.

    Its length, or more than is ever done in the event loop where the time does not follow that: left-out steps to fill,
    a series an id, and columns that a process of their own reads. A key that JSON writes with escapes may be any name.
    """
    size = len(upload.data)
    if size > INLINE_BYTES:
        return size
    text = bytes(upload.data).lower()
    hidden = b"\\u" in text or format_of(upload.data, upload.media_type, upload.filename) in ("parquet", "arrow")
    long = options.id_column is not None or any(name.encode() in text for name in ID_NAMES)
    return INLINE_BYTES + 1 if hidden or long or options.fill is not None else size


@contextmanager
def naming(series: Series) -> Iterator[None]:
    """Refusals of one series of a long file say which."""
    try:
        yield
    except UnusableInput as error:
        if series.id is not None:
            error.message = f"series {series.id[:40]!r}: {error.message}"
        raise


def decoded(
    upload: Upload,
    options: SeriesQuery,
    spec: Forecasting,
    horizon: int | None,
    tensor: TensorSpec,
    limit: int,
    *,
    keep: Callable[[int | None], int | None],
) -> list[Settled]:
    """Every series of an upload, ready for the model.

    keep: from the horizon that was asked for (None: the model's own) to the most steps of history; None: all of them.
    """
    payload_format = format_of(upload.data, upload.media_type, upload.filename)
    payload = read_series(upload.data, payload_format, limit, options.selection(), options.freq)
    if horizon is not None and payload.horizon is not None and horizon != payload.horizon:
        raise UnusableInput(f"horizon is {payload.horizon} in the body but {horizon} beside it", field="horizon")
    steps = payload.horizon if horizon is None else horizon
    kept = keep(steps)
    settled: list[Settled] = []
    numbers = 0
    for series in payload.series:
        with naming(series):
            regular, report = settle(series, spec.lookback, keep=kept, frequency=payload.frequency, fill=options.fill)
            numbers += regular.values.size
            if numbers * 8 > limit:
                raise PayloadTooLarge(f"with left-out steps, the series have more numbers than {limit} bytes take")
            ready = forecasting.prepare(regular, spec, steps, input_name=tensor.name, width=tensor.shape[1])
            settled.append(Settled(ready, report))
    return settled


router = task_router(
    forecast, "forecast", "Forecast a series", responses=_RESPONSES, openapi_extra={"requestBody": REQUEST_BODY}
)
