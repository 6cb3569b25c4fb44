"""Training a volume classifier: cross-entropy with label smoothing under random affine maps of the volumes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from app.manifest import Binarise, Reorient, Resize, VolumeClassification
from models.config import ClassifierConfig, KANetConfig, input_shape
from train.datasets.folder import DatasetError
from train.datasets.volumes import Volumes, shrink_masks
from train.metrics import binary_scores
from train.recipe import Augmentation

VALIDATION_BATCH = 32


def random_affine(count: int, augmentation: Augmentation, generator: Generator) -> Tensor:
    """Maps (count, 3, 4) from output to input coordinates in [-1, 1]: a turn about each axis, one scale, a shift."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    angle = uniform(count, 3) * torch.pi * augmentation.rotation / 180
    matrix = torch.eye(3).expand(count, 3, 3)
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        cos, sin = angle[:, axis].cos(), angle[:, axis].sin()
        turn = torch.eye(3).repeat(count, 1, 1)
        turn[:, i, i], turn[:, i, j], turn[:, j, i], turn[:, j, j] = cos, -sin, sin, cos
        matrix = matrix @ turn
    factor = 1 + uniform(count, 1, 1) * augmentation.scale
    # A shift by a share s of the side is 2 s in coordinates that run from -1 to 1.
    shift = uniform(count, 3, 1) * 2 * augmentation.shift
    return torch.cat((matrix * factor, shift), dim=-1)


def transform(volumes: Tensor, maps: Tensor) -> Tensor:
    """Resample volumes (b, 1, D, H, W) under maps (b, 3, 4), trilinear, zero outside."""
    grid = F.affine_grid(maps.to(volumes.device), list(volumes.shape), align_corners=False)
    return F.grid_sample(volumes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class ClassificationObjective:
    """Binary masks reduced to the model's volume, as the service's preprocessing reduces them.

    The score is 1 - AUC on the validation split.
    """

    def __init__(
        self,
        volumes: Volumes,
        config: ClassifierConfig | KANetConfig,
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        shape = input_shape(config)
        if len(shape) != 4 or shape[0] != 1:
            raise DatasetError(f"the model takes {list(shape)}, {volumes.name} has single-channel volumes")
        self._shape = shape[1:]
        if config.classes != len(volumes.labels):
            raise DatasetError(f"the model has {config.classes} classes, {volumes.name} has {len(volumes.labels)}")
        self.volumes, self.config, self.augmentation, self.device = volumes, config, augmentation, device
        self._inputs = torch.from_numpy(shrink_masks(volumes.images["train"], self._shape)).to(device)
        self._targets = torch.from_numpy(volumes.targets["train"]).to(device)
        self._validation = torch.from_numpy(shrink_masks(volumes.images["val"], self._shape))
        self.size = len(self._inputs)
        self._augments = any((augmentation.rotation, augmentation.scale, augmentation.shift))

    def loss(self, module: nn.Module, indices: Tensor, generator: Generator) -> Tensor:
        maps = random_affine(len(indices), self.augmentation, generator)
        indices = indices.to(self.device)
        inputs = self._inputs[indices]
        if self._augments:
            inputs = transform(inputs, maps)
        smoothing = self.augmentation.label_smoothing
        return F.cross_entropy(module(inputs), self._targets[indices], label_smoothing=smoothing)

    def samples(self, indices: Tensor) -> Tensor:
        return self._inputs[indices.to(self.device)]

    def validate(self, module: nn.Module) -> tuple[float, dict[str, Any]]:
        logits = torch.cat(
            [module(batch.to(self.device)).cpu() for batch in torch.split(self._validation, VALIDATION_BATCH)]
        )
        targets = self.volumes.targets["val"]
        metrics = binary_scores(targets, torch.softmax(logits, dim=-1).double().numpy())
        metrics["cross_entropy"] = F.cross_entropy(logits, torch.from_numpy(targets)).item()
        return 1 - metrics["auc"], metrics

    def facts(self) -> dict[str, Any]:
        task = VolumeClassification(
            labels=self.volumes.labels,
            preprocessing=(Reorient(), Binarise(), Resize(shape=self._shape)),
        )
        return {
            "dataset": self.volumes.name,
            "data_sha256": self.volumes.sha256,
            "data_licence": self.volumes.licence,
            "labels": list(self.volumes.labels),
            "task": task.model_dump(mode="json"),
        }
