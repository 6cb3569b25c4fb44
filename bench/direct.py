"""HOT attention as its equations are written down, for comparison: every token is projected, then pooled.

The same parameters under the same names as `models.attention.HOTAttention`, so a state dict fits both. What the
exporter gains over a stock export of this is in bench/results/graphs.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention import HOTAttention
from models.positions import rotate

_MODES = "ijk"


class DirectHOTAttention(nn.Module):
    """Product or sum of the mode attentions, (b, N1, ..., Nk, d) -> same; arXiv 2412.02919, section 4.1."""

    def __init__(self, like: HOTAttention, combine: str) -> None:
        super().__init__()
        self.order, self.heads, self.rotary, self.combine = like.order, like.heads, like.rotary, combine
        self.query, self.key, self.value, self.out = like.query, like.key, like.value, like.out
        self.query_norm, self.key_norm = like.query_norm, like.key_norm

    def _attention(self, queries: Tensor, keys: Tensor, mode: int) -> Tensor:
        """Of one mode from the tokens' projections (b, N1, ..., Nk, k, h, e): pool, normalise, rotate, softmax."""
        others = [1 + other for other in range(self.order) if other != mode]
        query = self.query_norm(queries[..., mode, :, :].sum(dim=others))  # (b, Ni, h, e)
        key = self.key_norm(keys[..., mode, :, :].sum(dim=others))
        if mode in self.rotary:
            query, key = rotate(query), rotate(key)
        return torch.softmax(torch.einsum("bnhe,bmhe->bhnm", query, key) * query.shape[-1] ** -0.5, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1] // self.heads
        split = (self.order, self.heads, width)
        queries, keys = self.query(x).unflatten(-1, split), self.key(x).unflatten(-1, split)
        value = self.value(x).unflatten(-1, (self.heads, width))  # (b, N1, ..., Nk, h, e)
        modes = _MODES[: self.order]
        results = []
        mixed = value
        for mode, letter in enumerate(modes):
            attention = self._attention(queries, keys, mode)
            equation = f"bhn{letter},b{modes}he->b{modes.replace(letter, 'n')}he"
            mixed = torch.einsum(equation, attention, mixed if self.combine == "product" else value)
            results.append(mixed)
        if self.combine == "sum":
            mixed = torch.stack(results).sum(dim=0)
        result: Tensor = self.out(mixed.flatten(-2))
        return result


def directly(module: nn.Module, combine: str) -> nn.Module:
    """The network with every HOT attention in it replaced by the direct formulation, on the same parameters."""
    for name, child in module.named_children():
        if isinstance(child, HOTAttention):
            setattr(module, name, DirectHOTAttention(child, combine))
        else:
            directly(child, combine)
    return module
