"""HOT attention against N x N matrices in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.attention import Combine, HOTAttention
from models.cores import hot_product, hot_sum
from tests.models import kronecker
from tests.models.drawn import drawn_input, randomised

GRIDS = [(5,), (1,), (3, 7), (1, 6), (3, 5, 2), (3, 1, 5), (3, 2, 5, 2)]
"""Orders 1 to 4, odd sizes and single-token modes (one variate)."""


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("combine", ["product", "sum"])
def test_equals_the_full_kronecker_matrix(combine: Combine, grid: tuple[int, ...], batch: int) -> None:
    module = randomised(HOTAttention(12, len(grid), heads=3, combine=combine), seed=1)
    x = drawn_input(batch, grid, 12)
    expected = kronecker.hot(x.numpy(), kronecker.weights(module), 3, combine)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("modes", [(0,), (1,), (0, 1), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("combine", ["product", "sum"])
def test_equals_the_full_kronecker_matrix_with_rotary(combine: Combine, modes: tuple[int, ...]) -> None:
    grid = (3, 5) if max(modes) < 2 else (3, 5, 4)
    module = randomised(HOTAttention(12, len(grid), heads=3, combine=combine, rotary=modes), seed=2)
    x = drawn_input(2, grid, 12, seed=3)
    expected = kronecker.hot(x.numpy(), kronecker.weights(module), 3, combine, modes)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_rotary_changes_the_answer() -> None:
    """Otherwise the test above would pass with rotary left out on both sides."""
    plain = randomised(HOTAttention(12, 2, heads=3), seed=2)
    turned = randomised(HOTAttention(12, 2, heads=3, rotary=(1,)), seed=2)
    x = drawn_input(2, (3, 5), 12, seed=3)
    assert (plain(x) - turned(x)).abs().max() > 1e-2


@pytest.mark.parametrize("grid", [(4,), (3, 5), (2, 3, 5)])
def test_the_product_matrix_is_a_distribution_and_the_sum_has_mass_k(grid: tuple[int, ...]) -> None:
    """Rows of A1 x ... x Ak sum to 1; rows of the plain sum to k: constant values come back once and k times."""
    generator = torch.Generator().manual_seed(4)
    vectors = [torch.randn(2, size, 3, 4, generator=generator, dtype=torch.float64) for size in grid]
    value = torch.ones(2, *grid, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(hot_product(value, vectors, vectors), value)
    torch.testing.assert_close(hot_sum(value, vectors, vectors), value * len(grid))


@pytest.mark.parametrize("grid", [(5,), (3, 7), (3, 5, 2)])
def test_pooling_before_projection_equals_projecting_then_pooling(grid: tuple[int, ...]) -> None:
    """The module pools first; the paper projects first. Here projection, pooling and core are all torch's."""
    heads, dim, order = 3, 12, len(grid)
    module = randomised(HOTAttention(dim, order, heads), seed=7)
    assert isinstance(module, HOTAttention)
    x = drawn_input(2, grid, dim, seed=8)

    def pooled(projection: torch.nn.Linear, norm: torch.nn.LayerNorm, mode: int) -> torch.Tensor:
        slices = projection(x).unflatten(-1, (order, dim))[..., mode, :]
        others = [axis + 1 for axis in range(order) if axis != mode]
        summed = slices.sum(dim=others) if others else slices
        return norm(summed.unflatten(-1, (heads, dim // heads)))

    queries = [pooled(module.query, module.query_norm, mode) for mode in range(order)]
    keys = [pooled(module.key, module.key_norm, mode) for mode in range(order)]
    value = module.value(x).unflatten(-1, (heads, dim // heads))
    expected = module.out(hot_product(value, queries, keys).flatten(-2))
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_permuting_a_mode_without_rotary_permutes_the_answer(combine: Combine) -> None:
    module = randomised(HOTAttention(12, 3, heads=3, combine=combine, rotary=(2,)), seed=9)
    x = drawn_input(2, (4, 5, 3), 12)
    order = torch.tensor([2, 0, 4, 1, 3])
    torch.testing.assert_close(module(x[:, :, order]), module(x)[:, :, order], rtol=1e-10, atol=1e-10)
    flipped = module(x.flip(3)).flip(3)
    assert (flipped - module(x)).abs().max() > 1e-3, "the rotary mode must notice order"


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_gradients_equal_finite_differences(combine: Combine) -> None:
    module = randomised(HOTAttention(4, 2, heads=2, combine=combine, rotary=(1,)), seed=10)
    x = drawn_input(1, (2, 3), 4).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))


def test_order_one_attends_like_a_single_matrix() -> None:
    """With one mode, product and sum are the same attention."""
    product = randomised(HOTAttention(8, 1, heads=2, combine="product"), seed=12)
    total = randomised(HOTAttention(8, 1, heads=2, combine="sum"), seed=12)
    x = drawn_input(2, (6,), 8)
    torch.testing.assert_close(product(x), total(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "order": 2, "heads": 3}, "not divisible by heads"),
        ({"dim": 12, "order": 0, "heads": 3}, "at least 1"),
        ({"dim": 12, "order": 2, "heads": 3, "rotary": (2,)}, r"outside 0\.\.1"),
        ({"dim": 9, "order": 2, "heads": 3, "rotary": (1,)}, "even head width"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HOTAttention(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("rotary", [(), (1,)])
@pytest.mark.parametrize("grid", [(3, 7), (3, 5, 2)])
def test_mode_attentions_equal_their_definition(grid: tuple[int, ...], rotary: tuple[int, ...]) -> None:
    module = randomised(HOTAttention(12, len(grid), heads=3, rotary=rotary), seed=13)
    assert isinstance(module, HOTAttention)
    x = drawn_input(2, grid, 12)
    found = [matrices.detach().numpy() for matrices in module.mode_attentions(x)]
    assert [matrices.shape for matrices in found] == [(2, 3, size, size) for size in grid]
    for row, sample in enumerate(x.numpy()):
        expected = kronecker.mode_attentions(sample, kronecker.weights(module), 3, rotary)
        for mode, matrices in enumerate(found):
            for head in range(3):
                np.testing.assert_allclose(matrices[row, head], expected[head][mode], rtol=1e-10, atol=1e-12)
