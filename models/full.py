"""The baselines of both papers: full attention over the flattened tokens, fused, naive or pooled, and none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Variant = Literal["fused", "naive", "pooled"]


class FullAttention(nn.Module):
    """Softmax attention over the N flattened tokens: (b, N1, ..., Nk, d) -> same.

    variant: "fused" uses scaled_dot_product_attention; "naive" forms the N x N matrix; "pooled" has keys and values of
    the grid averaged over cells of 2 x .. x 2 tokens (at an odd edge, over what there is), N 2^-k of them: the usual
    remedy, with which arXiv 2007.08442 compares (section 4.2). It forms its matrix too. pooled: the modes that have
    neighbours worth averaging, all by default; a forecaster's variates have none.
    """

    def __init__(self, dim: int, heads: int, variant: Variant = "fused", pooled: Sequence[int] | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}")
        self.heads, self.variant, self.pooled = heads, variant, pooled
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def _split(self, x: Tensor, projection: nn.Linear) -> Tensor:
        dim = x.shape[-1]
        split: Tensor = projection(x).reshape(*x.shape[:-1], self.heads, dim // self.heads).transpose(1, 2)
        return split  # (b, h, N, e)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, -2)  # (b, N, d)
        source = pooled_cells(x, self.pooled).flatten(1, -2) if self.variant == "pooled" else tokens
        query, key, value = (
            self._split(tensor, projection)
            for tensor, projection in ((tokens, self.query), (source, self.key), (source, self.value))
        )
        if self.variant == "fused":
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1) @ value
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(-2)).reshape(x.shape)
        return output


def pooled_cells(x: Tensor, modes: Sequence[int] | None = None) -> Tensor:
    """Means over cells of two tokens along the modes, or all: (b, .., Ni, .., d) -> (b, .., ceil(Ni / 2), .., d).

    At an odd edge a token is averaged with itself. Indices instead of a pooling layer serve any order.
    """
    for mode in range(x.dim() - 2) if modes is None else modes:
        axis, size = 1 + mode, x.shape[1 + mode]
        first = 2 * torch.arange((size + 1) // 2, device=x.device)
        second = (first + 1).clamp(max=size - 1)
        x = (x.index_select(axis, first) + x.index_select(axis, second)) / 2
    return x


class NoAttention(nn.Module):
    """The no-attention baseline: attention whose matrix is the identity, out(value(x)); tokens do not meet here."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(self.value(x))
        return output
