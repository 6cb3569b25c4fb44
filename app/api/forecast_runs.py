"""Prepared series through the scheduler: those of one width as rows of one request, pass after pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from starlette.requests import Request

from app.api.submission import run_all
from app.engine.runtime import Model
from app.manifest import Forecasting
from app.readers.libraries import offload_with
from app.service import Service
from app.tasks import forecasting


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
        ) -> list[forecasting.Forecast]:
            return [
                forecasting.finish(one, {name: rows[index : index + 1] for name, rows in outputs.items()})
                for index, one in enumerate(current)
            ]

        size = sum(one.series.values.shape[0] for one in current) * spec.horizon * 8
        finished = await offload_with("pandas", size, finish)
        for done, one in zip(passes, finished, strict=True):
            done.append(one)
        if current[0].horizon <= spec.horizon:
            return [forecasting.joined(done) for done in passes]
        current = [forecasting.roll(one, done[-1], spec) for one, done in zip(current, passes, strict=True)]


async def run_rows(service: Service, request: Request, model: Model, rows: np.ndarray) -> np.ndarray:
    """The graph's first output for rows (n, variates, lookback) that are scaled already: (n, variates, head)."""
    answer = await _submit(service, request, model, [rows[at : at + 1] for at in range(len(rows))])
    return answer[model.ordinary_outputs[0]]


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
