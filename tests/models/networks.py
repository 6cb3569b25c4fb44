"""The forecaster and the classifier in float64 numpy, for what their blocks attend to; nothing here calls `models`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models import kronecker
from tests.models.kronecker import Array


def _part(w: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


def _norm(x: Array, w: dict[str, Array], name: str) -> Array:
    return kronecker.layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])


def forecaster_tokens(series: Array, w: dict[str, Array], patch: int) -> Array:
    """(variates, lookback) -> (variates, patches, d)."""
    spread = np.sqrt(series.var(axis=-1, keepdims=True) + 1e-5)
    patches = ((series - series.mean(axis=-1, keepdims=True)) / spread).reshape(len(series), -1, patch)
    embedded = np.maximum(patches @ w["embed.weight"][:, 0].T + w["embed.bias"], 0)
    return _norm(embedded, w, "embed_norm")


def classifier_tokens(volume: Array, w: dict[str, Array], patch: int) -> Array:
    """(D, H, W) -> (D/p, H/p, W/p, d)."""
    cells = volume.reshape([part for side in volume.shape for part in (side // patch, patch)])
    embedded = np.einsum("aibjck,dijk->abcd", cells, w["embed.weight"][:, 0]) + w["embed.bias"]
    return embedded + w.get("position", 0)


def attentions(tokens: Array, w: dict[str, Array], config: Any) -> dict[str, Array]:
    """A of every block and mode of one sample, (heads, Ni, Ni), by the name of the bundle's output."""
    found: dict[str, Array] = {}
    for block in range(config.depth):
        part = _part(w, f"blocks.{block}.")
        attending, x = _part(part, "attention."), _norm(tokens, part, "attention_norm")
        for mode in range(x.ndim - 1):
            matrices = kronecker.mode_attentions(x, attending, config.heads, config.rotary)
            found[f"attention.{block}.{mode}"] = np.stack([of_head[mode] for of_head in matrices])
        combine = config.attention.removeprefix("hot-")
        tokens = tokens + kronecker.hot(x[np.newaxis], attending, config.heads, combine, config.rotary)[0]
        x = _norm(tokens, part, "mlp_norm")
        gate, value = x @ part["mlp.w1.weight"].T, x @ part["mlp.w3.weight"].T
        tokens = tokens + (gate / (1 + np.exp(-gate)) * value) @ part["mlp.w2.weight"].T
    return found
