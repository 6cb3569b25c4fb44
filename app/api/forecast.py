"""POST /v1/models/{model}/forecast: a series in, its continuation out."""

from __future__ import annotations

import csv
import io
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import Query, Request
from starlette.responses import Response

from app.api.answers import error_responses
from app.api.negotiation import choose
from app.api.task_routes import require_task, task_router
from app.api.uploads import Upload, read_uploads
from app.api.waiting import answer_or_disconnect
from app.engine.runtime import Model
from app.errors import InvalidRequest, UnsupportedMediaType, UnusableInput
from app.manifest import Forecasting
from app.readers import series
from app.readers.calendar import isoformat
from app.readers.libraries import offload_with
from app.service import Service
from app.tasks import forecasting

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
UNSPECIFIC = frozenset({"", "application/octet-stream", "text/plain", "application/vnd.ms-excel"})
"""Media types that senders give without knowing: the file's name or first bytes decide."""

_NUMBERS = {"type": "array", "items": {"type": "number"}}
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
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        CSV: {"schema": {"type": "string"}, "example": _CSV_EXAMPLE},
        JSON: {
            "schema": _SERIES,
            "example": {"target": [[5.8, 5.7], [30.5, 27.8]], "names": ["load", "temperature"], "horizon": 24},
        },
        NPY: {"schema": {**_BINARY, "description": "[variates, time] or [time]"}},
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}},
        },
    },
}
_FORECAST = {
    "type": "object",
    "required": ["model", "version", "horizon", "frequency", "timestamps", "forecast"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "horizon": {"type": "integer"},
        "frequency": {"type": ["string", "null"], "description": "pandas offset alias"},
        "timestamps": {"type": ["array", "null"], "items": {"type": "string", "format": "date-time"}},
        "forecast": {"type": "object", "additionalProperties": _NUMBERS},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The forecast, in the unit of the series",
        "content": {
            JSON: {
                "schema": _FORECAST,
                "example": {
                    "model": "hot-etth1",
                    "version": "1",
                    "horizon": 2,
                    "frequency": "h",
                    "timestamps": ["2016-07-01T02:00:00", "2016-07-01T03:00:00"],
                    "forecast": {"load": [5.6, 5.7], "temperature": [27.1, 26.9]},
                },
            },
            CSV: {"schema": {"type": "string"}, "example": _CSV_EXAMPLE},
            NPY: {"schema": {**_BINARY, "description": "float64 [variates, horizon]"}},
        },
    },
    **error_responses(400, 404, 406, 413, 415, 422, 429, 500, 503, 504),
}

Horizon = Annotated[int | None, Query(description="Steps to forecast; the model's own horizon if absent.")]
Freq = Annotated[
    str | None, Query(description="Sampling step (h, 10min, D, MS, ...); inferred from timestamps if absent.")
]


async def forecast(request: Request, model: str, horizon: Horizon = None, freq: Freq = None) -> Response:
    """Forecast the series in the body from its last `lookback` steps.

    Query parameters and the JSON body's `horizon` and `freq` mean the same; where both are given they must agree. Ask
    for CSV or .npy by `Accept`.
    """
    service: Service = request.app.state.service
    loaded = service.repository.get(model, request.path_params.get("version"))
    spec = require_task(loaded, Forecasting, "does not forecast")
    media_type = choose(", ".join(request.headers.getlist("accept")), (JSON, CSV, NPY))
    with service.body_budget.lease() as lease:
        uploads = await read_uploads(request, service.settings, lease)
        if len(uploads) > 1:
            raise InvalidRequest("one series a request; the form has several files", field="file")
        upload = uploads[0]

        def decode() -> forecasting.Prepared:
            payload = series.read_series(upload.data, _format(upload), service.settings.max_decoded_bytes, freq)
            if horizon is not None and payload.horizon is not None and horizon != payload.horizon:
                raise UnusableInput(
                    f"horizon is {payload.horizon} in the body but {horizon} beside it", field="horizon"
                )
            steps = payload.horizon if horizon is None else horizon
            return forecasting.prepare(payload.series, spec, steps, input_name=loaded.inputs[0].name)

        prepared = await offload_with("pandas", len(upload.data), decode)
    future = service.scheduler.submit(
        loaded, prepared.tensors, loaded.ordinary_outputs[:1], timeout=service.settings.request_timeout
    )
    outputs = await answer_or_disconnect(future, request.receive)

    def encode() -> bytes:
        return _encode(loaded, forecasting.finish(prepared, outputs), media_type)

    # A number takes about twenty bytes as text.
    content = await offload_with("pandas", 20 * prepared.horizon * len(prepared.series.names), encode)
    return Response(content, media_type=media_type)


def _format(upload: Upload) -> str:
    known = series.MEDIA_TYPES.get(upload.media_type)
    if known is not None:
        return known
    if upload.media_type not in UNSPECIFIC:
        raise UnsupportedMediaType(f"Content-Type must be one of {', '.join(series.MEDIA_TYPES)}, multipart/form-data")
    suffix = upload.filename.lower().rpartition(".")[2]
    return suffix if suffix in series.MEDIA_TYPES.values() else series.sniff(upload.data)


def _encode(model: Model, answer: forecasting.Forecast, media_type: str) -> bytes:
    if media_type == NPY:
        stream = io.BytesIO()
        np.save(stream, answer.values, allow_pickle=False)
        return stream.getvalue()
    stamps = None if answer.timestamps is None else isoformat(answer.timestamps)
    if media_type == CSV:
        return _csv(answer, stamps)
    document = {
        "model": model.name,
        "version": model.version,
        "horizon": answer.values.shape[1],
        "frequency": answer.frequency,
        "timestamps": stamps,
        "forecast": dict(zip(answer.names, np.ascontiguousarray(answer.values), strict=True)),
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _csv(answer: forecasting.Forecast, stamps: list[str] | None) -> bytes:
    header = io.StringIO()
    csv.writer(header, lineterminator="").writerow([answer.time_name if stamps else "step", *answer.names])
    steps = stamps or map(str, range(1, answer.values.shape[1] + 1))
    # orjson writes the numbers ten times as fast as csv does; between its brackets they stand as CSV has them.
    rows = orjson.dumps(np.ascontiguousarray(answer.values.T), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    lines = (f"{step},{row}" for step, row in zip(steps, rows[2:-2].split("],["), strict=True))
    return "\n".join((header.getvalue(), *lines, "")).encode()


router = task_router(
    forecast, "forecast", "Forecast a series", responses=_RESPONSES, openapi_extra={"requestBody": _REQUEST_BODY}
)
