"""Kronecker attention operators over an order-k grid of tokens, (b, N1, ..., Nk, d) -> same.

"Kronecker Attention Networks" (Gao, Wang, Ji; KDD 2020; arXiv 2007.08442), section 3. What is between the
projections is in `models.cores`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Queries = Literal["tokens", "means"]


def mode_means(x: Tensor) -> list[Tensor]:
    """Of every mode, the means over all the other modes: (b, N1, ..., Nk, d) -> (b, Ni, d) each.

    Order 2: the horizontal mean H[i] = mean_j X[i, j] and the lateral mean L[j] = mean_i X[i, j]; section 3.2.
    """
    modes = range(1, x.dim() - 1)
    if len(modes) == 1:
        return [x]
    return [x.mean(dim=[other for other in modes if other != mode]) for mode in modes]


class KAOAttention(nn.Module):
    """KAO with learned projections: keys and values are the S = N1 + ... + Nk mode means C of the grid.

    queries "tokens" is KAO_KV, O = attn(X, C, C) for every token; "means" is KAO_QKV, O = attn(C, C, C) split into its
    modes and combined by an outer sum, Y[i, j, ..] = O_1[i] + O_2[j] + ...

    The projections are 1x1 convolutions: linear, so C is projected and never the grid; in KAO_QKV the output projection
    stands before the outer sum, for the same reason. dim: token width d, divisible by heads.
    """

    def __init__(self, dim: int, heads: int, queries: Queries = "tokens") -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}")
        self.heads, self.queries = heads, queries
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def _split(self, x: Tensor, projection: nn.Linear) -> Tensor:
        split: Tensor = projection(x).unflatten(-1, (self.heads, x.shape[-1] // self.heads))
        return split  # (.., h, e)

    def forward(self, x: Tensor) -> Tensor:
        means = mode_means(x)
        together = torch.cat(means, dim=1) if len(means) > 1 else means[0]  # (b, S, d)
        key, value = self._split(together, self.key), self._split(together, self.value)
        if self.queries == "tokens":
            mixed: Tensor = self.out(torch.ops.kronserve.kao_kv(self._split(x, self.query), key, value).flatten(-2))
            return mixed
        queries = [self._split(mean, self.query) for mean in means]
        parts = torch.ops.kronserve.kao_qkv(queries, key, value)
        # Every mode's part carries its share of the bias, so that their sum carries it once.
        share = self.out.bias / len(means)
        return outer_sum([F.linear(part.flatten(-2), self.out.weight, share) for part in parts])


def outer_sum(parts: list[Tensor]) -> Tensor:
    """Y[i, j, ..] = O_1[i] + O_2[j] + ..: (b, Ni, d) each -> (b, N1, ..., Nk, d)."""
    order, total = len(parts), parts[0]
    for mode, part in enumerate(parts):
        for axis in range(order):
            if axis != mode:
                part = part.unsqueeze(1 + axis)
        total = part if mode == 0 else total + part
    return total
