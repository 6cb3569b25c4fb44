"""A training run in a TOML file: which data, which model, which optimisation."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from models.config import Config, from_dict, to_dict

Loss = Literal["mse", "mae", "mse+mae"]


class RecipeError(ValueError):
    """The recipe cannot be read; the message names the file, the table and the key."""


@dataclass(frozen=True)
class Optimisation:
    """AdamW under a one-cycle learning rate, clipped gradients, early stopping on the validation score.

    learning_rate: the cycle's peak. warmup: share of all steps before it. clip: largest gradient norm. patience: epochs
    without improvement before stopping. average: decay per step of the exponential moving average of the weights, which
    is what is validated and saved; 0 switches it off. loss: of a forecaster's errors; a
    classifier has cross-entropy and takes no notice of it.
    """

    epochs: int
    batch: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.3
    clip: float = 1.0
    patience: int = 10
    average: float = 0.0
    seed: int = 0
    loss: Loss = "mse"


@dataclass(frozen=True)
class Augmentation:
    """What is random about a training sample.

    Volumes: affine maps, `rotation` in degrees about each axis, relative `scale`, `shift` as a share of the side;
    label_smoothing is the share of the target's mass spread over all the classes.
    Series: `variates` is the share of batches that see a random subset of the variates, of random size.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    label_smoothing: float = 0.0
    variates: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run besides the data's bytes and the software."""

    name: str
    dataset: str
    model: Config
    optimisation: Optimisation
    description: str = ""
    intended_use: str = ""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; the model's `kind` included."""
        return {**dataclasses.asdict(self), "model": to_dict(self.model)}


_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "Loss": (str,)}


def _table(cls: type[Any], values: Any, where: str) -> Any:
    """An instance of a flat dataclass from a TOML table, its keys and types checked."""
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise RecipeError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(fields)}")
    for key, value in values.items():
        if not isinstance(value, _TYPES[str(fields[key].type)]) or isinstance(value, bool):
            raise RecipeError(f"{where}: {key} must be {fields[key].type}, got {value!r}")
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise RecipeError(f"{where}: missing key {', '.join(missing)}")
    return cls(**values)


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    """A recipe from parsed TOML. RecipeError names the table and the key at fault; `source` is the file's name."""
    values = dict(values)
    known = [f.name for f in dataclasses.fields(Recipe)]
    if unknown := sorted(set(values) - set(known)):
        raise RecipeError(f"{source}: unknown key {', '.join(unknown)}; known: {', '.join(known)}")
    for key in ("name", "dataset", "model", "optimisation"):
        if key not in values:
            raise RecipeError(f"{source}: missing key {key}")
    for key in ("name", "dataset", "description", "intended_use"):
        if not isinstance(values.get(key, ""), str):
            raise RecipeError(f"{source}: {key} must be str, got {values[key]!r}")
    if not isinstance(values["model"], dict):
        raise RecipeError(f"{source} [model] must be a table")
    try:
        values["model"] = from_dict(values["model"])
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{source} [model]: {error}") from error
    optimisation: Optimisation = _table(Optimisation, values["optimisation"], f"{source} [optimisation]")
    if optimisation.epochs < 1 or optimisation.batch < 1 or optimisation.patience < 1:
        raise RecipeError(f"{source} [optimisation]: epochs, batch and patience must be at least 1")
    if not 0 <= optimisation.average < 1:
        raise RecipeError(f"{source} [optimisation]: average must be in [0, 1), got {optimisation.average}")
    if optimisation.loss not in get_args(Loss):
        raise RecipeError(f"{source} [optimisation]: loss must be one of {', '.join(get_args(Loss))}")
    values["optimisation"] = optimisation
    values["augmentation"] = _table(Augmentation, values.get("augmentation", {}), f"{source} [augmentation]")
    return Recipe(**values)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. RecipeError: not readable, not TOML, or not a recipe."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return parse_recipe(values, str(path))
