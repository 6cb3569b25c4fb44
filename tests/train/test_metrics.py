"""MSE, MAE, AUC and accuracy against scikit-learn and definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error

from train.metrics import ForecastErrors, binary_scores


def test_errors_equal_scikit_learn_over_each_horizons_own_windows() -> None:
    generator = np.random.default_rng(0)
    rows, lookback, horizons = generator.normal(size=(30, 3)), 6, (2, 5, 11)
    errors = ForecastErrors(rows, lookback, horizons)
    assert errors.windows == {2: 23, 5: 20, 11: 14}
    forecasts = generator.normal(size=(23, 3, 11)).astype(np.float32)
    errors.add(range(9), forecasts[:9])
    errors.add(range(9, 23), forecasts[9:])
    result = errors.result()
    for h in horizons:
        count = 30 - lookback - h + 1
        targets = np.stack([rows[w + lookback : w + lookback + h].T for w in range(count)])
        predicted = forecasts[:count, :, :h].astype(np.float64)
        assert result[str(h)]["windows"] == count
        assert result[str(h)]["mse"] == pytest.approx(mean_squared_error(targets.ravel(), predicted.ravel()), rel=1e-12)
        assert result[str(h)]["mae"] == pytest.approx(
            mean_absolute_error(targets.ravel(), predicted.ravel()), rel=1e-12
        )
    assert result["average"]["mse"] == pytest.approx(sum(result[str(h)]["mse"] for h in horizons) / 3, rel=1e-12)


def test_a_perfect_forecast_has_no_error() -> None:
    rows = np.random.default_rng(1).normal(size=(20, 2))
    errors = ForecastErrors(rows, 4, (3, 8))
    forecasts = np.zeros((14, 2, 8))
    for window in range(14):
        known = rows[window + 4 : window + 12].T
        forecasts[window, :, : known.shape[1]] = known
    errors.add(range(14), forecasts)
    assert errors.result()["average"] == {"mse": 0.0, "mae": 0.0}


def test_too_short_a_split_is_refused() -> None:
    with pytest.raises(ValueError, match="hold no window of 6 \\+ 11 steps"):
        ForecastErrors(np.zeros((16, 1)), 6, (2, 11))


def test_scores_equal_pairwise_counting() -> None:
    """AUC is the share of (positive, negative) pairs in the right order, a tie counting half."""
    generator = np.random.default_rng(2)
    targets = generator.integers(0, 2, 60)
    positive = np.round(generator.random(60), 1)
    wins = [(p > n) + 0.5 * (p == n) for p in positive[targets == 1].tolist() for n in positive[targets == 0].tolist()]
    scores = binary_scores(targets, np.stack([1 - positive, positive], axis=1))
    assert scores["auc"] == pytest.approx(np.mean(wins), rel=1e-12)
    right = sum((p > 0.5) == (t == 1) for p, t in zip(positive.tolist(), targets.tolist(), strict=True))
    assert scores["acc"] == pytest.approx(right / 60, rel=1e-12)
    assert scores["n"] == 60
