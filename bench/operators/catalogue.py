"""The operators that are compared, each bare and as a module with its projections.

Bare is the papers' own comparison (arXiv 2007.08442, section 4.2): the operator on a random feature map that is query,
key and value at once, whatever pooling it needs included. All have one width and one number of heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import cores
from models.attention import Combine, HOTAttention, elu_features
from models.full import FullAttention, pooled_cells
from models.kao import KAOAttention, mode_means, outer_sum

WIDTH, HEADS = 64, 4

MAPS: dict[int, tuple[int, ...]] = {2: (14, 28, 56, 112), 3: (8, 12, 16, 24, 32)}
"""Order of the map -> its sides; a map has as many tokens as the side to the power of the order."""

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """One operator: bare over (1, N1, .., Nk, d), and the module for an order."""

    bare: Operator
    module: Callable[[int], nn.Module]


def _heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], HEADS, x.shape[-1] // HEADS)


def _tokens(x: Tensor) -> Tensor:
    """(b, N1, .., Nk, d) -> (b, h, N, e)."""
    return _heads(x.flatten(1, -2)).transpose(1, 2)


def _grid(rows: Tensor, x: Tensor) -> Tensor:
    return rows.transpose(1, 2).flatten(-2).reshape(x.shape)


def _matrix(query: Tensor, source: Tensor) -> Tensor:
    return torch.softmax(query @ source.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1) @ source


def _naive(x: Tensor) -> Tensor:
    tokens = _tokens(x)
    return _grid(_matrix(tokens, tokens), x)


def _fused(x: Tensor) -> Tensor:
    tokens = _tokens(x)
    return _grid(F.scaled_dot_product_attention(tokens, tokens, tokens), x)


def _pooled(x: Tensor) -> Tensor:
    return _grid(_matrix(_tokens(x), _tokens(pooled_cells(x))), x)


def _kao_kv(x: Tensor) -> Tensor:
    means = _heads(torch.cat(mode_means(x), dim=1))
    return cores.kao_kv(_heads(x), means, means).flatten(-2)


def _kao_qkv(x: Tensor) -> Tensor:
    means = [_heads(mean) for mean in mode_means(x)]
    together = torch.cat(means, dim=1)
    return outer_sum([part.flatten(-2) for part in cores.kao_qkv(means, together, together)])


def _hot(core: Callable[[Tensor, list[Tensor], list[Tensor]], Tensor], features: Operator) -> Operator:
    def operator(x: Tensor) -> Tensor:
        pooled = [features(F.layer_norm(_heads(mean), (x.shape[-1] // HEADS,))) for mean in mode_means(x)]
        return core(_heads(x), pooled, pooled).flatten(-2)

    return operator


def _hot_module(combine: Combine) -> Callable[[int], nn.Module]:
    return lambda order: HOTAttention(WIDTH, order, HEADS, combine)


CATALOGUE: dict[str, Entry] = {
    "full, naive": Entry(_naive, lambda _: FullAttention(WIDTH, HEADS, "naive")),
    "full, fused": Entry(_fused, lambda _: FullAttention(WIDTH, HEADS, "fused")),
    "full, pooled": Entry(_pooled, lambda _: FullAttention(WIDTH, HEADS, "pooled")),
    "KAO_KV": Entry(_kao_kv, lambda _: KAOAttention(WIDTH, HEADS, "tokens")),
    "KAO_QKV": Entry(_kao_qkv, lambda _: KAOAttention(WIDTH, HEADS, "means")),
    "HOT product": Entry(_hot(cores.hot_product, lambda x: x), _hot_module("product")),
    "HOT sum": Entry(_hot(cores.hot_sum, lambda x: x), _hot_module("sum")),
    "HOT kernelised": Entry(_hot(cores.hot_kernelised, elu_features), _hot_module("kernelised")),
}


def matrix_bytes(name: str, order: int, side: int) -> int:
    """About what the operator's largest intermediate takes; two of that size exist at once."""
    tokens = int(side**order)
    keys = {"full, naive": tokens, "full, pooled": tokens >> order}.get(name, order * side)
    return 4 * tokens * max(WIDTH, HEADS * keys)
