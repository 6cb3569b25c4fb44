"""Prepared series through the scheduler: those of one width as rows of one request, pass after pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from starlette.requests import Request

from app.api.submission import run_all
from app.engine.runtime import Model
from app.errors import UnusableInput
from app.manifest import Forecasting
from app.readers.libraries import offload_with
from app.readers.offload import SERIES_BYTES
from app.readers.series import Series
from app.service import Service
from app.tasks import forecasting
from app.tasks.past import Origins, PastForecasts

MAX_ANSWER = 1 << 24
"""Numbers that one answer may hold: 128 MiB of them, and three times as much as text."""


def check_answer(prepared: Sequence[forecasting.Prepared], quantiles: int) -> None:
    """UnusableInput where the forecasts, and as many quantiles of each, are more than one answer holds."""
    numbers = sum(len(one.series.names) * one.horizon for one in prepared) * (1 + quantiles)
    if numbers > MAX_ANSWER:
        raise UnusableInput(
            f"the answer would hold {numbers} numbers; ask for fewer steps, quantiles or series: {MAX_ANSWER} at most",
            field="quantiles" if quantiles else "horizon",
        )


async def run_forecasts(
    service: Service, request: Request, model: Model, prepared: Sequence[forecasting.Prepared]
) -> list[forecasting.Forecast]:
    """The forecasts, in order. All series have one number of variates, as those of one file do."""
    assert model.manifest is not None
    spec = model.manifest.task
    assert isinstance(spec, Forecasting)
    passes: list[list[forecasting.Forecast]] = [[] for _ in prepared]
    current = list(prepared)
    while True:
        (name,) = current[0].tensors
        outputs = await _submit(service, request, model, [one.tensors[name] for one in current])

        def finish(
            current: list[forecasting.Prepared] = current, outputs: dict[str, np.ndarray] = outputs
        ) -> list[forecasting.Prepared]:
            """What is left to forecast: nothing after the last pass."""
            for index, (one, done) in enumerate(zip(current, passes, strict=True)):
                done.append(forecasting.finish(one, {name: rows[index : index + 1] for name, rows in outputs.items()}))
            if current[0].horizon <= spec.horizon:
                return []
            return [forecasting.roll(one, done[-1], spec) for one, done in zip(current, passes, strict=True)]

        size = sum(one.series.values.shape[0] * spec.horizon * 8 + SERIES_BYTES for one in current)
        current = await offload_with("pandas", size, finish)
        if not current:
            return [forecasting.joined(done) for done in passes]


async def run_past(
    service: Service, request: Request, model: Model, series: Series, origins: Origins, horizon: int
) -> PastForecasts:
    """Forecasts from many points in one series' past, every pass of them taken."""
    assert model.manifest is not None
    spec = model.manifest.task
    assert isinstance(spec, Forecasting)
    size = series.values.nbytes + len(origins) * len(series.names) * (spec.lookback + horizon) * 8
    past = await offload_with("pandas", size, lambda: PastForecasts(series, spec, origins, horizon))
    while (rows := past.rows) is not None:
        answer = await _submit(service, request, model, [rows[at : at + 1] for at in range(len(rows))])

        def take(given: np.ndarray = answer[model.ordinary_outputs[0]]) -> None:
            past.take(given)

        await offload_with("pandas", size, take)
    return past


async def _submit(
    service: Service, request: Request, model: Model, rows: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    name = model.inputs[0].name
    batches = [np.concatenate(rows)] if model.batched else rows
    inputs = ({name: batch} for batch in batches)
    answers = await run_all(service, request, model, inputs, model.ordinary_outputs[:1])
    if len(answers) == 1:
        return answers[0]
    return {output: np.concatenate([answer[output] for answer in answers]) for output in answers[0]}
