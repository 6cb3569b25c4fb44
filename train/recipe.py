"""A training run in a TOML file: which data, which model, which optimisation."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from models.config import Config, build, from_dict, input_shape, to_dict

Loss = Literal["mse", "mae", "mse+mae"]


_WHOLE = 2**31 - 1
SEEDS = 2**32 - 1
"""The largest seed; the loop's own generators have seeds that are multiples of it."""


def _require(owner: Any, interval: str, *names: str) -> None:
    """ValueError unless these values lie in an interval like "[0, 1)", whose square bracket counts its end in."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name in names:
        value = getattr(owner, name)
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name} must be in {interval}, got {value}")


class RecipeError(ValueError):
    """The recipe cannot be read; the message names the file, the table and the key."""


@dataclass(frozen=True)
class Optimisation:
    """AdamW under a one-cycle learning rate, clipped gradients, early stopping on the validation score.

    learning_rate: the cycle's peak. warmup: share of all steps before it. clip: largest gradient norm. patience: epochs
    without improvement before stopping. average: decay per step of the exponential moving average of the weights, which
    is what is validated and saved; 0 switches it off. loss: of a forecaster's errors; a
    classifier has cross-entropy and takes no notice of it. ValueError: a value that nothing can be trained with.
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

    def __post_init__(self) -> None:
        _require(self, f"[1, {_WHOLE}]", "epochs", "batch", "patience")
        _require(self, "(0, inf)", "learning_rate", "clip")
        _require(self, "[0, inf)", "weight_decay")
        _require(self, "[0, 1)", "warmup", "average")
        _require(self, f"[0, {SEEDS}]", "seed")
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}")


@dataclass(frozen=True)
class Augmentation:
    """What is random about a training sample.

    Volumes: affine maps, `rotation` in degrees about each axis, relative `scale`, `shift` as a share of the side;
    label_smoothing is the share of the target's mass spread over all the classes.
    Series: `variates` is the share of batches that see a random subset of the variates, of random size.
    ValueError: a value outside its range.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    label_smoothing: float = 0.0
    variates: float = 0.0

    def __post_init__(self) -> None:
        _require(self, "[0, 180]", "rotation")
        _require(self, "[0, 1)", "scale")
        _require(self, "[0, 1]", "shift", "label_smoothing", "variates")


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
    try:
        return cls(**{key: _number(value) if fields[key].type == "float" else value for key, value in values.items()})
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _number(value: float) -> float:
    """TOML's whole numbers have no bound, and where a float is meant they may stand for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _try(config: Config) -> None:
    """Build the network and run it once: which values go together is the modules' own to say."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        build(config).eval()(torch.zeros(1, *(1 if size < 0 else size for size in input_shape(config))))


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
        config = from_dict(values["model"])
        _try(config)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: torch cannot make tensors of these sizes
        raise RecipeError(f"{source} [model]: {str(error).splitlines()[0]}") from error
    values["model"] = config
    values["optimisation"] = _table(Optimisation, values["optimisation"], f"{source} [optimisation]")
    values["augmentation"] = _table(Augmentation, values.get("augmentation", {}), f"{source} [augmentation]")
    return Recipe(**values)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. RecipeError: not readable, not TOML, or not a recipe."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return parse_recipe(values, str(path))
