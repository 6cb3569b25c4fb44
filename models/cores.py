"""The attention cores: what stands between the projections, each a torch operator of the `kronserve` namespace.

Every core works on a grid of N = N1 ... Nk tokens in h heads of width e = d / h. Eager code and autograd see straight
through the operators (CompositeImplicitAutograd, which also answers for fake tensors); the ONNX exporter keeps each as
one node.

HOT, "Higher-Order Transformers" (Omranpour, Rabusseau, Rabbany; arXiv 2412.02919), section 4: one small attention
matrix A_i (Ni x Ni) per mode replaces the N x N matrix, by their Kronecker product or their sum:

    product:     y = v x_1 A_1 x_2 A_2 ... x_k A_k          sum:  y = v x_1 A_1 + ... + v x_k A_k
    kernelised:  the product with A_i v = phi(q_i) (phi(k_i)^T v) / (phi(q_i) sum_n phi(k_i)_n), A_i never formed

where x_i multiplies along mode i. The sum is plain, as in the authors' code; it is not divided by k.

KAO, "Kronecker Attention Networks" (Gao, Wang, Ji; arXiv 2007.08442), section 3: keys and values are the S = N1 + ... +
Nk means of the grid over all axes but one; queries are all tokens (KV) or the same means (QKV).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def attention_matrix(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(e)): (b, n, h, e), (b, s, h, e) -> (b, h, n, s)."""
    query, key = query.transpose(1, 2), key.transpose(1, 2)  # (b, h, n, e)
    return torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)


def kernel_matrix(query: Tensor, key: Tensor) -> Tensor:
    """A = phi(q) phi(k)^T, each row divided by its sum: non-negative features (b, n, h, m) -> (b, h, n, n)."""
    weights = query.transpose(1, 2) @ key.transpose(1, 2).transpose(-2, -1)
    return weights / weights.sum(dim=-1, keepdim=True)


def _apply_along_mode(value: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """v x_mode A: (b, h, N1, ..., Nk, e), (b, h, rows, Ni) -> the same with `rows` in place of Ni."""
    batch, heads, rows, size = matrix.shape
    before, after = value.shape[2 : 2 + mode], value.shape[3 + mode :]
    flat = value.reshape(batch, heads, prod(before), size, prod(after))
    return (matrix.unsqueeze(2) @ flat).reshape(batch, heads, *before, rows, *after)


def hot_product(value: Tensor, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """HOT attention core, Kronecker product of the mode attentions.

    value: (b, N1, ..., Nk, h, e); queries[i], keys[i]: (b, Ni, h, e), pooled, normalised, position-encoded.
    Returns the shape of `value`. arXiv 2412.02919, section 4.1.
    """
    result = value.movedim(-2, 1)  # (b, h, N1, ..., Nk, e)
    for mode, (query, key) in enumerate(zip(queries, keys, strict=True)):
        result = _apply_along_mode(result, attention_matrix(query, key), mode)
    return result.movedim(1, -2)


def hot_sum(value: Tensor, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """HOT attention core, plain sum of the mode attentions; shapes as `hot_product`."""
    grid = value.movedim(-2, 1)  # (b, h, N1, ..., Nk, e)
    result = _apply_along_mode(grid, attention_matrix(queries[0], keys[0]), 0)
    for mode in range(1, len(queries)):
        result = result + _apply_along_mode(grid, attention_matrix(queries[mode], keys[mode]), mode)
    return result.movedim(1, -2)


def hot_kernelised(value: Tensor, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """HOT attention core, product of kernelised mode attentions: O(N m e) per mode, linear in the tokens.

    value: (b, N1, ..., Nk, h, e); queries[i], keys[i]: (b, Ni, h, m), phi of each query and key, positive.
    Returns the shape of `value`. arXiv 2412.02919v1, section 4.3.
    """
    result = value.movedim(-2, 1)  # (b, h, N1, ..., Nk, e)
    for mode, (query, key) in enumerate(zip(queries, keys, strict=True)):
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # (b, h, Ni, m)
        total = query @ key.sum(dim=-2, keepdim=True).transpose(-2, -1)  # (b, h, Ni, 1)
        summary = _apply_along_mode(result, key.transpose(-2, -1), mode)  # m in place of Ni
        result = _apply_along_mode(summary, query / total, mode)
    return result.movedim(1, -2)


def kao_kv(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """KAO_KV core, O = attn(X, C, C): every token attends to the means.

    query: (b, N1, ..., Nk, h, e); key, value: (b, S, h, e), S = N1 + ... + Nk. Returns the shape of `query`.
    O(N S e) for each head. arXiv 2007.08442, section 3.3.
    """
    attention = attention_matrix(query.flatten(1, -3), key)  # (b, h, N, S)
    return (attention @ value.transpose(1, 2)).transpose(1, 2).reshape(query.shape)


def kao_qkv(queries: Sequence[Tensor], key: Tensor, value: Tensor) -> list[Tensor]:
    """KAO_QKV core, O = attn(C, C, C): the means attend to the means.

    queries[i]: (b, Ni, h, e), those of mode i's means; key, value: (b, S, h, e), S = N1 + ... + Nk.
    Returns O's part of every mode, (b, Ni, h, e) each; their outer sum over the grid is the operator's result. It is
    left to the caller, because a projection of the S vectors before it costs less than one of N tokens after it.
    O(S^2 e) for each head. arXiv 2007.08442, section 3.3.
    """
    value = value.transpose(1, 2)  # (b, h, S, e)
    return [(attention_matrix(query, key) @ value).transpose(1, 2) for query in queries]


_library = torch.library.Library("kronserve", "DEF")  # type: ignore[no-untyped-call]
for _core, _signature in (
    (hot_product, "(Tensor value, Tensor[] queries, Tensor[] keys) -> Tensor"),
    (hot_sum, "(Tensor value, Tensor[] queries, Tensor[] keys) -> Tensor"),
    (hot_kernelised, "(Tensor value, Tensor[] queries, Tensor[] keys) -> Tensor"),
    (kao_kv, "(Tensor query, Tensor key, Tensor value) -> Tensor"),
    (kao_qkv, "(Tensor[] queries, Tensor key, Tensor value) -> Tensor[]"),
):
    _library.define(f"{_core.__name__}{_signature}")  # type: ignore[no-untyped-call]
    _library.impl(_core.__name__, _core, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
