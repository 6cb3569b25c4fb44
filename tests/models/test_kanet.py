"""KANet against a float64 forward pass by loops, and what its modules do."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from models.config import KANetConfig, build
from models.kanet import KANetModule
from models.kao import KAOAttention
from tests.models import kronecker
from tests.models.drawn import randomised
from tests.models.kronecker import Array

MODULES = (("base", 4, 2, 2), ("attention", 4, 2, 1), ("attention", 6, 1, 2))
CONFIGS = {
    "image": KANetConfig(size=(9, 7), channels=2, classes=3, stem=3, modules=MODULES, features=5, heads=2),
    "volume": KANetConfig(size=(6, 7, 5), stem=2, modules=MODULES, features=5, heads=2, attention="kao-qkv"),
}


def _convolution(x: Array, weight: Array, stride: int) -> Array:
    """x [c, N1, ..], weight [c', c / groups, n, ..]: padding n // 2, one dot product a value."""
    kernel, order = weight.shape[2], x.ndim - 1
    margin = kernel // 2
    padded = np.pad(x, [(0, 0)] + [(margin, margin)] * order)
    sizes = [(side + 2 * margin - kernel) // stride + 1 for side in x.shape[1:]]
    groups = len(x) // weight.shape[1]
    result = np.empty((len(weight), *sizes))
    for channel in range(len(weight)):
        first = channel // (len(weight) // groups) * weight.shape[1]
        for position in itertools.product(*map(range, sizes)):
            window = tuple(slice(stride * at, stride * at + kernel) for at in position)
            patch = padded[(slice(first, first + weight.shape[1]), *window)]
            result[(channel, *position)] = (patch * weight[channel]).sum()
    return result


def _normalised(x: Array, w: dict[str, Array], name: str) -> Array:
    shape = (-1,) + (1,) * (x.ndim - 1)
    mean, variance, gain, bias = (
        w[f"{name}.{part}"].reshape(shape) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + bias


def _activated(x: Array, w: dict[str, Array], name: str, stride: int = 1) -> Array:
    convolved = _convolution(x, w[f"{name}.0.weight"], stride)
    return np.clip(_normalised(convolved, w, f"{name}.1"), 0, 6)


def _reference(x: Array, w: dict[str, Array], config: KANetConfig) -> Array:
    """Logits of one sample [channels, *size]."""
    maps = _activated(x, w, "stem", 2)
    queries = "tokens" if config.attention == "kao-kv" else "means"
    for index, (kind, channels, _, stride) in enumerate(config.modules):
        name = f"body.{index}"
        branch = _activated(_activated(maps, w, f"{name}.expand"), w, f"{name}.depthwise", stride)
        if kind == "attention":
            attending = {
                key.removeprefix(f"{name}.attention."): value for key, value in w.items() if f"{name}.attention" in key
            }
            grid = np.moveaxis(branch, 0, -1)[np.newaxis]
            branch = branch + np.moveaxis(kronecker.kao(grid, attending, config.heads, queries)[0], -1, 0)
        projected = _normalised(_convolution(branch, w[f"{name}.project.0.weight"], 1), w, f"{name}.project.1")
        maps = maps + projected if stride == 1 and channels == len(maps) else projected
    last = _activated(maps, w, "last")
    return kronecker.linear(last.reshape(len(last), -1).mean(axis=1), w, "head")


def _built(config: KANetConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    module = randomised(build(config), seed=1)
    generator = torch.Generator().manual_seed(2)
    # Normalisations that leave most channels between the two ends of ReLU6.
    values = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    with torch.no_grad():
        for name, value in values.items():
            if name.endswith(("running_mean", "running_var", ".1.weight", ".1.bias")):
                value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5)
    return module


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_forward_pass_by_loops(name: str) -> None:
    config = CONFIGS[name]
    module = _built(config)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, config.channels, *config.size, generator=generator, dtype=torch.float64)
    expected = [_reference(sample, kronecker.weights(module), config) for sample in x.numpy()]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    assert np.ptp(expected, axis=0).min() > 1e-3, "the logits must depend on the input for this to prove anything"


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("outputs", "stride", "skips"), [(4, 1, True), (4, 2, False), (6, 1, False)])
def test_the_shortcut_is_there_when_the_shape_stays(order: int, outputs: int, stride: int, skips: bool) -> None:
    module = KANetModule(order, 4, outputs, 2, stride, KAOAttention(8, 2)).eval()
    with torch.no_grad():
        module.project[0].weight.zero_()  # type: ignore[operator]
    x = torch.randn(2, 4, *[6] * order)
    output = module(x)
    assert output.shape == (2, outputs, *[6 // stride] * order)
    assert torch.equal(output, x if skips else torch.zeros_like(output))


def test_attention_carries_a_change_across_the_map() -> None:
    """A corner changes what the last module makes of the far corner, beyond the reach of its convolutions."""

    def far_change(**changes: Any) -> float:
        torch.manual_seed(0)
        module = KANetModule(2, 4, 4, 2, 1, KAOAttention(8, 2) if changes["attends"] else None).double().eval()
        x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
        changed = x.clone()
        changed[..., 0, 0] += 1
        return float((module(x) - module(changed))[..., 8, 8].abs().max().detach())

    assert far_change(attends=False) == 0
    assert far_change(attends=True) > 1e-8
