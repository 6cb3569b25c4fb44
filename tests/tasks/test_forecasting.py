"""The forecasting task: scaling that no unit or offset can tell apart, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import InferenceFailed, UnusableInput
from app.manifest import Forecasting
from app.readers.series import MAX_VARIATES, Series
from app.tasks.forecasting import Array, Forecast, finish, prepare, standardise

SPEC = Forecasting(lookback=24, horizon=8)


def walk(variates: int = 3, steps: int = 40) -> Array:
    return np.random.default_rng(5).standard_normal((variates, steps)).cumsum(axis=1)


def series(values: Array, **fields: object) -> Series:
    return Series(values, tuple(f"v{index}" for index in range(len(values))), **fields)  # type: ignore[arg-type]


def forecast(values: Array, horizon: int | None = None) -> Forecast:
    """Through the task with a stand-in for the graph: any function of the scaled window will do."""
    prepared = prepare(series(values), SPEC, horizon)
    (window,) = prepared.tensors.values()
    answer = np.tanh(window[:, :, -SPEC.horizon :]) + np.float32(0.25)
    return finish(prepared, {"forecast": answer})


def test_standardise_equals_mean_and_standard_deviation() -> None:
    window = walk()
    scaled, mean, scale = standardise(window)
    assert (scaled.dtype, scaled.shape, mean.shape, scale.shape) == (np.float32, (3, 40), (3, 1), (3, 1))
    np.testing.assert_allclose(mean[:, 0], window.mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(scale[:, 0], window.std(axis=1), rtol=1e-13)
    np.testing.assert_allclose(scaled * scale + mean, window, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-300, 1e-6, 0.1, 1e6, 1e290])
def test_the_graph_sees_the_same_window_in_every_unit(unit: float) -> None:
    reference, mean, scale = standardise(walk())
    scaled, scaled_mean, scaled_scale = standardise(walk() * unit)
    np.testing.assert_allclose(scaled, reference, rtol=0, atol=2e-7)
    np.testing.assert_allclose(scaled_mean, mean * unit, rtol=1e-12)
    np.testing.assert_allclose(scaled_scale, scale * unit, rtol=1e-12)


@pytest.mark.parametrize("offset", [1e3, -1e6, 1e9, 1e12])
def test_an_offset_costs_no_more_than_its_own_rounding(offset: float) -> None:
    shifted = walk() + offset
    rounding = np.spacing(abs(offset))  # of the input itself, before the service saw it
    reference, mean, scale = standardise(walk())
    scaled, shifted_mean, shifted_scale = standardise(shifted)
    np.testing.assert_allclose(scaled, reference, rtol=0, atol=2e-7 + 4 * rounding)
    np.testing.assert_allclose(shifted_mean, mean + offset, rtol=0, atol=2 * rounding)
    np.testing.assert_allclose(shifted_scale, scale, rtol=0, atol=2 * rounding + 1e-13)


@pytest.mark.parametrize(("unit", "offset"), [(1e-6, 0), (1e6, 0), (1, 1e6), (1e-6, -3), (-2, 0)])
def test_the_forecast_follows_the_unit(unit: float, offset: float) -> None:
    values = walk()
    changed = values.copy()
    changed[1] = changed[1] * unit + offset
    before, after = forecast(values).values, forecast(changed).values
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    if unit > 0:
        np.testing.assert_allclose(after[1], before[1] * unit + offset, rtol=1e-6, atol=1e-6 * abs(unit))


@pytest.mark.parametrize("constant", [0.0, 0.1, -7e12, 1e-310, 1e299])
def test_a_constant_stays_constant(constant: float) -> None:
    values = walk()
    values[1] = constant
    scaled, _, scale = standardise(values)
    assert scale[1] == 1
    assert not scaled[1].any()
    answer = forecast(values).values
    assert (answer[1] == constant).all()
    assert (forecast(walk()).values[[0, 2]] == answer[[0, 2]]).all()


@given(hnp.arrays(np.float64, (2, 24), elements=st.floats(-1e300, 1e300)))
def test_any_finite_window_is_scaled_to_finite_numbers(window: Array) -> None:
    scaled, mean, scale = standardise(window)
    assert np.isfinite(scaled).all()
    assert np.isfinite(mean).all()
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert np.abs(scaled).max() <= np.sqrt(24) + 1e-5
    span = np.ptp(window, axis=1, keepdims=True) if np.abs(window).max() < 1e299 else np.full((2, 1), np.inf)
    assert (np.abs(scaled * scale + mean - window) <= 1e-5 * span + 1e-307).all()


def test_the_last_lookback_steps_are_used() -> None:
    values = walk(steps=100)
    (long,) = prepare(series(values), SPEC).tensors.values()
    (short,) = prepare(series(values[:, -24:].copy()), SPEC).tensors.values()
    assert long.shape == (1, 3, 24)
    np.testing.assert_array_equal(long, short)


def test_shorter_horizons_are_a_prefix() -> None:
    whole = forecast(walk()).values
    assert whole.shape == (3, 8)
    np.testing.assert_array_equal(forecast(walk(), 3).values, whole[:, :3])


@pytest.mark.parametrize("horizon", [0, -1, 65])
def test_horizons_out_of_range(horizon: int) -> None:
    with pytest.raises(UnusableInput, match="1 to 8") as caught:
        prepare(series(walk()), SPEC, horizon)
    assert caught.value.field == "horizon"


def test_too_short_too_wide_too_large() -> None:
    with pytest.raises(UnusableInput, match="lookback of this model is 24"):
        prepare(series(walk(steps=23)), SPEC)
    with pytest.raises(UnusableInput, match="variates"):
        prepare(series(np.zeros((MAX_VARIATES + 1, 24))), SPEC)
    with pytest.raises(UnusableInput, match="1e\\+300"):
        prepare(series(walk() * 1e305), SPEC)
    with pytest.raises(UnusableInput, match="float32"):
        prepare(series(walk() * 1e39), Forecasting(lookback=24, horizon=8, standardise=False))


def test_a_model_that_scales_for_itself_gets_the_values() -> None:
    spec = Forecasting(lookback=24, horizon=8, standardise=False)
    values = walk()
    values[1] = 3
    prepared = prepare(series(values), spec, input_name="x")
    np.testing.assert_array_equal(prepared.tensors["x"][0], values[:, -24:].astype(np.float32))
    answer = finish(prepared, {"y": np.full((1, 3, 8), 9, np.float32)})
    assert (answer.values == 9).all()


def test_timestamps_continue() -> None:
    stamps = pd.date_range("2020-01-31", periods=40, freq="ME")
    prepared = prepare(series(walk(), timestamps=stamps, frequency="ME", time_name="when"), SPEC, 2)
    answer = finish(prepared, {"y": np.zeros((1, 3, 8), np.float32)})
    assert answer.timestamps is not None
    assert [stamp.isoformat() for stamp in answer.timestamps] == ["2023-05-31T00:00:00", "2023-06-30T00:00:00"]
    assert (answer.frequency, answer.time_name) == ("ME", "when")
    assert forecast(walk()).timestamps is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_graph_that_answers_nonsense_has_failed(value: float) -> None:
    with pytest.raises(InferenceFailed):
        finish(prepare(series(walk()), SPEC), {"y": np.full((1, 3, 8), value, np.float32)})


def test_a_graph_of_fixed_width_takes_so_many_variates() -> None:
    values = np.random.default_rng(0).normal(size=(2, 30))
    assert prepare(series(values), SPEC, width=2).tensors["series"].shape[1] == 2
    with pytest.raises(UnusableInput, match="the series has 2 variates; this model takes exactly 3"):
        prepare(series(values), SPEC, width=3)
