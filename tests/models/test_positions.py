"""Rotary and sinusoidal positions against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.positions import rotate, sinusoidal
from tests.models import kronecker


def test_rotate_equals_complex_rotation() -> None:
    x = torch.randn(2, 9, 3, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = np.stack([np.stack([kronecker.rotary(x[b, :, h].numpy()) for h in range(3)], axis=1) for b in range(2)])
    np.testing.assert_allclose(rotate(x).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    """RoFormer's purpose: <R_m q, R_n k> = <R_{m+s} q, R_{n+s} k>."""
    generator = torch.Generator().manual_seed(6)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64).expand(1, 12, 1, 8) for _ in range(2))
    scores = (rotate(q)[0, :, 0] @ rotate(k)[0, :, 0].T).numpy()
    for distance in range(-11, 12):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12)


def test_a_sinusoidal_sequence_is_the_published_one() -> None:
    """PE(n, 2 i) = sin(n / 10000^(2 i / d)), PE(n, 2 i + 1) = cos of it; here all sines come first."""
    table = sinusoidal((7,), 8, torch.zeros((), dtype=torch.float64)).numpy()
    for n in range(7):
        for i in range(4):
            angle = n / 10_000 ** (2 * i / 8)
            np.testing.assert_allclose(table[n, [i, 4 + i]], [np.sin(angle), np.cos(angle)], rtol=1e-12)


def test_each_mode_of_a_sinusoidal_grid_has_channels_of_its_own() -> None:
    like = torch.zeros((), dtype=torch.float64)
    table, rows, columns = (sinusoidal(grid, width, like) for grid, width in (((3, 5), 11), ((3,), 4), ((5,), 4)))
    assert table.shape == (3, 5, 11)
    for i in range(3):
        for j in range(5):
            assert torch.equal(table[i, j], torch.cat((rows[i], columns[j], torch.zeros(3, dtype=torch.float64))))
    assert len({tuple(vector) for vector in table.reshape(-1, 11).tolist()}) == 15, "every position is told apart"


def test_a_grid_wider_than_the_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="positions of 3 modes need a width of 6, got 5"):
        sinusoidal((2, 2, 2), 5, torch.zeros(()))
