"""The transformer block that every network here is made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """Gated feed-forward without biases, w2(silu(w1 x) * w3 x): (..., d) -> (..., d). arXiv 2002.05202."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return gated


class Block(nn.Module):
    """Pre-norm residual block: x + drop(attention(LN(x))), then x + drop(mlp(LN(x))); keeps its input's shape."""

    def __init__(self, attention: nn.Module, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = SwiGLU(dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        output: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return output
