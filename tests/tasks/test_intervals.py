"""Intervals hold as often as they say, on series whose errors are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import norm

from app.errors import UnusableInput
from app.manifest import Forecasting, Intervals
from app.readers.series import Series
from app.tasks import forecasting, intervals
from app.tasks.past import PastForecasts, counting, past_origins

PROBABILITIES = (0.005, 0.025, 0.05, 0.1, 0.25, 0.75, 0.9, 0.95, 0.975, 0.995)
NORMAL = tuple(float(norm.ppf(one)) for one in PROBABILITIES)
SPEC = Forecasting(
    lookback=32,
    horizon=48,
    variates=("a",),
    frequency="h",
    intervals=Intervals(
        split="val",
        windows=100,
        steps=(1, 48),
        probabilities=PROBABILITIES,
        errors={"a": (NORMAL, tuple(2 * one for one in NORMAL)), "": (NORMAL, NORMAL)},
    ),
)


def noise(variates: int = 1, steps: int = 3000, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((variates, steps))


def test_offsets_are_the_stored_errors_between_their_steps_and_probabilities() -> None:
    series = Series(noise(2), ("a", "other"))
    away = intervals.shapes(series, SPEC, 48, (0.025, 0.5, 0.975)).offsets(None)
    assert away.shape == (3, 2, 48)
    ramp = np.interp(np.arange(1, 49), [1, 48], [1, 2]) * NORMAL[-2]
    np.testing.assert_allclose(away[:, 0], [-ramp, 0 * ramp, ramp], rtol=1e-12)
    np.testing.assert_allclose(away[2, 1], NORMAL[-2], rtol=1e-12)


def rolled(past: PastForecasts, answers: Callable[[np.ndarray], np.ndarray]) -> PastForecasts:
    """Every pass, with `answers` for a graph."""
    while (rows := past.rows) is not None:
        past.take(answers(rows))
    return past


def zeros(rows: np.ndarray) -> np.ndarray:
    """A forecaster that answers the mean of its window: on noise its errors are those of the noise."""
    return np.zeros((*rows.shape[:2], SPEC.horizon), np.float32)


@pytest.mark.parametrize("horizon", [48, 70, 144])
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_the_own_past_brings_intervals_to_their_level(spread: float, horizon: int) -> None:
    """The bundle's errors are others; past the head, where the forecast is the mean of means, there are none at all."""
    series = Series(noise() * spread, ("other",))
    origins = past_origins(series, SPEC, horizon, 1000)
    assert origins is not None
    past = PastForecasts(series, SPEC, origins, horizon)
    assert past.rows is not None
    np.testing.assert_allclose(past.rows.std(axis=2), 1, rtol=1e-5)
    errors = counting(rolled(past, zeros).errors(), origins, 3000, 48)
    assert np.isnan(errors[-1, 0, -1])
    assert np.isfinite(errors[0, 0, -1])
    later = Series(noise(1, 4000, 2) * spread, ("other",))
    future = rolled(PastForecasts(later, SPEC, np.arange(100, 3800, 7), horizon), zeros).errors()
    # And with three times the errors, in the past as in the future.
    for factor in (1, 3):
        for level in (0.8, 0.95):
            shapes = intervals.shapes(series, SPEC, horizon, (0.5 - level / 2, 0.5 + level / 2))
            low, high = shapes.offsets(errors * factor)
            inside = (future * factor >= low) & (future * factor <= high)
            # The further ahead, the fewer of the past's outcomes have nothing in common.
            assert inside.mean() == pytest.approx(level, abs=0.03 if horizon == 48 else 0.05)
            assert inside[:, :, -20:].mean() == pytest.approx(level, abs=0.08)


def test_the_past_is_forecast_as_a_request_is() -> None:
    """Pass after pass from every origin: what a request that ends there is answered with, by the task's own roll."""
    values = np.concatenate([np.cumsum(noise(2, 400), axis=1), np.full((1, 400), 7.0)])

    def graph(rows: np.ndarray) -> np.ndarray:
        return np.tanh(np.concatenate([rows, rows[:, :, ::-1]], axis=2)[:, :, :48]) + np.float32(0.25)

    origins = np.array([32, 100, 250, 380])
    past = rolled(PastForecasts(Series(values, ("a", "b", "c")), SPEC, origins, 110), graph)
    for number, origin in enumerate(origins):
        prepared = forecasting.prepare(Series(values[:, :origin], ("a", "b", "c")), SPEC, 110)
        passes = [forecasting.finish(prepared, {"forecast": graph(prepared.tensors["series"])})]
        while prepared.horizon > 48:
            prepared = forecasting.roll(prepared, passes[-1], SPEC)
            passes.append(forecasting.finish(prepared, {"forecast": graph(prepared.tensors["series"])}))
        wanted = forecasting.joined(passes).values
        made = min(48 * -(-(400 - origin) // 48), 110)
        scale = values[:, :origin].std(axis=1, keepdims=True).max()
        np.testing.assert_allclose(past.forecasts[number, :, :made], wanted[:, :made], atol=1e-4 * scale)
        assert np.isnan(past.forecasts[number, :, made:]).all()
    errors = past.errors()
    np.testing.assert_allclose(
        errors[2, 0, :110], (values[0, 250:360] - past.forecasts[2, 0]) / values[0, 218:250].std(), rtol=1e-9
    )
    assert np.isnan(errors[3, :, 20:]).all()


def test_what_counts_of_the_past_is_what_a_horizon_of_as_many_passes_looks_at() -> None:
    origins = np.arange(100, 1000, 3)
    errors = np.ones((len(origins), 1, 110))
    found = np.isfinite(counting(errors, origins, 1000, 48))[:, 0]
    for number, origin in enumerate(origins):
        for step, far in ((0, 48), (47, 48), (48, 96), (95, 96), (96, 110), (109, 110)):
            known, near = origin + step < 1000, origin >= 1000 - far - 96
            assert found[number, step] == (known and near)


def test_factors_are_the_quantiles_of_what_is_known() -> None:
    """Against a loop over variates and bands, with `np.quantile` on the known scores alone."""
    rng = np.random.default_rng(7)
    errors = rng.standard_normal((60, 3, 100)) * [[[0.5], [2.0], [3.0]]]
    errors[rng.random(errors.shape) < 0.4] = np.nan
    errors[10:, 2] = np.nan  # known from too few origins
    series = Series(noise(3), ("a", "b", "c"))
    found = intervals.shapes(series, SPEC, 100, (0.1, 0.9))
    away = found.offsets(errors)
    up, down = found.up[0.8], found.down[0.8]
    for start, stop in ((0, 23), (23, 48), (48, 72), (72, 96), (96, 100)):
        for variate in range(2):
            scores = np.maximum(errors / up, -errors / down)[:, variate, start:stop]
            known = scores[np.isfinite(scores)]
            factor = np.quantile(known, min(1, 0.8 * (known.size + 1) / known.size))
            np.testing.assert_allclose(away[1, variate, start:stop], factor * up[variate, start:stop], rtol=1e-12)
            np.testing.assert_allclose(away[0, variate, start:stop], -factor * down[variate, start:stop], rtol=1e-12)
    np.testing.assert_array_equal(away[:, 2], found.offsets(None)[:, 2])


def test_windows_that_never_change_tell_nothing() -> None:
    """They have no deviation to count errors in, so intervals would depend on the unit that a series is in."""
    values = noise() * (np.arange(3000) % 100 < 40)
    offsets = []
    for unit in (1.0, 1e-3, 1e4):
        series = Series(values * unit, ("a",))
        origins = past_origins(series, SPEC, 48, 1000)
        assert origins is not None
        past = rolled(PastForecasts(series, SPEC, origins, 48), zeros)
        assert 0.1 < past.constant.mean() < 0.9
        errors = past.errors()
        assert np.isnan(errors[past.constant]).all()
        offsets.append(intervals.shapes(series, SPEC, 48, (0.1, 0.9)).offsets(errors))
    np.testing.assert_allclose(offsets[1:], [offsets[0]] * 2, rtol=1e-9)


def test_quantiles_never_cross() -> None:
    series = Series(noise(), ("a",))
    rough = np.random.default_rng(3).standard_normal((40, 1, 48)) ** 3
    away = intervals.shapes(series, SPEC, 48, (0.005, 0.1, 0.25, 0.5, 0.75, 0.9, 0.995)).offsets(rough)
    assert (np.diff(away, axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("steps", "budget", "horizon"),
    [(32 + 48 + 46, 1000, 48), (3000, 29, 48), (3000, 89, 100), (32 + 100 + 46, 1000, 100)],
)
def test_a_past_that_is_too_short(steps: int, budget: int, horizon: int) -> None:
    assert past_origins(Series(noise(1, steps), ("a",)), SPEC, horizon, budget) is None
    assert past_origins(Series(noise(1, steps + 1), ("a",)), SPEC, horizon, budget + 1) is not None or steps == 3000
    assert past_origins(Series(noise(1, steps + 1), ("a",)), SPEC, horizon, 1000) is not None


def test_many_variates_have_fewer_forecasts_of_the_past() -> None:
    found = [past_origins(Series(np.zeros((n, 1000)), ("a",) * n), SPEC, 384, 10_000) for n in (1, 1024, 4096)]
    assert [None if origins is None else len(origins) for origins in found] == [160, 80, None]


def test_every_origin_of_the_past_has_a_lookback_and_no_more_are_made_than_allowed() -> None:
    for steps in (32 + 48 + 96, 200, 3000):
        origins = past_origins(Series(noise(1, steps), ("a",)), SPEC, 48, 50)
        assert origins is not None
        assert 30 <= len(origins) <= 50
        assert origins[0] >= SPEC.lookback
        assert origins[-1] == steps - 1


def test_known_series_have_the_names_and_the_step_of_the_bundle() -> None:
    assert intervals.is_known(Series(noise(), ("a",), frequency="h"), SPEC)
    assert intervals.is_known(Series(noise(), ("a",)), SPEC)
    assert intervals.is_known(Series(noise(), ("a",), frequency="60min"), SPEC)
    assert intervals.is_known(Series(noise(), ("a",), frequency="3600s"), SPEC)
    assert not intervals.is_known(Series(noise(), ("a",), frequency="D"), SPEC)
    assert not intervals.is_known(Series(noise(), ("a",), frequency="h"), SPEC.model_copy(update={"frequency": None}))
    assert not intervals.is_known(
        Series(noise(), ("a",), frequency="h"), SPEC.model_copy(update={"frequency": "hourly"})
    )
    assert not intervals.is_known(Series(noise(), ("b",)), SPEC)
    assert not intervals.is_known(Series(noise(), ("",)), SPEC)  # the bundle's name for all of its variates together


def test_probabilities() -> None:
    assert intervals.parse_probabilities(["0.1,0.9", "0.5"], ["80"]) == (0.1, 0.5, 0.9)
    assert intervals.parse_probabilities(None, ["95", "0"]) == (0.025, 0.5, 0.975)
    assert intervals.parse_probabilities(None, None) == ()
    for quantiles, levels in (
        (["x"], None),
        (["0"], None),
        (["1.5"], None),
        (["nan"], None),
        (None, ["100"]),
        (None, ["-1"]),
        (["0.5"] * 101, None),
        (None, ["80,95," * 50 + "80"]),
    ):
        with pytest.raises(UnusableInput):
            intervals.parse_probabilities(quantiles, levels)
