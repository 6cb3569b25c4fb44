"""Backtests against plain loops over origins, variates and steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from app.errors import InferenceFailed, UnusableInput
from app.manifest import Forecasting
from app.readers.series import Series
from app.tasks import intervals
from app.tasks.backtest import Coverage, backtest, origins_of, season_for, season_of
from app.tasks.past import PastForecasts, counting
from tests.tasks.test_intervals import SPEC, rolled, zeros

PLAIN = Forecasting(lookback=32, horizon=48)


@pytest.mark.parametrize(
    ("frequency", "season"),
    [("h", 24), ("10min", 144), ("min", 1440), ("D", 7), ("B", 5), ("W-MON", 52), ("MS", 12), ("QE-DEC", 4),
     ("YS-JAN", 1), ("6h", 4), ("2MS", 6), ("7min", 1), (None, 1)],
)  # fmt: skip
def test_seasons(frequency: str | None, season: int) -> None:
    assert season_of(frequency, season) == season
    assert season_of(frequency, season - 1) == 1


def test_a_season_that_does_not_fit() -> None:
    series = Series(np.zeros((1, 300)), ("a",), frequency="10min")
    assert season_for(series, 156, None) == 144
    assert season_for(series, 157, None) == 1
    assert season_for(series, 157, 143) == 143
    with pytest.raises(UnusableInput, match=r"300 steps; a season of 144 needs 144 \+ 157") as caught:
        season_for(series, 157, 144)
    assert caught.value.field == "season"


def test_origins_have_a_lookback_and_a_truth() -> None:
    series = Series(np.zeros((1, 300)), ("a",))
    assert origins_of(series, PLAIN, 48, 24, 1000).tolist() == list(range(32, 253))
    assert origins_of(series, PLAIN, 48, 100, 1000).tolist() == list(range(100, 253))
    few = origins_of(series, PLAIN, 48, 24, 10)
    assert len(few) <= 10
    assert few[-1] == 252
    with pytest.raises(UnusableInput, match="79 steps"):
        origins_of(Series(np.zeros((1, 79)), ("a",)), PLAIN, 48, 24, 10)
    with pytest.raises(UnusableInput, match="past 1e"):
        origins_of(Series(np.full((1, 300), 2e300), ("a",)), PLAIN, 48, 24, 10)


@pytest.mark.parametrize("season", [24, 40])
def test_errors_and_baseline_equal_plain_loops(season: int) -> None:
    """A season longer than the lookback, too."""
    rng = np.random.default_rng(1)
    values = np.sin(np.arange(400) * 2 * np.pi / 24) * [[1.0], [5.0]] + rng.standard_normal((2, 400)) * [[0.2], [2.0]]
    series = Series(values, ("a", "b"))
    origins = origins_of(series, PLAIN, 48, season, 17)
    answers = rng.standard_normal((len(origins), 2, 48)).astype(np.float32)
    past = PastForecasts(series, PLAIN, origins, 48)
    past.take(answers)
    assert past.rows is None
    found = backtest(past, PLAIN, [10, 48], season)
    for horizon in (10, 48):
        squares, absolutes, naive, ratios = [], [], [], {0: [], 1: []}
        for at, origin in enumerate(origins):
            window = values[:, origin - 32 : origin]
            for variate in range(2):
                for step in range(horizon):
                    truth = values[variate, origin + step]
                    said = answers[at, variate, step] * window[variate].std() + window[variate].mean()
                    before = values[variate, origin - season + step % season]
                    unit = values[variate].std()
                    squares.append(((said - truth) / unit) ** 2)
                    absolutes.append(abs(said - truth) / unit)
                    naive.append(abs(before - truth) / unit)
                    ratios[variate].append(
                        abs(said - truth) / np.abs(values[variate, season:] - values[variate, :-season]).mean()
                    )
        model = found[str(horizon)]["model"]
        assert model["mse"] == pytest.approx(np.mean(squares), rel=1e-5)
        assert model["mae"] == pytest.approx(np.mean(absolutes), rel=1e-5)
        assert model["mase"] == pytest.approx(np.mean([np.mean(ratios[0]), np.mean(ratios[1])]), rel=1e-5)
        assert found[str(horizon)]["seasonal_naive"]["mae"] == pytest.approx(np.mean(naive), rel=1e-5)
        assert found[str(horizon)]["coverage"] == {}


def test_coverage_counts_outcomes_that_lie_inside() -> None:
    """Noise forecast as 0: errors are normal, so the bundle's normal quantiles hold; half as wide ones do not."""
    values = np.random.default_rng(2).standard_normal((1, 4000))
    for name, series in (("other", Series(values, ("other",))), ("a", Series(values, ("a",)))):
        origins = origins_of(series, SPEC, 48, 24, 400)
        past = rolled(PastForecasts(series, SPEC, origins, 48), zeros)
        found = backtest(past, SPEC, [48], 24)["48"]["coverage"]
        if name == "other":
            assert found["validation"]["0.8"] == pytest.approx(0.8, abs=0.03)
        else:  # stored as up to twice as wide
            assert found["validation"]["0.8"] > 0.88
        assert set(found) == {"validation"}  # origins ten steps apart: too few of them in reach of each
        past = rolled(PastForecasts(series, SPEC, np.arange(200, 1200, 2), 100), zeros)
        found = {horizon: found["coverage"] for horizon, found in backtest(past, SPEC, [48, 100], 24).items()}
        assert found["48"]["validation and history"]["0.8"] == pytest.approx(0.8, abs=0.04)
        assert list(found["100"]) == ["history"]  # the bundle says nothing of steps past the head
        assert found["100"]["history"]["0.8"] == pytest.approx(0.8, abs=0.04)


def test_coverage_does_not_depend_on_the_unit_nor_on_the_parts_it_is_found_in() -> None:
    """Of a series that often stands still; after such a window only the value that it stood at lies inside."""
    values = np.random.default_rng(5).standard_normal((1, 2000)) * (np.arange(2000) % 200 < 100)

    def measured(unit: float, part: int) -> dict[str, Any]:
        series = Series(values * unit, ("a",))
        past = rolled(PastForecasts(series, SPEC, np.arange(200, 1900, 4), 48), zeros)
        coverage = Coverage(past, SPEC)
        for start in range(0, len(past.origins), part):
            coverage.measure(start, start + part)
        for kind in coverage.by.values():
            still = kind[0.8][past.constant]
            told = np.isfinite(still)
            outcomes = np.stack([series.values[:, at : at + 48] for at in past.origins])[past.constant]
            np.testing.assert_array_equal(still[told], (outcomes == 0)[told])
        found: dict[str, Any] = backtest(past, SPEC, [48], 24, coverage=coverage)["48"]["coverage"]
        return found

    whole = measured(1.0, 1 << 20)
    assert set(whole) == {"validation", "validation and history"}
    assert measured(1.0, 7) == whole
    assert measured(2.0**-10, 50) == measured(2.0**13, 50) == whole


def test_coverage_is_that_of_the_intervals_an_answer_would_have_had() -> None:
    series = Series(np.random.default_rng(2).standard_normal((1, 3000)), ("other",))
    past = rolled(PastForecasts(series, SPEC, np.arange(100, 2900), 48), zeros)
    coverage = Coverage(past, SPEC)
    coverage.measure(2500, 2501)
    errors, back = past.errors(), past.origins[2500] - past.origins
    near = np.flatnonzero((back > 0) & (back <= 48 + 96))
    shapes = intervals.shapes(series, SPEC, 48, (0.1, 0.9))
    low, high = shapes.offsets(counting(errors[near], past.origins[near], int(past.origins[2500]), 48))
    expected = (errors[2500] >= low) & (errors[2500] <= high)
    np.testing.assert_array_equal(coverage.by["validation and history"][0.8][2500], expected)


def test_past_the_head_coverage_counts_no_variate_that_an_answer_would_refuse() -> None:
    """One stands still but for a peak now and then: too few of its windows tell how far forecasts miss."""
    values = np.random.default_rng(6).standard_normal((2, 1200))
    values[1] *= np.arange(1200) % 400 == 0
    series = Series(values, ("a", "b"))
    past = rolled(PastForecasts(series, SPEC, np.arange(200, 1080, 4), 100), zeros)
    coverage = Coverage(past, SPEC)
    coverage.measure(0, len(past.origins))
    moves = ~past.constant
    assert 0 < moves[:, 1].mean() < 0.2
    inside = coverage.by["validation and history"][0.8]
    assert np.isfinite(inside[100:, 0, 48:]).all()
    assert not np.isfinite(inside[moves[:, 1], 1, 48:]).any()


def test_a_series_that_never_changes_has_no_mase() -> None:
    series = Series(np.full((1, 200), 3.0), ("a",), pd.date_range("2020-01-01", periods=200, freq="h"))
    origins = origins_of(series, PLAIN, 48, 24, 5)
    found = backtest(rolled(PastForecasts(series, PLAIN, origins, 48), zeros), PLAIN, [48], 24)["48"]
    assert found["model"] == {"mse": 0.0, "mae": 0.0, "mase": None}


@pytest.mark.parametrize("power", [-1000, -600, 600, 990])
def test_the_unit_of_a_series_does_not_matter(power: int) -> None:
    """Also where the squares of its values, or of their changes, leave the range of float64."""
    values = np.random.default_rng(3).standard_normal((2, 300))

    def measured(values: np.ndarray) -> dict[str, Any]:
        series = Series(values, ("a", "b"))
        return backtest(rolled(PastForecasts(series, PLAIN, np.arange(40, 240, 20), 48), zeros), PLAIN, [48], 24)["48"]

    assert measured(np.ldexp(values, power)) == measured(values)


def test_filled_values_are_no_outcomes() -> None:
    """Nor is coverage measured on them: whatever stands there, as long as no forecast looks at it, it is the same."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((2, 300))
    filled = np.zeros(values.shape, np.bool_)
    filled[0, 245:260] = True
    filled[1, 250:] = rng.random(50) < 0.5
    known = np.where(filled, np.nan, values)
    change = np.nanmean(np.abs(known[:, 24:] - known[:, :-24]), axis=1)
    outcomes = np.stack([known[:, at : at + 48] for at in (200, 240)])
    for given in (values, np.where(filled, 9.0, values)):
        past = rolled(PastForecasts(Series(given, ("x", "y")), SPEC, np.array([200, 240]), 48), zeros)
        found = backtest(past, SPEC, [48], 24, filled=filled)["48"]
        errors = np.abs(past.forecasts - outcomes)
        scaled = errors / np.nanstd(known, axis=1, keepdims=True)
        assert found["model"]["mse"] == pytest.approx(np.nanmean(scaled**2))
        assert found["model"]["mae"] == pytest.approx(np.nanmean(scaled))
        assert found["model"]["mase"] == pytest.approx((np.nanmean(errors, axis=(0, 2)) / change).mean())
        away = norm.ppf(0.9) * past.scale
        assert found["coverage"]["validation"]["0.8"] == np.nanmean(np.where(np.isnan(errors), np.nan, errors <= away))
    with pytest.raises(UnusableInput, match="no outcome was sent") as caught:
        backtest(past, SPEC, [48], 24, filled=np.ones_like(filled))
    assert caught.value.field == "fill"


def test_forecasts_that_are_not_finite_have_no_errors() -> None:
    past = rolled(
        PastForecasts(Series(np.random.default_rng(5).random((1, 200)), ("a",)), PLAIN, np.arange(40, 150, 9), 48),
        zeros,
    )
    past.forecasts[1, 0, 3] = np.nan
    with pytest.raises(InferenceFailed, match="not finite"):
        backtest(past, PLAIN, [48], 24)
