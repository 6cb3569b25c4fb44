"""The operators' cost: what is measured is what is there."""

from __future__ import annotations

import pytest
import torch

from bench.operators.catalogue import CATALOGUE, HEADS, WIDTH
from bench.operators.measure import multiply_adds, peak_bytes
from bench.operators.report import claims, slope

SIDES = {2: 6, 3: 4}


@pytest.mark.parametrize("order", SIDES)
def test_bare_operators_multiply_as_often_as_their_equations_say(order: int) -> None:
    side = SIDES[order]
    n, s, width = side**order, order * side, WIDTH // HEADS
    x = torch.randn(1, *[side] * order, WIDTH)
    expected = {
        "full, naive": 2 * n * n * WIDTH,
        "full, fused": 2 * n * n * WIDTH,
        "full, pooled": 2 * n * (n // 2**order) * WIDTH,
        "KAO_KV": 2 * n * s * WIDTH,
        "KAO_QKV": 2 * s * s * WIDTH,
        "HOT product": (order * side**2 + n * s) * WIDTH,
        "HOT sum": (order * side**2 + n * s) * WIDTH,
        # Per mode: the keys' summary and its use, N m e each and head, and a sum of m products for every query.
        "HOT kernelised": order * (2 * n * width + side) * WIDTH,
    }
    for name, entry in CATALOGUE.items():
        assert multiply_adds(entry.bare, x) == expected[name], name
        assert multiply_adds(entry.bare, x.to("meta")) == expected[name], name


@pytest.mark.parametrize("name", CATALOGUE)
def test_bare_and_module_keep_the_maps_shape(name: str) -> None:
    entry, x = CATALOGUE[name], torch.randn(1, 3, 5, WIDTH)
    assert entry.bare(x).shape == entry.module(2)(x).shape == x.shape


def test_full_variants_agree() -> None:
    x = torch.randn(1, 3, 5, WIDTH)
    torch.testing.assert_close(CATALOGUE["full, naive"].bare(x), CATALOGUE["full, fused"].bare(x))


def test_the_peak_is_what_lives_at_once() -> None:
    x = torch.zeros(1000, 256)

    def two_then_one(x: torch.Tensor) -> torch.Tensor:
        first = x + 1
        second = first * 2
        del first
        return second.sum(dim=0)

    assert peak_bytes(two_then_one, x) == pytest.approx(2 * x.nbytes, rel=0.01)
    assert peak_bytes(lambda x: x + 1, x) == pytest.approx(x.nbytes, rel=0.01)


def _rows(exponent: float) -> list[dict[str, object]]:
    rows = []
    for order, sides in ((2, (28, 56)), (3, (8, 16))):
        for side in sides:
            for name in CATALOGUE:
                cost = {key: float(side**order) ** exponent for key in ("madd", "bytes", "seconds")}
                if name == "KAO_KV":
                    cost = {key: value / 4 for key, value in cost.items()}
                row = {"operator": name, "order": order, "side": side, "tokens": side**order, "fits": True}
                rows.append({**row, "bare": cost, "module": cost})
    return rows


def test_slopes_and_ratios_of_known_costs() -> None:
    rows = _rows(1.5)
    assert slope(rows, "HOT sum", 3, "bare", "seconds") == pytest.approx(1.5)
    lines = claims(rows).splitlines()
    assert "| KAO_KV: fewer multiply-adds at 56x56 | 28 x | 4.0 x |" in lines
    assert "| KAO_QKV: fewer multiply-adds at 56x56 | 784 x | 1.0 x |" in lines
    assert "| HOT kernelised: exponent of time, 2-D | at most 1.1 | 1.50 |" in lines
