"""The forecaster and the classifier in float64 numpy, one sample at a time; nothing here calls `models`.

arXiv 2412.02919, section 6, with the attention of `tests.models.kronecker`: N x N matrices, every token projected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.models import kronecker
from tests.models.kronecker import Array


def _part(w: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


def _norm(x: Array, w: dict[str, Array], name: str) -> Array:
    return kronecker.layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])


def sinusoids(grid: Sequence[int], dim: int) -> Array:
    """(N1, ..., Nk, dim): of each mode m = dim // 2k sines and m cosines of n / 10000^(j / m); zeros fill the rest."""
    m, table = dim // (2 * len(grid)), np.zeros((*grid, dim))
    for position in np.ndindex(*grid):
        for mode, n in enumerate(position):
            for j in range(m):
                angle = n / 10_000 ** (j / m)
                table[(*position, 2 * m * mode + j)] = np.sin(angle)
                table[(*position, 2 * m * mode + m + j)] = np.cos(angle)
    return table


def _scale(series: Array) -> tuple[Array, Array]:
    """Mean and deviation of every variate over its window."""
    mean = series.mean(axis=-1, keepdims=True)
    return mean, np.sqrt(((series - mean) ** 2).mean(axis=-1, keepdims=True) + 1e-5)


def forecaster_tokens(series: Array, w: dict[str, Array], config: Any) -> Array:
    """(variates, lookback) -> (variates, patches, d)."""
    mean, deviation = _scale(series)
    patches = ((series - mean) / deviation).reshape(len(series), -1, config.patch)
    embedded = np.maximum(patches @ w["embed.weight"][:, 0].T + w["embed.bias"], 0)
    tokens = _norm(embedded, w, "embed_norm")
    if config.position == "sinusoidal":  # a patch's place in time, the same for every variate
        return tokens + sinusoids(tokens.shape[1:2], config.dim)
    return tokens + w.get("position", 0)


def classifier_tokens(volume: Array, w: dict[str, Array], config: Any) -> Array:
    """(D, H, W) -> (D/p, H/p, W/p, d)."""
    cells = volume.reshape([part for side in volume.shape for part in (side // config.patch, config.patch)])
    tokens = np.einsum("aibjck,dijk->abcd", cells, w["embed.weight"][:, 0]) + w["embed.bias"]
    return tokens + (
        sinusoids(tokens.shape[:-1], config.dim) if config.position == "sinusoidal" else w.get("position", 0)
    )


def _attended(x: Array, w: dict[str, Array], config: Any) -> Array:
    """What the attention that the config names makes of the tokens."""
    kind, sample = config.attention, x[np.newaxis]
    if kind in ("hot-product", "hot-sum", "hot-kernelised"):
        features = config.feature_map if kind == "hot-kernelised" else None
        combine = "sum" if kind == "hot-sum" else "product"
        return kronecker.hot(sample, w, config.heads, combine, config.rotary, features)[0]
    if kind in ("kao-kv", "kao-qkv"):
        return kronecker.kao(sample, w, config.heads, "tokens" if kind == "kao-kv" else "means")[0]
    if kind == "full":
        return kronecker.full_attention(sample, w, config.heads)[0]
    assert kind == "none", kind
    return kronecker.linear(kronecker.linear(x, w, "value"), w, "out")


def _block(tokens: Array, w: dict[str, Array], config: Any) -> Array:
    tokens = tokens + _attended(_norm(tokens, w, "attention_norm"), _part(w, "attention."), config)
    x = _norm(tokens, w, "mlp_norm")
    gate, value = x @ w["mlp.w1.weight"].T, x @ w["mlp.w3.weight"].T
    return tokens + (gate / (1 + np.exp(-gate)) * value) @ w["mlp.w2.weight"].T


def _blocks(tokens: Array, w: dict[str, Array], config: Any) -> Array:
    for block in range(config.depth):
        tokens = _block(tokens, _part(w, f"blocks.{block}."), config)
    return tokens


def attentions(tokens: Array, w: dict[str, Array], config: Any) -> dict[str, Array]:
    """A of every block and mode of one sample, (heads, Ni, Ni), by the name of the bundle's output."""
    found: dict[str, Array] = {}
    for block in range(config.depth):
        part = _part(w, f"blocks.{block}.")
        attending, x = _part(part, "attention."), _norm(tokens, part, "attention_norm")
        matrices = kronecker.mode_attentions(x, attending, config.heads, config.rotary)
        for mode in range(x.ndim - 1):
            found[f"attention.{block}.{mode}"] = np.stack([of_head[mode] for of_head in matrices])
        tokens = _block(tokens, part, config)
    return found


def forecast(series: Array, w: dict[str, Array], config: Any) -> Array:
    """(variates, lookback) -> (variates, horizon), in the series' own unit."""
    tokens = _blocks(forecaster_tokens(series, w, config), w, config)
    if config.readout == "mean":
        features = tokens.mean(axis=1)
    else:
        features = np.stack([np.concatenate(list(of_variate)) for of_variate in tokens])
    mean, deviation = _scale(series)
    return kronecker.linear(_norm(features, w, "head_norm"), w, "head") * deviation + mean


def logits(volume: Array, w: dict[str, Array], config: Any) -> Array:
    """(D, H, W) -> (classes)."""
    tokens = _blocks(classifier_tokens(volume, w, config), w, config)
    pooled = tokens.reshape(-1, config.dim).mean(axis=0)
    return kronecker.linear(_norm(pooled, w, "head_norm"), w, "head")
