"""KServe's time-series API: POST /v1/timeseries/forecast and GET /v1/timeseries/models.

Source: kserve, python/kserve/kserve/protocol/rest/timeseries. It leaves the orientation of a multivariate series open;
here, as in its own tests, series are [variates][time], and so are the forecasts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.responses import Response

from app.api import deadline, json_text
from app.api.answers import error_responses
from app.api.forecast_runs import check_answer, run_forecasts
from app.api.interval_runs import Quantiles, check_intervals, history_needed, run_quantiles
from app.api.task_routes import require_task
from app.engine.runtime import Model
from app.errors import InvalidRequest, KronserveError, UnusableInput
from app.manifest import Forecasting, TensorSpec
from app.readers.bounded import read_body
from app.readers.calendar import isoformat
from app.readers.formats import started
from app.readers.libraries import offload_with
from app.readers.numeric_json import MAX_NUMBERS, to_array
from app.readers.offload import SERIES_BYTES
from app.readers.regularity import settle
from app.readers.series import Series
from app.readers.table import check_size
from app.service import Service
from app.tasks import forecasting
from app.tasks.intervals import MAX_PROBABILITIES, parse_probabilities
from app.timeline import note_decoding, note_model

JSON = "application/json"
MAX_BYTES = 16 << 20
"""The protocol nests its series in a document of its own, which takes thirty times its bytes as Python objects."""
MAX_INPUTS = 256
MAX_LISTS = 1 << 17
"""Lists and objects in one document: the variates of all inputs together, and little else."""

Kind = Literal["univariate_time_series", "multivariate_time_series"]
UNIVARIATE: Kind = "univariate_time_series"
MULTIVARIATE: Kind = "multivariate_time_series"


class Input(BaseModel):
    """One series."""

    model_config = ConfigDict(extra="allow")
    type: Kind = UNIVARIATE
    name: str
    series: list[Any]
    frequency: str
    start_timestamp: str | None = None


class Options(BaseModel):
    """What to forecast."""

    model_config = ConfigDict(extra="allow", strict=True)
    horizon: int = Field(ge=1)
    quantiles: list[float] | None = Field(None, max_length=MAX_PROBABILITIES)


class ForecastRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="allow")
    model: str
    inputs: list[Input] = Field(min_length=1, max_length=MAX_INPUTS)
    options: Options


_READER = TypeAdapter(ForecastRequest)
_EXAMPLE = {
    "model": "hot-etth1",
    "inputs": [
        {
            "type": UNIVARIATE,
            "name": "load",
            "series": [5.8, 5.7],
            "frequency": "hour",
            "start_timestamp": "2016-07-01T00:00:00",
        }
    ],
    "options": {"horizon": 24, "quantiles": [0.1, 0.9]},
}
_NUMBERS: dict[str, Any] = {
    "oneOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    ]
}
_CONTENT = {
    "type": "object",
    "required": ["type", "name", "mean_forecast", "frequency", "start_timestamp"],
    "properties": {
        "type": {"enum": [UNIVARIATE, MULTIVARIATE]},
        "name": {"type": "string"},
        "mean_forecast": _NUMBERS,
        "frequency": {"type": "string"},
        "start_timestamp": {"type": "string", "description": "of the forecast; empty where the input has none"},
        "quantiles": {"type": ["object", "null"], "additionalProperties": _NUMBERS},
    },
}
_ANSWER = {
    "type": "object",
    "required": ["id", "created_at", "status", "model", "outputs"],
    "properties": {
        "id": {"type": "string"},
        "created_at": {"type": "integer"},
        "status": {"enum": ["completed"]},
        "model": {"type": "string"},
        "error": {"type": "null"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "status", "content"],
                "properties": {
                    "type": {"enum": ["time_series_forecast"]},
                    "id": {"type": "string"},
                    "status": {"enum": ["completed"]},
                    "content": {"type": "array", "items": _CONTENT},
                    "error": {"type": "null"},
                },
            },
        },
        "usage": {"type": "object"},
    },
}


def install(app: FastAPI, service: Service) -> None:
    """Add the two paths."""
    router = APIRouter(tags=["KServe time series"])

    @router.get("/v1/timeseries/models", summary="Names of the models that forecast")
    async def models() -> list[str]:
        return list(dict.fromkeys(entry.name for entry in service.repository if _forecasts(entry)))

    @router.post(
        "/v1/timeseries/forecast",
        summary="Forecast series",
        responses={
            200: {"description": "The forecasts", "content": {JSON: {"schema": _ANSWER}}},
            **error_responses(400, 404, 413, 415, 422, 429, 500, 503, 504),
        },
        response_class=Response,
        dependencies=[Depends(deadline.arm)],
        openapi_extra={
            "parameters": [deadline.DOCUMENTED],
            "requestBody": {
                "required": True,
                "content": {JSON: {"schema": ForecastRequest.model_json_schema(), "example": _EXAMPLE}},
            },
        },
    )
    async def forecast(request: Request) -> Response:
        with service.body_budget.lease() as lease:
            body = await read_body(
                request, request.scope["headers"], min(MAX_BYTES, service.settings.max_body_bytes), MAX_BYTES, lease
            )
            note_decoding(request.scope)
            asked = await offload_with("pandas", len(body), lambda: _parsed(bytes(body)))
            try:
                document, numbers = await _answer(service, request, asked, len(body))
            except UnusableInput as error:
                if error.field in Options.model_fields:
                    error.field = f"options.{error.field}"
                raise
        size = 20 * numbers + len(asked.inputs) * SERIES_BYTES  # a number takes about twenty bytes as text
        content = await offload_with("pandas", size, lambda: json_text.dumps(document, numbers))
        return Response(content, media_type=JSON)

    app.include_router(router)


def _forecasts(entry: object) -> bool:
    return isinstance(entry, Model) and entry.manifest is not None and isinstance(entry.manifest.task, Forecasting)


def _parsed(body: bytes) -> ForecastRequest:
    if body.count(b",") > MAX_NUMBERS:
        raise InvalidRequest(f"the JSON holds more than {MAX_NUMBERS} numbers")
    if body.count(b"[") + body.count(b"{") > MAX_LISTS:  # a million of them keep the interpreter for half a second
        raise InvalidRequest(f"the JSON holds more than {MAX_LISTS} lists and objects")
    try:
        return _READER.validate_python(orjson.loads(body))
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"not valid JSON: {exc}") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{field or 'request'}: {first['msg']}", field=field or None) from exc


async def _answer(service: Service, request: Request, asked: ForecastRequest, size: int) -> tuple[dict[str, Any], int]:
    """The document, and how many numbers it holds."""
    model = service.repository.get(asked.model, None)
    note_model(request.scope, model)
    spec = require_task(model, Forecasting, "does not forecast")
    horizon = asked.options.horizon
    probabilities = parse_probabilities([str(one) for one in asked.options.quantiles or ()], None)

    def prepare() -> list[forecasting.Prepared]:
        prepared = [
            _prepared(one, number, spec, horizon, model.inputs[0], history_needed(spec, horizon, probabilities))
            for number, one in enumerate(asked.inputs)
        ]
        check_answer(prepared, len(probabilities))
        check_intervals(model, spec, prepared, probabilities)
        return prepared

    prepared = await offload_with("pandas", size + len(asked.inputs) * SERIES_BYTES, prepare)
    # Inputs may have different numbers of variates; those of one number go together.
    answers: dict[int, forecasting.Forecast] = {}
    for width in sorted({len(one.series.names) for one in prepared}):
        places = [place for place, one in enumerate(prepared) if len(one.series.names) == width]
        group = [prepared[place] for place in places]
        answers.update(zip(places, await run_forecasts(service, request, model, group), strict=True))
    forecasts = [answers[place] for place in range(len(prepared))]
    quantiles: Sequence[Quantiles | None] = [None] * len(prepared)
    if probabilities:
        quantiles = await run_quantiles(service, request, model, prepared, forecasts, probabilities)
    outputs = []
    for place, (one, forecast, found) in enumerate(zip(asked.inputs, forecasts, quantiles, strict=True)):
        content: dict[str, Any] = {
            "type": one.type,
            "name": one.name,
            "mean_forecast": _shaped(one, forecast.values),
            "frequency": one.frequency,
            "start_timestamp": "" if forecast.timestamps is None else isoformat(forecast.timestamps[:1])[0],
            "quantiles": None
            if found is None
            else {
                f"{probability:g}": _shaped(one, values)
                for probability, values in zip(found.probabilities, found.values, strict=True)
            },
        }
        outputs.append(
            {
                "type": "time_series_forecast",
                "id": f"{one.name}-{place}",
                "status": "completed",
                "content": [content],
                "error": None,
            }
        )
    given = sum(one.series.values.size for one in prepared)
    made = sum(forecast.values.size for forecast in forecasts)
    document = {
        "id": uuid.uuid4().hex,
        "created_at": int(time.time()),
        "status": "completed",
        "error": None,
        "model": model.name,
        "outputs": outputs,
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }
    return document, made * (1 + len(probabilities))


def _prepared(
    one: Input, number: int, spec: Forecasting, horizon: int, tensor: TensorSpec, keep: int | None
) -> forecasting.Prepared:
    field = f"inputs.{number}.series"
    array = to_array(one.series, field, gaps=True)
    wanted = 2 if one.type == MULTIVARIATE else 1
    if array.ndim != wanted:
        raise InvalidRequest(
            f"{field} has {array.ndim} dimensions; {one.type} has {wanted}: [variates][time] or [time]", field=field
        )
    if array.size == 0:
        raise InvalidRequest(f"{field} has no values", field=field)
    values = np.atleast_2d(array)
    names = (one.name,) if wanted == 1 else tuple(f"{one.name}.{at}" for at in range(len(values)))
    try:
        check_size(*values.shape)
        series = started(Series(values, names), one.start_timestamp, one.frequency)
        regular, _ = settle(
            series, spec.lookback, keep=keep, frequency=None if series.timestamps is not None else one.frequency
        )
        return forecasting.prepare(regular, spec, horizon, input_name=tensor.name, width=tensor.shape[1])
    except KronserveError as error:
        if error.field != "horizon":
            member = {"freq": ".frequency", "start": ".start_timestamp"}.get(error.field or "", "")
            error.field = f"inputs.{number}{member}"
        raise


def _shaped(one: Input, values: np.ndarray) -> np.ndarray:
    """As the series came: [variates][time], or flat for one."""
    return np.ascontiguousarray(values if one.type == MULTIVARIATE else values[0])
