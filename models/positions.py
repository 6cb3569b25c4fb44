"""Position embeddings: rotary (RoFormer, arXiv 2104.09864), sinusoidal (Vaswani et al., arXiv 1706.03762).

Learned positions are a parameter of the network; a network without any has none of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _angles(count: int, half: int, like: Tensor, base: float) -> Tensor:
    """n * base^(-j / half) at position n and frequency j: (count, half)."""
    frequency = base ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
    return torch.arange(count, device=like.device, dtype=like.dtype)[:, None] * frequency


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding, rotate-half form: (b, n, h, e) -> same. e must be even. RoFormer, arXiv 2104.09864."""
    half = x.shape[-1] // 2
    angle = _angles(x.shape[1], half, x, base)[:, None]  # (n, 1, e/2)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def sinusoidal(grid: Sequence[int], dim: int, like: Tensor, base: float = 10_000.0) -> Tensor:
    """Fixed embedding of an order-k grid, (N1, ..., Nk, dim), of the device and datatype of `like`.

    Each mode has 2 m = 2 floor(dim / 2k) channels of its own, m sines and m cosines; what is left over is 0, so that no
    two modes share a channel. ValueError: fewer than two channels for every mode.
    """
    half = dim // (2 * len(grid))
    if half < 1:
        raise ValueError(f"sinusoidal positions of {len(grid)} modes need a width of {2 * len(grid)}, got {dim}")
    parts = []
    for mode, size in enumerate(grid):
        angle = _angles(size, half, like, base)
        wave = torch.cat((angle.sin(), angle.cos()), dim=-1)  # (Ni, 2 m)
        shape = [1] * len(grid)
        shape[mode] = size
        parts.append(wave.reshape(*shape, 2 * half).expand(*grid, 2 * half))
    parts.append(like.new_zeros(*grid, dim - 2 * half * len(grid)))
    return torch.cat(parts, dim=-1)
