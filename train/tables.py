"""The tables of docs/results.md that speak of serving: interval coverage and backtests on test splits, as Markdown.

    KRONSERVE_DATA=... python -m train.tables model_repository/hot-etth1/1

Every figure goes through ONNX Runtime and the service's own code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from app.manifest import Forecasting
from app.readers.series import Series
from app.tasks import backtest
from app.tasks.past import PAST_HORIZONS, PastForecasts
from train.datasets.trained_on import trained_series
from train.evaluate import BATCH, _session, read_manifest
from train.metrics import measured_horizons

STRIDE = 16
"""Rows between two origins: neighbours' forecasts hardly differ."""

PAST_HEAD = 96
"""Steps past the head of the first horizon that is rolled; the second is two heads."""


def tables(bundle: Path, data: Path | None = None) -> str:
    """Coverage and errors of a forecaster on its test split, for horizons of its head and for two that are rolled; the
    rows before the split are history, as for a caller.

    ValueError: the bundle does not forecast, or has no intervals.
    """
    manifest = read_manifest(bundle)
    task = manifest.task
    if not isinstance(task, Forecasting) or task.intervals is None:
        raise ValueError(f"{bundle} has no intervals; run kronserve calibrate on it")
    rows = trained_series(manifest, data)
    start, stop = rows.bounds["test"]
    scaled = (rows.values[:stop] - rows.mean) / rows.scale
    series = Series(np.ascontiguousarray(scaled.T), rows.variates, frequency=rows.frequency)
    run = _session(bundle, manifest)
    own = measured_horizons(task.horizon)
    found: dict[str, Any] = {}
    for horizons in (own, (task.horizon + PAST_HEAD,), (2 * task.horizon,)):
        longest = max(horizons)
        first = max(task.lookback, start - longest - PAST_HORIZONS * task.horizon)
        past = PastForecasts(series, task, np.arange(stop - longest, first - 1, -STRIDE)[::-1], longest)
        while (inputs := past.rows) is not None:
            past.take(np.concatenate([run(inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)]))
        found |= backtest.backtest(past, task, horizons, backtest.season_of(rows.frequency, start), since=start)
    lines = [
        f"| {manifest.name}: horizon | 80 %, validation | 95 %, validation | 80 %, with history | 95 %, with history |",
        "| --- | --- | --- | --- | --- |",
    ]
    for horizon, errors in found.items():
        coverage = errors["coverage"]
        history = "validation and history" if int(horizon) <= task.horizon else "history"
        cells = [
            f"{100 * coverage[kind][level]:.1f}" if kind in coverage else "-"
            for kind in ("validation", history)
            for level in ("0.8", "0.95")
        ]
        lines.append(f"| {horizon} | {' | '.join(cells)} |")
    lines += ["", f"| {manifest.name}: horizon | MSE | MAE | MASE | seasonal naive: MSE | MAE | MASE |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for horizon, errors in found.items():
        cells = [f"{errors[who][what]:.3f}" for who in ("model", "seasonal_naive") for what in ("mse", "mae", "mase")]
        lines.append(f"| {horizon} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m train.tables", description="Tables of interval coverage and backtests."
    )
    parser.add_argument("bundle", type=Path, nargs="+")
    for given in parser.parse_args().bundle:
        sys.stdout.write(tables(given) + "\n")
