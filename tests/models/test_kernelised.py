"""Kernelised HOT attention against N x N matrices in float64 numpy, and against the softmax it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.attention import FeatureMap, HOTAttention, orthogonal_directions, random_features
from models.cores import attention_matrix, kernel_matrix
from tests.models import kronecker
from tests.models.drawn import drawn_input, randomised

GRIDS = [(5,), (1,), (3, 7), (1, 6), (3, 5, 2), (3, 1, 5), (3, 2, 5, 2)]


def _module(dim: int, order: int, feature_map: FeatureMap, seed: int, rotary: tuple[int, ...] = ()) -> HOTAttention:
    torch.manual_seed(seed)  # the directions are drawn when the module is made
    module = HOTAttention(dim, order, 3, "kernelised", rotary, feature_map)
    randomised(module, seed)
    return module


@pytest.mark.parametrize("rotary", [(), (0,)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("feature_map", ["elu", "random"])
def test_equals_the_full_kronecker_matrix(
    feature_map: FeatureMap, grid: tuple[int, ...], batch: int, rotary: tuple[int, ...]
) -> None:
    module = _module(12, len(grid), feature_map, seed=1, rotary=rotary)
    x = drawn_input(batch, grid, 12)
    expected = kronecker.hot(x.numpy(), kronecker.weights(module), 3, "kernelised", rotary, feature_map)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("feature_map", ["elu", "random"])
def test_mode_attentions_equal_their_definition(feature_map: FeatureMap) -> None:
    module = _module(12, 2, feature_map, seed=4)
    x = drawn_input(2, (3, 7), 12)
    found = [matrices.detach().numpy() for matrices in module.mode_attentions(x)]
    for row, sample in enumerate(x.numpy()):
        expected = kronecker.mode_attentions(sample, kronecker.weights(module), 3, (), feature_map)
        for mode, matrices in enumerate(found):
            np.testing.assert_allclose(matrices.sum(axis=-1), 1, rtol=1e-12)
            for head in range(3):
                np.testing.assert_allclose(matrices[row, head], expected[head][mode], rtol=1e-10, atol=1e-12)


def test_random_features_approach_the_softmax() -> None:
    """The error falls as one over the root of the number of features, from any start."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 6, 1, 4, generator=generator, dtype=torch.float64) / 2 for _ in range(2))
    exact = attention_matrix(query, key)

    def error(count: int) -> float:
        directions = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        features = random_features(query, directions, (-1,)), random_features(key, directions, (1, -1))
        return float((kernel_matrix(*features) - exact).abs().max())

    few, many = np.mean([error(100) for _ in range(20)]), np.mean([error(10_000) for _ in range(20)])
    assert many < 0.02
    assert 5 < few / many < 20


def test_directions_are_orthogonal_in_blocks() -> None:
    torch.manual_seed(0)
    directions = orthogonal_directions(10, 4).double()
    assert directions.shape == (10, 4)
    for block in directions.split(4):
        products = block @ block.T
        lengths = products.diagonal().sqrt()
        torch.testing.assert_close(
            products / lengths[:, None] / lengths, torch.eye(len(block), dtype=torch.float64), rtol=0, atol=1e-6
        )
    assert 1.5 < float(orthogonal_directions(4000, 4).norm(dim=-1).square().mean()) / 2 < 2.5


def test_random_features_do_not_overflow() -> None:
    module = HOTAttention(8, 2, 2, "kernelised", feature_map="random")
    with torch.no_grad():
        module.query_norm.weight.fill_(30.0)
        module.key_norm.weight.fill_(30.0)
    assert torch.isfinite(module(torch.randn(2, 5, 7, 8))).all()


def test_directions_belong_to_the_state() -> None:
    first, second = (HOTAttention(8, 2, 2, "kernelised", feature_map="random") for _ in range(2))
    x = torch.randn(1, 3, 4, 8)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("feature_map", ["elu", "random"])
def test_gradients_equal_finite_differences(feature_map: FeatureMap) -> None:
    torch.manual_seed(0)
    module = HOTAttention(4, 2, 2, "kernelised", (1,), feature_map)
    randomised(module, seed=10)
    assert torch.autograd.gradcheck(module, (drawn_input(1, (2, 3), 4).requires_grad_(),))
