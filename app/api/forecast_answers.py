"""Forecasts as JSON, CSV or .npy: one series as itself, those of a long file as a list."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.api import json_text
from app.api.interval_runs import Quantiles
from app.engine.runtime import Model
from app.readers.calendar import isoformat
from app.readers.regularity import Report
from app.tasks.forecasting import Forecast

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_ONE_SERIES: dict[str, Any] = {
    "frequency": {"type": ["string", "null"], "description": "pandas offset alias"},
    "timestamps": {"type": ["array", "null"], "items": {"type": "string", "format": "date-time"}},
    "forecast": {"type": "object", "additionalProperties": _NUMBERS},
    "quantiles": {
        "type": "object",
        "description": "when asked for: by probability, then as forecast",
        "additionalProperties": {"type": "object", "additionalProperties": _NUMBERS},
    },
    "intervals": {
        "type": "object",
        "description": "when asked for: what the quantiles were calibrated on, and from how many forecasts of the past",
        "properties": {
            "calibration": {"enum": ["validation", "validation and history", "history", "other data"]},
            "origins": {"type": "integer"},
        },
    },
    "input": {
        "type": "object",
        "description": "rows sent, steps used, faults in rows before those, and what was filled among them",
        "additionalProperties": {"type": "integer"},
    },
}
_ALWAYS = ("frequency", "timestamps", "forecast", "input")
_HEAD: dict[str, Any] = {
    "model": {"type": "string"},
    "version": {"type": "string"},
    "horizon": {"type": "integer"},
    "rolled": {"type": "boolean", "description": "whether forecasts were taken for history, past the model's horizon"},
}
FORECAST_SCHEMA: dict[str, Any] = {
    "oneOf": [
        {"type": "object", "required": [*_HEAD, *_ALWAYS], "properties": {**_HEAD, **_ONE_SERIES}},
        {
            "type": "object",
            "description": "of a long file",
            "required": [*_HEAD, "series"],
            "properties": {
                **_HEAD,
                "series": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["id", *_ALWAYS],
                        "properties": {"id": {"type": "string"}, **_ONE_SERIES},
                    },
                },
            },
        },
    ]
}


@dataclass(frozen=True, eq=False)
class Answer:
    """A forecast, and what was done to its series."""

    forecast: Forecast
    report: Report
    quantiles: Quantiles | None = None

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return self.forecast.values.size + (0 if self.quantiles is None else self.quantiles.values.size)


def encoded(model: Model, answers: list[Answer], media_type: str) -> bytes:
    """The body of an answer, of one of the three media types."""
    if media_type == NPY:
        stream = io.BytesIO()
        values = [_table(answer)[1] for answer in answers]
        if answers[0].quantiles is not None:
            values = [
                one.reshape(-1, *answer.forecast.values.shape) for one, answer in zip(values, answers, strict=True)
            ]
        np.save(stream, values[0] if _is_single(answers) else np.stack(values), allow_pickle=False)
        return stream.getvalue()
    if media_type == CSV:
        return b"".join(_csv(answer, header=index == 0) for index, answer in enumerate(answers))
    first = answers[0].forecast
    document: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "horizon": first.values.shape[1],
        "rolled": first.rolled,
    }
    if _is_single(answers):
        document |= _one_series(answers[0])
    else:
        document["series"] = [{"id": answer.forecast.id, **_one_series(answer)} for answer in answers]
    return json_text.dumps(document, sum(answer.numbers for answer in answers))


def _is_single(answers: list[Answer]) -> bool:
    return answers[0].forecast.id is None


def _one_series(answer: Answer) -> dict[str, Any]:
    forecast = answer.forecast
    document = {
        "frequency": forecast.frequency,
        "timestamps": None if forecast.timestamps is None else isoformat(forecast.timestamps),
        "forecast": dict(zip(forecast.names, np.ascontiguousarray(forecast.values), strict=True)),
        "input": answer.report.counts(),
    }
    if answer.quantiles is not None:
        found = answer.quantiles
        document["quantiles"] = {
            f"{probability:g}": dict(zip(forecast.names, np.ascontiguousarray(values), strict=True))
            for probability, values in zip(found.probabilities, found.values, strict=True)
        }
        document["intervals"] = {"calibration": found.calibration, "origins": found.origins}
    return document


def _table(answer: Answer) -> tuple[list[str], np.ndarray]:
    """Names and rows: the variates' forecasts, then those of every quantile, as NAME:0.9."""
    names = list(answer.forecast.names)
    if answer.quantiles is None:
        return names, answer.forecast.values
    found = answer.quantiles
    names += [f"{name}:{probability:g}" for probability in found.probabilities for name in answer.forecast.names]
    return names, np.concatenate([answer.forecast.values, *found.values])


def _csv(answer: Answer, *, header: bool) -> bytes:
    """Rows of one series; those of a long file begin with its id."""
    forecast = answer.forecast
    names, values = _table(answer)
    stamps = None if forecast.timestamps is None else isoformat(forecast.timestamps)
    steps = stamps or [str(step) for step in range(1, forecast.values.shape[1] + 1)]
    columns = [forecast.time_name if stamps else "step", *names]
    # orjson writes the numbers ten times as fast as csv does; between its brackets they stand as CSV has them.
    rows = json_text.dumps(np.ascontiguousarray(values.T), values.size).decode()
    prefix = "" if forecast.id is None else f"{_csv_line([forecast.id])},"
    lines = [f"{prefix}{step},{row}" for step, row in zip(steps, rows[2:-2].split("],["), strict=True)]
    if header:
        lines.insert(0, _csv_line(columns if forecast.id is None else ["unique_id", *columns]))
    return "\n".join((*lines, "")).encode()


def _csv_line(fields: list[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(fields)
    return stream.getvalue()
