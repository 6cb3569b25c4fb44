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


def elu_features(x: Array) -> Array:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def random_features(x: Array, directions: Array, of_keys: bool) -> Array:
    """exp(w z - |z|^2 / 2), z = x / e^(1/4), over the largest of a query or of all the keys, plus the floor of 1e-6."""
    scaled = x / x.shape[-1] ** 0.25
    features = np.exp(scaled @ directions.T - (scaled**2).sum(axis=-1, keepdims=True) / 2)
    return features / (features.max() if of_keys else features.max(axis=-1, keepdims=True)) + 1e-6


def mode_attentions(
    x: Array, w: dict[str, Array], heads: int, rotary_modes: Sequence[int], features: str | None = None
) -> list[list[Array]]:
    """A[head][mode], each Ni x Ni, of one sample x [N1, ..., Nk, d]: projects every token, then sums.

    features: "elu" or "random" for kernelised attention, A = phi(q) phi(k)^T with its rows divided by their sums.
    """
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
            if features is None:
                row.append(softmax(q @ k.T / np.sqrt(width)))
                continue
            if features == "elu":
                scores = elu_features(q) @ elu_features(k).T
            else:
                scores = random_features(q, w["directions"], False) @ random_features(k, w["directions"], True).T
            row.append(scores / scores.sum(axis=1, keepdims=True))
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


def hot(
    x: Array,
    w: dict[str, Array],
    heads: int,
    combine: str,
    rotary_modes: Sequence[int] = (),
    features: str | None = None,
) -> Array:
    """HOT attention of a batch x [b, N1, ..., Nk, d] by N x N matrices, one per head."""
    full = kronecker_sum if combine == "sum" else kronecker_product
    width = x.shape[-1] // heads
    answers = []
    for sample in x:
        value = linear(sample, w, "value").reshape(-1, x.shape[-1])  # [N, d]
        mixed = np.empty_like(value)
        for head, matrices in enumerate(mode_attentions(sample, w, heads, rotary_modes, features)):
            columns = slice(head * width, (head + 1) * width)
            mixed[:, columns] = full(matrices) @ value[:, columns]
        answers.append(linear(mixed, w, "out").reshape(sample.shape))
    return np.stack(answers)


def attend(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Multi-head softmax attention of one sample's vectors: [n, d], [s, d], [s, d] -> [n, d]."""
    width = query.shape[-1] // heads
    mixed = np.empty_like(query)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        mixed[:, columns] = softmax(query[:, columns] @ key[:, columns].T / np.sqrt(width)) @ value[:, columns]
    return mixed


def cell_means(sample: Array) -> Array:
    """Means over cells of two along every mode, token by token: [N1, ..., Nk, d] -> [M, d]."""
    cells: dict[tuple[int, ...], list[Array]] = {}
    for position in np.ndindex(sample.shape[:-1]):
        cells.setdefault(tuple(index // 2 for index in position), []).append(sample[position])
    return np.stack([np.mean(cells[cell], axis=0) for cell in sorted(cells)])


def full_attention(x: Array, w: dict[str, Array], heads: int, pooled: bool = False) -> Array:
    """Softmax attention over the flattened tokens of a batch x [b, N1, ..., Nk, d]."""
    answers = []
    for sample in x:
        tokens = sample.reshape(-1, x.shape[-1])
        source = cell_means(sample) if pooled else tokens
        mixed = attend(linear(tokens, w, "query"), linear(source, w, "key"), linear(source, w, "value"), heads)
        answers.append(linear(mixed, w, "out").reshape(sample.shape))
    return np.stack(answers)


def kao(x: Array, w: dict[str, Array], heads: int, queries: str) -> Array:
    """KAO of a batch x [b, N1, ..., Nk, d]: every token projected first, the means taken of the projections.

    queries "means" is KAO_QKV with the output projection after the outer sum, token by token, as the paper has it.
    """
    answers = []
    for sample in x:
        grid, dim = sample.shape[:-1], sample.shape[-1]

        def juxtaposed(projected: Array) -> list[Array]:
            modes = range(projected.ndim - 1)
            return [projected.mean(axis=tuple(other for other in modes if other != mode)) for mode in modes]

        key, value = (np.concatenate(juxtaposed(linear(sample, w, name))) for name in ("key", "value"))
        query = linear(sample, w, "query")
        if queries == "tokens":
            mixed = attend(query.reshape(-1, dim), key, value, heads).reshape(sample.shape)
        else:
            parts = np.split(
                attend(np.concatenate(juxtaposed(query)), key, value, heads), np.cumsum(grid)[:-1]
            )  # per mode [Ni, d]
            mixed = np.empty_like(sample)
            for position in np.ndindex(grid):
                mixed[position] = sum(part[index] for part, index in zip(parts, position, strict=True))
        answers.append(linear(mixed, w, "out"))
    return np.stack(answers)
