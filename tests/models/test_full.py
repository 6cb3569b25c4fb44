"""The baselines against the definition in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.full import FullAttention, NoAttention, Variant
from tests.models import kronecker
from tests.models.drawn import drawn_input, randomised


@pytest.mark.parametrize("variant", ["fused", "naive", "pooled"])
@pytest.mark.parametrize("grid", [(5,), (1,), (3, 4), (1, 7), (3, 2, 5)])
def test_full_attention_equals_the_definition(grid: tuple[int, ...], variant: Variant) -> None:
    module = randomised(FullAttention(12, heads=3, variant=variant), seed=11)
    x = drawn_input(2, grid, 12)
    expected = kronecker.full_attention(x.numpy(), kronecker.weights(module), 3, pooled=variant == "pooled")
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_pooling_is_not_for_order_four() -> None:
    with pytest.raises(ValueError, match="orders 1 to 3, got 4"):
        FullAttention(4, heads=1, variant="pooled")(torch.zeros(1, 2, 2, 2, 2, 4))


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
