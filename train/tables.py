"""The tables of docs/results.md that speak of serving: interval coverage and backtests on test splits, as Markdown.

    KRONSERVE_DATA=... python -m train.tables model_repository/hot-etth1/1

Every figure goes through ONNX Runtime and the service's own code.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from app.manifest import Forecasting
from app.readers.series import Series
from app.tasks import backtest, intervals
from train.datasets.folder import data_folder
from train.datasets.series import load_series
from train.evaluate import BATCH, _session, read_manifest
from train.metrics import HORIZONS

STRIDE = 16
"""Rows between two origins: neighbours' forecasts hardly differ."""


def tables(bundle: Path, data: Path | None = None) -> str:
    """Coverage and errors of a forecaster on its test split; the rows before the split are history, as for a caller.

    ValueError: the bundle does not forecast, or has no intervals.
    """
    manifest = read_manifest(bundle)
    task = manifest.task
    if not isinstance(task, Forecasting) or task.intervals is None:
        raise ValueError(f"{bundle} has no intervals; run kronserve calibrate on it")
    rows = load_series(str(manifest.provenance.training["dataset"]), data_folder(data))
    start, stop = rows.bounds["test"]
    scaled = (rows.values[:stop] - rows.mean) / rows.scale
    series = Series(np.ascontiguousarray(scaled.T), rows.variates, frequency=rows.frequency)
    horizons = [h for h in HORIZONS if h <= task.horizon] or [task.horizon]
    reach = intervals.PAST_HORIZONS * task.horizon + task.horizon
    first = max(task.lookback, start - reach)
    origins = np.arange(stop - max(horizons), first - 1, -STRIDE)[::-1]
    inputs, mean, scale = intervals.past_windows(series, task, intervals.Past(origins))
    run = _session(bundle, manifest)
    forecasts = np.concatenate([run(inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)])
    found = backtest.backtest(
        series, task, origins, forecasts, mean, scale, horizons, backtest.season_of(rows.frequency), since=start
    )
    lines = [
        f"| {manifest.name}: horizon | 80 %, validation | 95 %, validation | 80 %, with history | 95 %, with history |",
        "| --- | --- | --- | --- | --- |",
    ]
    for horizon in horizons:
        coverage = found[str(horizon)]["coverage"]
        cells = [
            f"{100 * coverage[kind][level]:.1f}" if kind in coverage else "-"
            for kind in ("validation", "validation and history")
            for level in ("0.8", "0.95")
        ]
        lines.append(f"| {horizon} | {' | '.join(cells)} |")
    lines += ["", f"| {manifest.name}: horizon | MSE | MAE | MASE | seasonal naive: MSE | MAE | MASE |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for horizon in horizons:
        cells = [
            f"{found[str(horizon)][who][what]:.3f}"
            for who in ("model", "seasonal_naive")
            for what in ("mse", "mae", "mase")
        ]
        lines.append(f"| {horizon} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m train.tables", description="Tables of interval coverage and backtests."
    )
    parser.add_argument("bundle", type=Path, nargs="+")
    for given in parser.parse_args().bundle:
        sys.stdout.write(tables(given) + "\n")
