"""Modules and inputs drawn from a seed, in float64."""

from __future__ import annotations

import torch


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """float64, inference mode, every parameter random: gains of 1 and biases of 0 would hide a forgotten term."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module


def drawn_input(batch: int, grid: tuple[int, ...], dim: int, seed: int = 0) -> torch.Tensor:
    """Standard normal tokens (b, N1, ..., Nk, d)."""
    return torch.randn(batch, *grid, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
