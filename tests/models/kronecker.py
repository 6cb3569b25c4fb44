"""Independent float64 references, written from the papers' equations in numpy; nothing here calls `models`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(scores: Array) -> Array:
    exponent = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * gain + bias


def rotary(x: Array) -> Array:
    """RoFormer in complex numbers, [n, e]: pair (j, j + e/2) at position p turns by the angle p * 10000^(-2 j / e)."""
    positions, width = x.shape
    half = width // 2
    pairs = x[:, :half] + 1j * x[:, half:]
    angles = np.outer(np.arange(positions), 10_000.0 ** (-2 * np.arange(half) / width))
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def weights(module: torch.nn.Module) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def linear(x: Array, w: dict[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def mode_attentions(x: Array, w: dict[str, Array], heads: int, rotary_modes: Sequence[int]) -> list[list[Array]]:
    """A[head][mode], each Ni x Ni, of one sample x [N1, ..., Nk, d]: projects every token, then sums."""
    order, dim = x.ndim - 1, x.shape[-1]
    width = dim // heads
    query, key = linear(x, w, "query"), linear(x, w, "key")  # [N1, ..., Nk, k d]
    attentions: list[list[Array]] = []
    for head in range(heads):
        row = []
        for mode in range(order):
            others = tuple(axis for axis in range(order) if axis != mode)
            columns = slice(mode * dim + head * width, mode * dim + (head + 1) * width)
            q = layer_norm(query[..., columns].sum(axis=others), w["query_norm.weight"], w["query_norm.bias"])
            k = layer_norm(key[..., columns].sum(axis=others), w["key_norm.weight"], w["key_norm.bias"])
            if mode in rotary_modes:
                q, k = rotary(q), rotary(k)
            row.append(softmax(q @ k.T / np.sqrt(width)))
        attentions.append(row)
    return attentions


def kronecker_product(matrices: Sequence[Array]) -> Array:
    """A1 x A2 x ... x Ak, the N x N matrix over row-major positions."""
    return reduce(np.kron, matrices)


def kronecker_sum(matrices: Sequence[Array]) -> Array:
    """The sum over modes of I x ... x Ai x ... x I, N x N."""
    sizes = [len(matrix) for matrix in matrices]
    terms = []
    for mode, matrix in enumerate(matrices):
        factors = [matrix if other == mode else np.eye(size) for other, size in enumerate(sizes)]
        terms.append(kronecker_product(factors))
    return np.sum(terms, axis=0)


def hot(x: Array, w: dict[str, Array], heads: int, combine: str, rotary_modes: Sequence[int] = ()) -> Array:
    """HOT attention of a batch x [b, N1, ..., Nk, d] by N x N matrices, one per head."""
    full = kronecker_product if combine == "product" else kronecker_sum
    width = x.shape[-1] // heads
    answers = []
    for sample in x:
        value = linear(sample, w, "value").reshape(-1, x.shape[-1])  # [N, d]
        mixed = np.empty_like(value)
        for head, matrices in enumerate(mode_attentions(sample, w, heads, rotary_modes)):
            columns = slice(head * width, (head + 1) * width)
            mixed[:, columns] = full(matrices) @ value[:, columns]
        answers.append(linear(mixed, w, "out").reshape(sample.shape))
    return np.stack(answers)


def full_attention(x: Array, w: dict[str, Array], heads: int) -> Array:
    """Softmax attention over the flattened tokens of a batch x [b, N1, ..., Nk, d]."""
    width = x.shape[-1] // heads
    answers = []
    for sample in x:
        tokens = sample.reshape(-1, x.shape[-1])
        query, key, value = (linear(tokens, w, name) for name in ("query", "key", "value"))
        mixed = np.empty_like(value)
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            mixed[:, columns] = softmax(query[:, columns] @ key[:, columns].T / np.sqrt(width)) @ value[:, columns]
        answers.append(linear(mixed, w, "out").reshape(sample.shape))
    return np.stack(answers)
