"""From a recipe to a trained checkpoint folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from models.config import ForecasterConfig
from train.classification import ClassificationObjective
from train.datasets import series, volumes
from train.datasets.csv_file import load_csv
from train.datasets.folder import DatasetError
from train.datasets.trained_on import is_published
from train.forecasting import ForecastObjective
from train.loop import Trainer
from train.objective import Objective
from train.recipe import Recipe


class DeviceError(Exception):
    """The device that was asked for is not there."""


def choose_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA when a GPU is usable, else the CPU. DeviceError: CUDA was asked for, and no GPU is usable."""
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise DeviceError("--device cuda: PyTorch finds no usable GPU")
    if name == "auto":
        name = "cuda" if usable else "cpu"
    return torch.device(name)


def make_objective(recipe: Recipe, data: Path, device: torch.device) -> Objective:
    """The recipe's data set under the recipe's model; `data` is the data sets' folder, or a CSV to take instead.

    DatasetError: unknown data set, or one the model is not for.
    """
    model = recipe.model
    if data.is_file():
        if not isinstance(model, ForecasterConfig):
            raise DatasetError(f"{data} is a series, the recipe's model is a {model.kind}")
        return ForecastObjective(load_csv(data), model, recipe.augmentation, device, recipe.optimisation.loss)
    if recipe.dataset in series.SOURCES and isinstance(model, ForecasterConfig):
        loaded = series.load_series(recipe.dataset, data)
        return ForecastObjective(loaded, model, recipe.augmentation, device, recipe.optimisation.loss)
    if recipe.dataset in volumes.SOURCES and not isinstance(model, ForecasterConfig):
        images = volumes.load_volumes(recipe.dataset, data)
        return ClassificationObjective(images, model, recipe.augmentation, device)
    known = ", ".join([*series.SOURCES, *volumes.SOURCES])
    raise DatasetError(f"data set {recipe.dataset!r} is not one for a {model.kind}; known: {known}")


def of_file(recipe: Recipe, file: Path, objective: Objective) -> Recipe:
    """The recipe as it is when its model is trained on a CSV: data set and texts are the file's.

    A recipe that was written for this file keeps its texts; one for a published data set only if these are its bytes.
    """
    facts = objective.facts()
    name, written_for = str(facts["dataset"]), recipe.dataset
    if is_published(written_for, file) or (written_for not in series.SOURCES and written_for == name):
        return recipe
    count = len(facts["variates"])
    variates = f"{count} variates" if count > 1 else "1 variate"
    step = f"of step {facts['frequency']!r}"
    return dataclasses.replace(
        recipe,
        dataset=name,
        description=f"Forecaster ({recipe.model.attention}) trained on {file.name}: {variates} {step}.",
        intended_use=f"Forecasting the variates of {file.name}; other series at the caller's own validation.",
    )


def train_recipe(
    recipe: Recipe, data: Path, folder: Path, device: torch.device, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Train a recipe into `folder`; returns training.json's content. data: as in `make_objective`."""
    objective = make_objective(recipe, data, device)
    if data.is_file():
        recipe = of_file(recipe, data, objective)
    return Trainer(recipe, objective, folder, device, resume).run(progress)
