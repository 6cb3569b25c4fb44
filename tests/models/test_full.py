"""The baselines against the definition in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest

from models.full import FullAttention, NoAttention, Variant
from tests.models import kronecker
from tests.models.drawn import drawn_input, randomised


@pytest.mark.parametrize("variant", ["fused", "naive", "pooled"])
@pytest.mark.parametrize("grid", [(5,), (1,), (3, 4), (1, 7), (3, 2, 5), (2, 3, 1, 2)])
def test_full_attention_equals_the_definition(grid: tuple[int, ...], variant: Variant) -> None:
    module = randomised(FullAttention(12, heads=3, variant=variant), seed=11)
    x = drawn_input(2, grid, 12)
    expected = kronecker.full_attention(x.numpy(), kronecker.weights(module), 3, pooled=variant == "pooled")
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_pooling_may_be_of_some_modes() -> None:
    """Along the last mode alone: as if every row of the grid had been pooled by itself."""
    module = randomised(FullAttention(12, heads=3, variant="pooled", pooled=(1,)), seed=5)
    x = drawn_input(1, (3, 5), 12)
    w = kronecker.weights(module)
    source = np.concatenate([kronecker.cell_means(row) for row in x[0].numpy()])
    query = kronecker.linear(x[0].numpy().reshape(15, 12), w, "query")
    mixed = kronecker.attend(query, kronecker.linear(source, w, "key"), kronecker.linear(source, w, "value"), 3)
    expected = kronecker.linear(mixed, w, "out").reshape(1, 3, 5, 12)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_without_attention_tokens_do_not_meet() -> None:
    module = randomised(NoAttention(6), seed=3)
    x = drawn_input(2, (3, 4), 6)
    w = kronecker.weights(module)
    expected = kronecker.linear(kronecker.linear(x.numpy(), w, "value"), w, "out")
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-12)
    changed = x.clone()
    changed[:, 1, 2] += 1
    differs = (module(x) != module(changed)).any(dim=-1)
    assert differs.sum() == 2
    assert differs[:, 1, 2].all()
