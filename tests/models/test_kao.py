"""KAO against its definition in float64 numpy: project every token, average, attend, project."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.kao import KAOAttention, Queries, mode_means
from tests.models import kronecker
from tests.models.drawn import drawn_input, randomised

GRIDS = [(5,), (1,), (3, 7), (1, 6), (7, 1), (3, 5, 2), (3, 1, 5), (3, 2, 5, 2)]
QUERIES: list[Queries] = ["tokens", "means"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("queries", QUERIES)
def test_equals_the_definition(queries: Queries, grid: tuple[int, ...], batch: int) -> None:
    module = randomised(KAOAttention(12, heads=3, queries=queries), seed=1)
    x = drawn_input(batch, grid, 12)
    expected = kronecker.kao(x.numpy(), kronecker.weights(module), 3, queries)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_means_are_the_papers() -> None:
    """H[i] = mean_j X[i, j] and L[j] = mean_i X[i, j], by loops."""
    x = drawn_input(1, (3, 4), 2)
    horizontal, lateral = (mean[0].numpy() for mean in mode_means(x))
    for i in range(3):
        np.testing.assert_allclose(horizontal[i], sum(x[0, i, j].numpy() for j in range(4)) / 4, rtol=1e-12)
    for j in range(4):
        np.testing.assert_allclose(lateral[j], sum(x[0, i, j].numpy() for i in range(3)) / 3, rtol=1e-12)


def test_on_a_sequence_it_is_full_attention() -> None:
    """With one mode the means are the tokens: both operators become ordinary self-attention."""
    for queries in QUERIES:
        module = randomised(KAOAttention(8, heads=2, queries=queries), seed=2)
        x = drawn_input(2, (6,), 8)
        expected = kronecker.full_attention(x.numpy(), kronecker.weights(module), 2)
        np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("queries", QUERIES)
def test_permuting_a_mode_permutes_the_answer(queries: Queries) -> None:
    module = randomised(KAOAttention(12, heads=3, queries=queries), seed=9)
    x = drawn_input(2, (4, 5, 3), 12)
    order = torch.tensor([2, 0, 4, 1, 3])
    torch.testing.assert_close(module(x[:, :, order]), module(x)[:, :, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("queries", QUERIES)
def test_gradients_equal_finite_differences(queries: Queries) -> None:
    module = randomised(KAOAttention(4, heads=2, queries=queries), seed=10)
    assert torch.autograd.gradcheck(module, (drawn_input(1, (2, 3), 4).requires_grad_(),))


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="not divisible by heads"):
        KAOAttention(10, heads=3)
