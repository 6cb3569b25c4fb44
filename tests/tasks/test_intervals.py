"""Intervals hold as often as they say, on series whose errors are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from app.errors import UnusableInput
from app.manifest import Forecasting, Intervals
from app.readers.series import Series
from app.tasks import intervals

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


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_the_own_past_brings_intervals_to_their_level(spread: float) -> None:
    """A forecaster that answers 0 on noise: its errors are those of the noise, whatever the bundle's were."""
    series = Series(noise() * spread, ("other",))
    past = intervals.past_of(series, SPEC, 48, 1000)
    assert past is not None
    windows, mean, scale = intervals.past_windows(series, SPEC, past)
    np.testing.assert_allclose(windows.std(axis=2), 1, rtol=1e-5)
    errors = intervals.past_errors(series, past, np.zeros((len(windows), 1, 48)), mean, scale)
    assert np.isnan(errors[-1, 0, -1])
    assert np.isfinite(errors[0]).all()
    # Forecasts of 3 in place of 0, in the windows' units: the past is missed by as much.
    missed = errors * 3
    future = intervals.past_errors(
        Series(noise(1, 4000, 2) * spread, ("other",)),
        intervals.Past(np.arange(100, 3900, 7)),
        np.zeros((543, 1, 48)),
        *intervals.past_windows(
            Series(noise(1, 4000, 2) * spread, ("other",)), SPEC, intervals.Past(np.arange(100, 3900, 7))
        )[1:],
    )
    for level in (0.8, 0.95):
        pair = (0.5 - level / 2, 0.5 + level / 2)
        shapes = intervals.shapes(series, SPEC, 48, pair)
        low, high = shapes.offsets(errors)
        assert np.nanmean((future >= low) & (future <= high)) == pytest.approx(level, abs=0.03)
        low, high = shapes.offsets(missed)
        assert np.nanmean((future * 3 >= low) & (future * 3 <= high)) == pytest.approx(level, abs=0.03)


def test_quantiles_never_cross() -> None:
    series = Series(noise(), ("a",))
    rough = np.random.default_rng(3).standard_normal((40, 1, 48)) ** 3
    away = intervals.shapes(series, SPEC, 48, (0.005, 0.1, 0.25, 0.5, 0.75, 0.9, 0.995)).offsets(rough)
    assert (np.diff(away, axis=0) >= 0).all()


@pytest.mark.parametrize(("steps", "budget"), [(32 + 48 + 46, 1000), (3000, 29)])
def test_a_past_that_is_too_short(steps: int, budget: int) -> None:
    assert intervals.past_of(Series(noise(1, steps), ("a",)), SPEC, 48, budget) is None


def test_every_origin_of_the_past_has_a_lookback_and_no_more_are_made_than_allowed() -> None:
    for steps in (32 + 48 + 96, 200, 3000):
        past = intervals.past_of(Series(noise(1, steps), ("a",)), SPEC, 48, 50)
        assert past is not None
        assert 30 <= len(past.origins) <= 50
        assert past.origins[0] >= SPEC.lookback
        assert past.origins[-1] == steps - 1


def test_known_series_have_the_names_and_the_step_of_the_bundle() -> None:
    assert intervals.is_known(Series(noise(), ("a",), frequency="h"), SPEC)
    assert intervals.is_known(Series(noise(), ("a",)), SPEC)
    assert not intervals.is_known(Series(noise(), ("a",), frequency="D"), SPEC)
    assert not intervals.is_known(Series(noise(), ("b",)), SPEC)


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
    ):
        with pytest.raises(UnusableInput):
            intervals.parse_probabilities(quantiles, levels)
