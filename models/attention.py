"""HOT attention over an order-k grid of tokens, (b, N1, ..., Nk, d) -> same.

"Higher-Order Transformers" (Omranpour, Rabusseau, Rabbany; arXiv 2412.02919), section 4. What is between the
projections is in `models.cores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cores import attention_matrix, kernel_matrix
from models.positions import rotate

Combine = Literal["product", "sum", "kernelised"]
FeatureMap = Literal["elu", "random"]

FLOOR = 1e-6
"""Added to every random feature, of which the largest are 1."""

_CORES = {
    "product": torch.ops.kronserve.hot_product,
    "sum": torch.ops.kronserve.hot_sum,
    "kernelised": torch.ops.kronserve.hot_kernelised,
}


class HOTAttention(nn.Module):
    """HOT's higher-order attention over an order-k grid; (b, N1, ..., Nk, d) -> same. arXiv 2412.02919, section 4.

    Queries and keys of mode i are the tokens' projections sum-pooled over all the other modes. The projection is
    linear, so the tokens are pooled first and the few pooled vectors projected: same numbers, fewer multiplications.

    dim: token width d, divisible by heads. order: k. combine: how the k attentions become one.
    rotary: modes (counted from 0) whose queries and keys carry a rotary position embedding; needs an even d / h.
    feature_map: of combine "kernelised" alone, see `elu_features` and `random_features`.
    """

    def __init__(
        self,
        dim: int,
        order: int,
        heads: int,
        combine: Combine = "product",
        rotary: Sequence[int] = (),
        feature_map: FeatureMap = "elu",
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
        self.kernelised, self.core = combine == "kernelised", _CORES[combine]
        self.query = nn.Linear(dim, order * dim)
        self.key = nn.Linear(dim, order * dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.query_norm = nn.LayerNorm(dim // heads)
        self.key_norm = nn.LayerNorm(dim // heads)
        if self.kernelised and feature_map == "random":
            # A buffer: a network must keep the directions that it was trained with.
            self.directions: Tensor | None
            self.register_buffer("directions", orthogonal_directions(4 * (dim // heads), dim // heads))
        else:
            self.directions = None

    def _pooled(self, pooled: Tensor, count: int, mode: int, projection: nn.Linear, norm: nn.LayerNorm) -> Tensor:
        """Sum over `count` tokens of their projections, from the tokens' sum: (b, Ni, d) -> (b, Ni, h, e)."""
        dim = pooled.shape[-1]
        rows = slice(mode * dim, (mode + 1) * dim)
        vectors = F.linear(pooled, projection.weight[rows], count * projection.bias[rows])
        vectors = norm(vectors.reshape(*vectors.shape[:-1], self.heads, dim // self.heads))
        return rotate(vectors) if mode in self.rotary else vectors

    def _queries_and_keys(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of every mode, what its attention is made of: (b, Ni, h, e) each, or m features instead of e values."""
        grid = x.shape[1:-1]
        queries, keys = [], []
        for mode in range(self.order):
            others = [1 + other for other in range(self.order) if other != mode]
            pooled = x.sum(dim=others) if others else x  # (b, Ni, d)
            count = prod(grid[other - 1] for other in others)
            queries.append(self._pooled(pooled, count, mode, self.query, self.query_norm))
            keys.append(self._pooled(pooled, count, mode, self.key, self.key_norm))
        if not self.kernelised:
            return queries, keys
        if self.directions is None:
            return [elu_features(query) for query in queries], [elu_features(key) for key in keys]
        directions = self.directions
        return (
            [random_features(query, directions, (-1,)) for query in queries],
            [random_features(key, directions, (1, -1)) for key in keys],
        )

    def mode_attentions(self, x: Tensor) -> list[Tensor]:
        """A_1, ..., A_k that `forward` applies to this x, (b, h, Ni, Ni) each; every row is a distribution."""
        matrix = kernel_matrix if self.kernelised else attention_matrix
        return [matrix(query, key) for query, key in zip(*self._queries_and_keys(x), strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self._queries_and_keys(x)
        value = self.value(x).unflatten(-1, (self.heads, x.shape[-1] // self.heads))  # (b, N1, ..., Nk, h, e)
        mixed: Tensor = self.out(self.core(value, queries, keys).flatten(-2))
        return mixed


def elu_features(x: Tensor) -> Tensor:
    """phi(x) = elu(x) + 1, m = e features: (.., e) -> same, positive. Katharopoulos et al., arXiv 2006.16236."""
    return F.elu(x) + 1


def orthogonal_directions(count: int, width: int) -> Tensor:
    """`count` random directions of `width` dimensions, orthogonal in blocks of `width`, with the lengths of normal
    vectors: (count, width). Performers, arXiv 2009.14794, section 2.4."""
    blocks = [torch.linalg.qr(torch.randn(width, width)).Q.T for _ in range(-(-count // width))]
    lengths: Tensor = torch.linalg.vector_norm(torch.randn(count, width), dim=-1, keepdim=True)
    return torch.cat(blocks)[:count] * lengths


def random_features(x: Tensor, directions: Tensor, shared: tuple[int, ...]) -> Tensor:
    """Positive random features of the softmax kernel: (b, n, h, e), (m, e) -> (b, n, h, m). arXiv 2009.14794, (5).

    phi(x)_j = exp(w_j z - |z|^2 / 2), z = x / e^(1/4), so that E[phi(q) phi(k)] is proportional to exp(q k / sqrt(e)).
    The exponents are shifted to a maximum of 0 over the axes `shared`, which cancels out of the normalised attention:
    over the features for queries, over positions and features for keys. FLOOR keeps a query whose large features meet
    only small ones of the keys from 0 / 0, as in the authors' code.
    """
    scaled = x * x.shape[-1] ** -0.25
    exponent = scaled @ directions.T - scaled.square().sum(dim=-1, keepdim=True) / 2
    return torch.exp(exponent - exponent.amax(dim=shared, keepdim=True)) + FLOOR
