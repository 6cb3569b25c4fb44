"""What the forecaster and the volume classifier answer, against the whole networks in float64 numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from models.config import AttentionKind, ClassifierConfig, Config, ForecasterConfig, build
from tests.models import kronecker, networks
from tests.models.drawn import randomised
from tests.models.kronecker import Array

TOLERANCE = 1e-10
"""Of the answer's largest value."""

FORECASTER = ForecasterConfig(lookback=21, horizon=5, patch=3, dim=10, depth=3, heads=5, hidden=7)
CLASSIFIER = ClassifierConfig(volume=(9, 6, 15), classes=3, patch=3, dim=10, depth=3, heads=5, hidden=7)
ATTENTIONS: list[AttentionKind] = ["hot-product", "hot-sum", "hot-kernelised", "kao-kv", "kao-qkv", "full", "none"]
POSITIONS: dict[str, dict[str, Any]] = {
    "none": {"position": "none", "rotary": ()},
    "rotary": {"position": "none", "rotary": (1,)},
    "rotary on all and learned": {"position": "learned", "rotary": (0, 1)},
    "learned": {"position": "learned", "rotary": ()},
    "sinusoidal": {"position": "sinusoidal", "rotary": ()},
}


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


def _answers(config: Config, x: Array) -> tuple[Array, dict[str, Array]]:
    torch.manual_seed(0)  # the directions of random features
    module = randomised(build(config), seed=1)
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy(), kronecker.weights(module)


def _assert_equal(answers: Array, expected: Array) -> None:
    assert answers.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.abs(answers - expected).max() <= TOLERANCE * largest
    if len(expected) > 1:
        assert np.ptp(expected, axis=0).min() > 1e-3 * largest, "the answer must depend on the input to prove anything"


@pytest.mark.parametrize(("batch", "variates"), [(1, 1), (1, 5), (3, 1), (2, 3)])
@pytest.mark.parametrize("readout", ["mean", "flatten"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_forecasts(attention: AttentionKind, positions: str, readout: Any, batch: int, variates: int) -> None:
    config = dataclasses.replace(FORECASTER, attention=attention, readout=readout, **POSITIONS[positions])
    rng = np.random.default_rng(2)
    x = rng.normal(size=(batch, variates, 21)).cumsum(axis=-1) * rng.uniform(1, 50, (batch, variates, 1)) - 30
    answers, weights = _answers(config, x)
    _assert_equal(answers, np.stack([networks.forecast(series, weights, config) for series in x]))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_classifies(attention: AttentionKind, positions: str, batch: int) -> None:
    config = dataclasses.replace(CLASSIFIER, attention=attention, **POSITIONS[positions])
    x = np.random.default_rng(3).normal(size=(batch, 1, 9, 6, 15))
    answers, weights = _answers(config, x)
    _assert_equal(answers, np.stack([networks.logits(volume[0], weights, config) for volume in x]))


def test_kernelised_by_random_features() -> None:
    config = dataclasses.replace(FORECASTER, attention="hot-kernelised", feature_map="random")
    x = np.random.default_rng(4).normal(size=(2, 3, 21))
    answers, weights = _answers(config, x)
    _assert_equal(answers, np.stack([networks.forecast(series, weights, config) for series in x]))
