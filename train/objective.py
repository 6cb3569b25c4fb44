"""What the loop optimises: the interface between a task's data and the one training loop."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Generator, Tensor, nn


class Objective(Protocol):
    """A task's training loss and validation score, its data included."""

    size: int
    """Training samples."""

    def loss(self, module: nn.Module, indices: Tensor, generator: Generator) -> Tensor:
        """Scalar loss of the training samples of these numbers; augmentation draws from the CPU `generator` only."""
        ...

    def samples(self, indices: Tensor) -> Tensor:
        """The inputs of these training samples as they would be served, without augmentation."""
        ...

    def validate(self, module: nn.Module) -> tuple[float, dict[str, Any]]:
        """The score to minimise and the metrics to log, over the whole validation split."""
        ...

    def facts(self) -> dict[str, Any]:
        """The data's part of training.json: dataset, data_sha256, data_licence, task, names."""
        ...
