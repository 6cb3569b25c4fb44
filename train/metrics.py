"""The benchmarks' metrics, in float64 numpy.

Forecasting: MSE and MAE over every window, variate and step of a horizon, on scaled data. Classification: ROC AUC of
the positive column and accuracy at 0.5, as medmnist's Evaluator defines them for two classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from train.datasets.series import window_count

HORIZONS = (96, 192, 336, 720)


def measured_horizons(horizon: int) -> tuple[int, ...]:
    """The benchmark's horizons that a head is longer than, and the whole head: every step of it counts."""
    return (*(h for h in HORIZONS if h < horizon), horizon)


class ForecastErrors:
    """Running squared and absolute errors of one split at several horizons, the shorter being prefixes of the longest.

    rows: the split on the scaler's scale, [time, variates]. Window w predicts the rows from w + lookback on; at horizon
    h the windows whose h targets all lie inside the split count.
    """

    def __init__(self, rows: NDArray[np.float64], lookback: int, horizons: Sequence[int] = HORIZONS) -> None:
        self.rows, self.lookback, self.horizons = rows, lookback, tuple(horizons)
        self.windows = {h: window_count(len(rows), lookback, h) for h in self.horizons}
        if not min(self.windows.values()):
            raise ValueError(f"{len(rows)} rows hold no window of {lookback} + {max(self.horizons)} steps")
        self._sums = {h: np.zeros(2) for h in self.horizons}
        self._counts = dict.fromkeys(self.horizons, 0)

    def add(self, windows: Iterable[int], forecasts: NDArray[np.floating[Any]]) -> None:
        """Count the forecasts [n, variates, >= longest horizon] of the n windows of these numbers."""
        for window, forecast in zip(windows, forecasts, strict=True):
            start = window + self.lookback
            target = self.rows[start : start + max(self.horizons)].T
            error = forecast[:, : target.shape[1]].astype(np.float64) - target
            for h in self.horizons:
                if window < self.windows[h]:
                    part = error[:, :h]
                    self._counts[h] += 1
                    self._sums[h] += np.square(part).sum(), np.abs(part).sum()

    def result(self) -> dict[str, Any]:
        """{"96": {"mse", "mae", "windows"}, ..., "average": {"mse", "mae"}} over the windows that were added."""
        values: dict[str, Any] = {}
        for h in self.horizons:
            mse, mae = self._sums[h] / (self._counts[h] * self.rows.shape[1] * h)
            values[str(h)] = {"mse": float(mse), "mae": float(mae), "windows": self._counts[h]}
        values["average"] = {
            key: float(np.mean([values[str(h)][key] for h in self.horizons])) for key in ("mse", "mae")
        }
        return values


def binary_scores(targets: NDArray[np.int64], probabilities: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """{"auc", "acc", "n"} of class indices [n] and probabilities [n, 2]; a tie at 0.5 is the negative class."""
    positive = np.asarray(probabilities, dtype=np.float64)[:, 1]
    accuracy = float(np.mean((positive > 0.5) == (targets == 1)))
    return {"auc": float(roc_auc_score(targets, positive)), "acc": accuracy, "n": len(targets)}
