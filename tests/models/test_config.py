"""config.json: the round trip, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from models.classifier import VolumeClassifier
from models.config import (
    ClassifierConfig,
    Config,
    ForecasterConfig,
    KANetConfig,
    build,
    from_dict,
    input_shape,
    to_dict,
)
from models.forecaster import Forecaster
from models.kanet import KANet

SMALL = ForecasterConfig(
    lookback=12, horizon=5, patch=3, dim=8, depth=1, heads=2, hidden=8, attention="hot-sum", rotary=()
)


@pytest.mark.parametrize(
    "config",
    [
        ForecasterConfig(),
        ClassifierConfig(),
        KANetConfig(),
        SMALL,
        ClassifierConfig(volume=(4, 8, 12), rotary=(0, 2)),
        KANetConfig(size=(16, 20), channels=3, modules=(("attention", 8, 2, 1),)),
    ],
)
def test_survives_json(config: Config) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_the_kind_chooses_the_module() -> None:
    assert isinstance(build(SMALL), Forecaster)
    assert isinstance(build(ClassifierConfig(dim=8, depth=1, heads=2, hidden=8)), VolumeClassifier)
    assert isinstance(build(KANetConfig(size=(8, 8), modules=(("base", 4, 1, 1),), features=4)), KANet)


def test_input_shapes() -> None:
    assert input_shape(SMALL) == (-1, 12)
    assert input_shape(ClassifierConfig(volume=(4, 8, 12))) == (1, 4, 8, 12)
    assert input_shape(KANetConfig(size=(8, 10), channels=3)) == (3, 8, 10)


def test_a_rebuilt_module_takes_the_same_state_and_answers_the_same() -> None:
    torch.manual_seed(0)
    first, x = build(SMALL).eval(), torch.randn(2, 3, 12)
    second = build(from_dict(json.loads(json.dumps(to_dict(SMALL))))).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "unknown kind None"),
        ({"kind": "resnet"}, "unknown kind 'resnet'"),
        ({"kind": "forecaster", "width": 3, "depht": 4}, "unknown keys depht, width"),
        ({"kind": "forecaster", "volume": [8, 8, 8]}, "unknown keys volume"),
        ({"kind": "forecaster", "lookback": 97}, "97 is not divisible by patch 4"),
        (
            {"kind": "forecaster", "attention": "hot-prodct"},
            "attention must be one of hot-product, hot-sum, hot-kernelised, kao-kv",
        ),
        ({"kind": "forecaster", "readout": "max"}, "readout must be one of mean, flatten"),
        ({"kind": "forecaster", "depth": 0}, "depth must be a positive whole number"),
        ({"kind": "forecaster", "dim": "64"}, "dim must be a positive whole number"),
        ({"kind": "forecaster", "dropout": 1.0}, "dropout must be in"),
        ({"kind": "volume-classifier", "volume": [32, 32]}, "three sides"),
        ({"kind": "volume-classifier", "volume": [32, 32, 30]}, "not divisible by patch 4"),
        ({"kind": "volume-classifier", "position": "sine"}, "position must be one of none, learned, sinusoidal"),
        ({"kind": "forecaster", "feature_map": "cosine"}, "feature_map must be one of elu, random"),
        ({"kind": "volume-classifier", "classes": 1}, "classes must be a whole number of at least 2, got 1"),
        ({"kind": "kanet", "classes": 1}, "classes must be a whole number of at least 2, got 1"),
        ({"kind": "kanet", "size": [32]}, "two or three sides"),
        ({"kind": "kanet", "modules": []}, "at least one"),
        ({"kind": "kanet", "modules": [["base", 8, 2]]}, r"a module is \[kind, channels, expansion, stride\]"),
        ({"kind": "kanet", "modules": [["conv", 8, 2, 1]]}, "a module's kind must be one of base, attention"),
    ],
)
def test_what_is_not_allowed_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_rotary_must_name_a_mode_of_the_grid() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        build(ForecasterConfig(rotary=(2,)))
