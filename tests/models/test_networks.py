"""The forecaster and the volume classifier: shapes and the symmetries that must hold."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch

from models.config import AttentionKind, ClassifierConfig, Config, ForecasterConfig, build

FORECASTER = ForecasterConfig(lookback=24, horizon=17, patch=4, dim=16, depth=2, heads=4, hidden=24)
ATTENTIONS = get_args(AttentionKind)
CLASSIFIER = ClassifierConfig(volume=(8, 12, 16), classes=3, patch=4, dim=16, depth=2, heads=4, hidden=24)


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


def _built(config: Config, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(dataclasses.replace(config, **changes)).double().eval()


def _series(batch: int, variates: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, variates, 24, generator=generator, dtype=torch.float64).cumsum(-1)


@pytest.mark.parametrize("readout", ["mean", "flatten"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("batch", "variates"), [(1, 1), (2, 7), (3, 1)])
def test_forecasts_any_batch_and_any_number_of_variates(
    batch: int, variates: int, attention: str, readout: str
) -> None:
    module = _built(FORECASTER, attention=attention, readout=readout)
    forecast = module(_series(batch, variates))
    assert forecast.shape == (batch, variates, 17)
    assert torch.isfinite(forecast).all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_permuting_the_variates_permutes_the_forecasts(attention: str) -> None:
    module, x = _built(FORECASTER, attention=attention), _series(2, 5)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order], rtol=1e-10, atol=1e-10)


def test_a_batch_is_its_samples() -> None:
    module, x = _built(FORECASTER), _series(4, 3)
    torch.testing.assert_close(module(x), torch.cat([module(row) for row in x.split(1)]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_variates_inform_each_other_through_attention_alone(attention: str) -> None:
    """Changing one variate changes the others' forecasts, except in the network without attention."""
    module, x = _built(FORECASTER, attention=attention), _series(1, 3)
    changed = x.clone()
    changed[0, 0] = changed[0, 0].flip(-1)
    difference = float((module(x)[0, 1:] - module(changed)[0, 1:]).abs().max().detach())
    assert difference < 1e-12 if attention == "none" else difference > 1e-7


@pytest.mark.parametrize(("position", "notices"), [("none", False), ("learned", True), ("sinusoidal", True)])
def test_only_positions_make_the_forecaster_notice_the_order_of_patches(position: str, notices: bool) -> None:
    """Under a mean over time, KAO sees a set of patches; positions make it a sequence."""
    module, x = _built(FORECASTER, attention="kao-kv", position=position), _series(1, 2)
    swapped = torch.cat((x[..., 12:], x[..., :12]), dim=-1)
    difference = float((module(x) - module(swapped)).abs().max().detach())
    assert difference > 1e-6 if notices else difference < 1e-12


@pytest.mark.parametrize("readout", ["mean", "flatten"])
def test_the_forecast_follows_each_series_unit(readout: str) -> None:
    """f(a x + b) = a f(x) + b per variate, up to the normalisation's epsilon (1e-5 beside a variance of 1 or more)."""
    module, x = _built(FORECASTER, readout=readout), _series(2, 3) * 100
    scale = torch.tensor([1e3, 7.0, 50.0], dtype=torch.float64)[:, None]
    offset = torch.tensor([-4e4, 0.0, 3.0], dtype=torch.float64)[:, None]
    restored = (module(x * scale + offset) - offset) / scale
    torch.testing.assert_close(restored, module(x), rtol=1e-6, atol=1e-6)


def test_a_constant_series_is_forecast_near_its_value() -> None:
    """The window's deviation is 0; the epsilon keeps the answer finite and near the constant."""
    forecast = _built(FORECASTER)(torch.full((1, 2, 24), 42.0, dtype=torch.float64))
    assert (forecast - 42.0).abs().max() < 0.05


def test_a_mean_readout_of_one_patch_equals_a_flattened_one() -> None:
    """With a single patch there is nothing to average, and the two readouts are one network."""
    mean, flatten = (_built(FORECASTER, patch=24, readout=readout) for readout in ("mean", "flatten"))
    flatten.load_state_dict(mean.state_dict())
    x = _series(2, 3)
    torch.testing.assert_close(mean(x), flatten(x))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal"])
@pytest.mark.parametrize("batch", [1, 3])
def test_classifies_a_batch_of_volumes(batch: int, position: str, attention: str) -> None:
    module = _built(CLASSIFIER, position=position, attention=attention)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 1, 8, 12, 16, generator=generator, dtype=torch.float64)
    logits = module(x)
    assert logits.shape == (batch, 3)
    torch.testing.assert_close(logits, torch.cat([module(row) for row in x.split(1)]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "notices"),
    [
        ({"position": "none"}, False),
        ({}, True),
        ({"position": "sinusoidal"}, True),
        ({"position": "none", "rotary": (0,)}, True),
    ],
)
def test_only_positions_make_the_classifier_notice_where_a_patch_stands(changes: dict[str, Any], notices: bool) -> None:
    module = _built(CLASSIFIER, **changes)
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(1, 1, 8, 12, 16, generator=generator, dtype=torch.float64)
    swapped = torch.cat((x[:, :, 4:], x[:, :, :4]), dim=2)  # the two layers of patches along D change places
    difference = float((module(x) - module(swapped)).abs().max().detach())
    assert difference > 1e-6 if notices else difference < 1e-12


@pytest.mark.parametrize("position", ["none", "sinusoidal"])
def test_without_learned_positions_any_volume_is_classified(position: str) -> None:
    module = _built(CLASSIFIER, position=position)
    for shape in ((4, 4, 4), (8, 12, 16), (20, 4, 12)):
        assert module(torch.rand(2, 1, *shape, dtype=torch.float64)).shape == (2, 3)


def test_dropout_acts_in_training_only() -> None:
    module, x = _built(FORECASTER, dropout=0.5), _series(1, 2)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
