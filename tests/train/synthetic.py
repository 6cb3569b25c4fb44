"""Tiny data sets made from a seed, so that the loop runs in well under a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from train.datasets.series import Series, split_bounds
from train.datasets.volumes import Split, Volumes
from train.recipe import Recipe, parse_recipe


def series() -> Series:
    """Two noisy sines, 200 steps."""
    time = np.arange(200)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(200, 2))
    values = np.stack([np.sin(time / 5) * 3 + 10, np.cos(time / 7)], axis=1) + noise
    return Series("synthetic", ("a", "b"), values, split_bounds(200, (120, 40, 40)), "h", "none", "0" * 64)


def volumes() -> Volumes:
    """Cubes of 8^3 or, the positive class, 4^3 somewhere in 16^3."""
    generator = np.random.default_rng(0)
    images, targets = {}, {}
    sizes: dict[Split, int] = {"train": 12, "val": 8, "test": 8}
    for split, count in sizes.items():
        targets[split] = np.arange(count, dtype=np.int64) % 2
        images[split] = np.zeros((count, 16, 16, 16), np.uint8)
        for image, target in zip(images[split], targets[split], strict=True):
            side = 4 if target else 8
            i, j, k = generator.integers(0, 16 - side, 3)
            image[i : i + side, j : j + side, k : k + side] = 255
    return Volumes("synthetic", images, targets, ("large", "small"), "none", "1" * 64)


def forecaster_recipe(**optimisation: Any) -> Recipe:
    model = {
        "kind": "forecaster",
        "lookback": 12,
        "horizon": 8,
        "patch": 4,
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "hidden": 8,
    }
    options = {"epochs": 4, "batch": 16, "seed": 5, "average": 0.9, **optimisation}
    return parse_recipe({"name": "f", "dataset": "synthetic", "model": model, "optimisation": options}, "f.toml")


def kanet_recipe(**optimisation: Any) -> Recipe:
    stages = [["base", 4, 1, 1], ["attention", 4, 1, 1]]
    model = {"kind": "kanet", "size": [8, 8, 8], "stem": 4, "modules": stages, "features": 8, "heads": 2}
    return _of_volumes(model, {"average": 0.9, **optimisation})


def classifier_recipe(**optimisation: Any) -> Recipe:
    model = {"kind": "volume-classifier", "volume": [8, 8, 8], "dim": 8, "depth": 1, "heads": 2, "hidden": 8}
    return _of_volumes(model, optimisation)


def _of_volumes(model: dict[str, Any], optimisation: dict[str, Any]) -> Recipe:
    augmentation = {"rotation": 15.0, "scale": 0.1, "shift": 0.1, "label_smoothing": 0.1}
    options = {"epochs": 4, "batch": 5, "seed": 5, **optimisation}
    values = {
        "name": "c",
        "dataset": "synthetic",
        "model": model,
        "optimisation": options,
        "augmentation": augmentation,
    }
    return parse_recipe(values, "c.toml")
