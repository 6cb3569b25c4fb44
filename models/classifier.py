"""The volume classifier of arXiv 2412.02919, section 6.2: patches of a volume, attention over their order-3 grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.block import Block
from models.config import ClassifierConfig, attention_module
from models.positions import sinusoidal


class VolumeClassifier(nn.Module):
    """x (b, 1, D, H, W) -> logits (b, classes). D, H, W are the config's, each divisible by the patch.

    position "learned" adds one vector per grid cell, "sinusoidal" a fixed one; rotary positions, if any, are in the
    attention. Without learned positions any D, H, W that the patch divides are taken.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        grid = [size // config.patch for size in config.volume]
        self.embed = nn.Conv3d(1, config.dim, config.patch, stride=config.patch)
        self.position = nn.Parameter(torch.randn(*grid, config.dim) * 0.02) if config.position == "learned" else None
        self.blocks = nn.ModuleList(
            Block(attention_module(config, config.dim, order=3), config.dim, config.hidden, config.dropout)
            for _ in range(config.depth)
        )
        self.head_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).movedim(1, -1)  # (b, D/p, H/p, W/p, d)
        if self.position is not None:
            tokens = tokens + self.position
        elif self.config.position == "sinusoidal":
            tokens = tokens + sinusoidal(tokens.shape[1:-1], self.config.dim, tokens)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.dropout(self.head_norm(tokens.mean(dim=(1, 2, 3)))))
        return logits
