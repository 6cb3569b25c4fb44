"""Attention over an order-k grid of tokens.

Every module maps (b, N1, ..., Nk, d) to the same shape; `N = N1 ... Nk` tokens, h heads of width e = d / h.

HOT, "Higher-Order Transformers" (Omranpour, Rabusseau, Rabbany; arXiv 2412.02919), section 4: one small attention
matrix A_i (Ni x Ni) per mode replaces the N x N matrix, by their Kronecker product or their sum:

    product:  y = v x_1 A_1 x_2 A_2 ... x_k A_k        sum:  y = v x_1 A_1 + ... + v x_k A_k

where x_i multiplies along mode i. The sum is plain, as in the authors' code; it is not divided by k.

The part between the projections is a torch operator of the `kronserve` namespace. Eager code and autograd see straight
through it (CompositeImplicitAutograd); the ONNX exporter keeps it as one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Combine = Literal["product", "sum"]


def _mode_attention(query: Tensor, key: Tensor) -> Tensor:
    """A = softmax(q k^T / sqrt(e)): (b, n, h, e), (b, n, h, e) -> (b, h, n, n)."""
    query, key = query.transpose(1, 2), key.transpose(1, 2)  # (b, h, n, e)
    return torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)


def _apply_along_mode(value: Tensor, attention: Tensor, mode: int) -> Tensor:
    """v x_mode A: (b, h, N1, ..., Nk, e), (b, h, Ni, Ni) -> the shape of `value`."""
    batch, heads, size = attention.shape[:3]
    before, after = prod(value.shape[2 : 2 + mode]), prod(value.shape[3 + mode :])
    flat = value.reshape(batch, heads, before, size, after)
    return (attention.unsqueeze(2) @ flat).reshape(value.shape)


def hot_product(value: Tensor, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """HOT attention core, Kronecker product of the mode attentions.

    value: (b, N1, ..., Nk, h, e); queries[i], keys[i]: (b, Ni, h, e), pooled, normalised, position-encoded.
    Returns the shape of `value`. arXiv 2412.02919, section 4.1.
    """
    result = value.movedim(-2, 1)  # (b, h, N1, ..., Nk, e)
    for mode, (query, key) in enumerate(zip(queries, keys, strict=True)):
        result = _apply_along_mode(result, _mode_attention(query, key), mode)
    return result.movedim(1, -2)


def hot_sum(value: Tensor, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """HOT attention core, plain sum of the mode attentions; shapes as `hot_product`."""
    grid = value.movedim(-2, 1)  # (b, h, N1, ..., Nk, e)
    result = _apply_along_mode(grid, _mode_attention(queries[0], keys[0]), 0)
    for mode in range(1, len(queries)):
        result = result + _apply_along_mode(grid, _mode_attention(queries[mode], keys[mode]), mode)
    return result.movedim(1, -2)


_library = torch.library.Library("kronserve", "DEF")  # type: ignore[no-untyped-call]
for _core in (hot_product, hot_sum):
    _library.define(f"{_core.__name__}(Tensor value, Tensor[] queries, Tensor[] keys) -> Tensor")  # type: ignore[no-untyped-call]
    _library.impl(_core.__name__, _core, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]

CORES: dict[Combine, Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]] = {
    "product": torch.ops.kronserve.hot_product,
    "sum": torch.ops.kronserve.hot_sum,
}


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding, rotate-half form: (b, n, h, e) -> same. e must be even. RoFormer, arXiv 2104.09864."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)  # (e/2)
    angle = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None, None] * frequency  # (n, 1, e/2)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class HOTAttention(nn.Module):
    """HOT's higher-order attention over an order-k grid; (b, N1, ..., Nk, d) -> same. arXiv 2412.02919, section 4.

    Queries and keys of mode i are the tokens' projections sum-pooled over all the other modes. The projection is
    linear, so the tokens are pooled first and the few pooled vectors projected: same numbers, fewer multiplications.

    dim: token width d, divisible by heads. order: k. combine: how the k attentions become one.
    rotary: modes (counted from 0) whose queries and keys carry a rotary position embedding; needs an even d / h.
    """

    def __init__(
        self, dim: int, order: int, heads: int, combine: Combine = "product", rotary: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}")
        if any(not 0 <= mode < order for mode in rotary):
            raise ValueError(f"rotary {tuple(rotary)} names a mode outside 0..{order - 1}")
        if rotary and dim // heads % 2:
            raise ValueError(f"rotary needs an even head width, got {dim // heads}")
        self.order, self.heads, self.rotary = order, heads, frozenset(rotary)
        self.core = CORES[combine]
        self.query = nn.Linear(dim, order * dim)
        self.key = nn.Linear(dim, order * dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.query_norm = nn.LayerNorm(dim // heads)
        self.key_norm = nn.LayerNorm(dim // heads)

    def _pooled(self, pooled: Tensor, count: int, mode: int, projection: nn.Linear, norm: nn.LayerNorm) -> Tensor:
        """Sum over `count` tokens of their projections, from the tokens' sum: (b, Ni, d) -> (b, Ni, h, e)."""
        dim = pooled.shape[-1]
        rows = slice(mode * dim, (mode + 1) * dim)
        vectors = F.linear(pooled, projection.weight[rows], count * projection.bias[rows])
        vectors = norm(vectors.reshape(*vectors.shape[:-1], self.heads, dim // self.heads))
        return rotate(vectors) if mode in self.rotary else vectors

    def _queries_and_keys(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of every mode, what its attention is made of: (b, Ni, h, e) each."""
        grid = x.shape[1:-1]
        queries, keys = [], []
        for mode in range(self.order):
            others = [1 + other for other in range(self.order) if other != mode]
            pooled = x.sum(dim=others) if others else x  # (b, Ni, d)
            count = prod(grid[other - 1] for other in others)
            queries.append(self._pooled(pooled, count, mode, self.query, self.query_norm))
            keys.append(self._pooled(pooled, count, mode, self.key, self.key_norm))
        return queries, keys

    def mode_attentions(self, x: Tensor) -> list[Tensor]:
        """A_1, ..., A_k that `forward` applies to this x, (b, h, Ni, Ni) each; every row is a distribution."""
        return [_mode_attention(query, key) for query, key in zip(*self._queries_and_keys(x), strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self._queries_and_keys(x)
        value = self.value(x).unflatten(-1, (self.heads, x.shape[-1] // self.heads))  # (b, N1, ..., Nk, h, e)
        mixed: Tensor = self.out(self.core(value, queries, keys).flatten(-2))
        return mixed


class FullAttention(nn.Module):
    """Softmax attention over the N flattened tokens, the baseline of both papers: (b, N1, ..., Nk, d) -> same.

    `fused` uses scaled_dot_product_attention; otherwise the N x N matrix is formed.
    """

    def __init__(self, dim: int, heads: int, fused: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}")
        self.heads, self.fused = heads, fused
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def _split(self, x: Tensor, projection: nn.Linear) -> Tensor:
        dim = x.shape[-1]
        split: Tensor = projection(x).reshape(*x.shape[:-1], self.heads, dim // self.heads).transpose(1, 2)
        return split  # (b, h, N, e)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, -2)  # (b, N, d)
        query, key, value = (self._split(tokens, p) for p in (self.query, self.key, self.value))
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1) @ value
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(-2)).reshape(x.shape)
        return output
