"""Training a forecaster: the mean of the losses over horizons that are prefixes of one forecast, and over all of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from app.manifest import Forecasting
from models.config import ForecasterConfig
from train.datasets.series import Series, window_count
from train.metrics import ForecastErrors, measured_horizons
from train.recipe import Augmentation, Loss

VALIDATION_BATCH = 256


def random_subset(count: int, generator: Generator) -> Tensor:
    """1 to `count` of the indices 0..count-1, every size as likely, in random order."""
    size = int(torch.randint(1, count + 1, (), generator=generator))
    return torch.randperm(count, generator=generator)[:size]


def _penalty(error: Tensor, loss: Loss) -> Tensor:
    """Of every error its square, its size, or the sum of both."""
    if loss == "mse":
        return error.square()
    return error.abs() if loss == "mae" else error.square() + error.abs()


class ForecastObjective:
    """Windows of one series on the scale of its training rows; arXiv 2412.02919, section 6.1.

    Only windows whose whole horizon lies inside the split are trained on. The score is the validation MSE averaged over
    the horizons, each over all of its own windows.
    """

    def __init__(
        self,
        series: Series,
        config: ForecasterConfig,
        augmentation: Augmentation,
        device: torch.device,
        penalty: Loss = "mse",
    ) -> None:
        self.penalty = penalty
        self.series, self.config, self.augmentation, self.device = series, config, augmentation, device
        self.horizons = measured_horizons(config.horizon)
        rows = torch.from_numpy(series.with_windows("train", config.lookback, config.horizon)).float().to(device)
        self.size = window_count(len(rows), config.lookback, config.horizon)
        self._windows = rows.unfold(0, config.lookback + config.horizon, 1)  # (windows, n, lookback + horizon)
        self._validation = series.with_windows("val", config.lookback, config.horizon)

    def loss(self, module: nn.Module, indices: Tensor, generator: Generator) -> Tensor:
        windows = self._windows[indices.to(self.device)]  # (b, n, lookback + horizon)
        if float(torch.rand((), generator=generator)) < self.augmentation.variates:
            windows = windows[:, random_subset(windows.shape[1], generator).to(self.device)]
        past, future = windows[..., : self.config.lookback], windows[..., self.config.lookback :]
        error = module(past) - future
        steps = _penalty(error, self.penalty).mean(dim=(0, 1))  # (horizon)
        return torch.stack([steps[:h].mean() for h in self.horizons]).mean()

    def samples(self, indices: Tensor) -> Tensor:
        return self._windows[indices.to(self.device)][..., : self.config.lookback]

    def validate(self, module: nn.Module) -> tuple[float, dict[str, Any]]:
        lookback = self.config.lookback
        errors = ForecastErrors(self._validation, lookback, self.horizons)
        windows = torch.from_numpy(self._validation).float().unfold(0, lookback, 1)  # (windows, n, lookback)
        count = max(errors.windows.values())
        for start in range(0, count, VALIDATION_BATCH):
            numbers = range(start, min(start + VALIDATION_BATCH, count))
            forecast = module(windows[numbers.start : numbers.stop].to(self.device))
            errors.add(numbers, forecast.cpu().numpy())
        metrics = errors.result()
        return metrics["average"]["mse"], metrics

    def facts(self) -> dict[str, Any]:
        task = Forecasting(
            lookback=self.config.lookback,
            horizon=self.config.horizon,
            variates=self.series.variates,
            frequency=self.series.frequency,
        )
        return {
            "dataset": self.series.name,
            "data_sha256": self.series.sha256,
            "data_licence": self.series.licence,
            "splits": self.series.splits,
            "variates": list(self.series.variates),
            "frequency": self.series.frequency,
            "task": task.model_dump(mode="json"),
        }
