"""The forecaster of arXiv 2412.02919, section 6.1: patches of every variate, attention over [variates, patches]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.block import Block
from models.config import ForecasterConfig, attention_module
from models.positions import sinusoidal

EPSILON = 1e-5


class Forecaster(nn.Module):
    """x (b, n, lookback) -> forecast (b, n, horizon), for any number n of variates and in the unit of x.

    Instance normalisation per series (RevIN without affine, biased variance), non-overlapping patches, blocks, readout.
    readout "mean": the paper's mean over time; "flatten": all patches of a variate side by side, as in PatchTST
    (arXiv 2211.14730). position: "learned" adds a vector per patch, the same for all variates,
    "sinusoidal" a fixed one; rotary positions are in the attention.
    """

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        patches = config.lookback // config.patch
        self.embed = nn.Conv1d(1, config.dim, config.patch, stride=config.patch)
        self.embed_norm = nn.LayerNorm(config.dim)
        learned = config.position == "learned"
        self.position = nn.Parameter(torch.randn(patches, config.dim) * 0.02) if learned else None
        self.blocks = nn.ModuleList(
            Block(attention_module(config, config.dim, order=2), config.dim, config.hidden, config.dropout)
            for _ in range(config.depth)
        )
        features = config.dim * (patches if config.readout == "flatten" else 1)
        self.head_norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, config.horizon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        scale = (x.var(dim=-1, keepdim=True, correction=0) + EPSILON).sqrt()
        series = ((x - mean) / scale).flatten(0, 1).unsqueeze(1)  # (b n, 1, lookback)
        tokens = self.embed(series).relu().transpose(1, 2)  # (b n, patches, d)
        tokens = self.dropout(self.embed_norm(tokens)).unflatten(0, x.shape[:2])  # (b, n, patches, d)
        if self.position is not None:
            tokens = tokens + self.position
        elif self.config.position == "sinusoidal":
            tokens = tokens + sinusoidal(tokens.shape[2:3], self.config.dim, tokens)
        for block in self.blocks:
            tokens = block(tokens)
        features = tokens.flatten(-2) if self.config.readout == "flatten" else tokens.mean(dim=-2)
        forecast = self.head(self.dropout(self.head_norm(features)))  # (b, n, horizon)
        restored: Tensor = forecast * scale + mean
        return restored
