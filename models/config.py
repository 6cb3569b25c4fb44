"""What a checkpoint's config.json says, as frozen dataclasses, and the registry from `kind` to module.

A checkpoint is a folder with config.json (`to_dict` of one of these) and weights.safetensors (the module's state dict).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from models.attention import FullAttention, HOTAttention

AttentionKind = Literal["hot-product", "hot-sum", "full"]
Readout = Literal["mean", "flatten"]
Position = Literal["none", "learned"]


@dataclass(frozen=True)
class ForecasterConfig:
    """Forecaster over a [variates, patches] grid. Defaults: the HOT paper's (arXiv 2412.02919, section 6).

    lookback, horizon, patch: time steps; the patch divides the lookback. rotary: modes, 0 the variates and 1 the time;
    full attention has no modes and takes no notice of it. ValueError: a value that cannot be built.
    """

    kind: ClassVar[str] = "forecaster"
    lookback: int = 96
    horizon: int = 720
    patch: int = 4
    dim: int = 128
    depth: int = 4
    heads: int = 8
    hidden: int = 512
    dropout: float = 0.1
    attention: AttentionKind = "hot-product"
    rotary: tuple[int, ...] = (1,)
    readout: Readout = "mean"

    def __post_init__(self) -> None:
        _require_positive(self, "lookback", "horizon", "patch", "dim", "depth", "heads", "hidden")
        _require_dropout(self.dropout)
        _require_one_of("attention", self.attention, get_args(AttentionKind))
        _require_one_of("readout", self.readout, get_args(Readout))
        if self.lookback % self.patch:
            raise ValueError(f"lookback {self.lookback} is not divisible by patch {self.patch}")


@dataclass(frozen=True)
class ClassifierConfig:
    """Classifier of single-channel volumes of one fixed size, over a [D/p, H/p, W/p] grid.

    volume, patch: voxels; the patch divides every side. rotary: modes 0..2, as in `ForecasterConfig`.
    ValueError: a value that cannot be built.
    """

    kind: ClassVar[str] = "volume-classifier"
    volume: tuple[int, int, int] = (32, 32, 32)
    classes: int = 2
    patch: int = 4
    dim: int = 64
    depth: int = 4
    heads: int = 8
    hidden: int = 256
    dropout: float = 0.1
    attention: AttentionKind = "hot-product"
    rotary: tuple[int, ...] = ()
    position: Position = "learned"

    def __post_init__(self) -> None:
        _require_positive(self, "classes", "patch", "dim", "depth", "heads", "hidden")
        _require_dropout(self.dropout)
        _require_one_of("attention", self.attention, get_args(AttentionKind))
        _require_one_of("position", self.position, get_args(Position))
        if len(self.volume) != 3:
            raise ValueError(f"volume must have three sides, got {self.volume}")
        if any(side <= 0 or side % self.patch for side in self.volume):
            raise ValueError(f"volume {self.volume} is not divisible by patch {self.patch}")


Config = ForecasterConfig | ClassifierConfig


def _require_positive(config: Config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def _require_dropout(value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"dropout must be in [0, 1), got {value!r}")


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def attention_module(config: Config, order: int) -> nn.Module:
    """The attention that `config.attention` names, for an order-`order` grid."""
    if config.attention == "full":
        return FullAttention(config.dim, config.heads)
    combine: Literal["product", "sum"] = "product" if config.attention == "hot-product" else "sum"
    return HOTAttention(config.dim, order, config.heads, combine, config.rotary)


def to_dict(config: Config) -> dict[str, Any]:
    """The JSON form of a config, `kind` included."""
    return {"kind": config.kind, **dataclasses.asdict(config)}


def from_dict(values: dict[str, Any]) -> Config:
    """The config that `to_dict` wrote. ValueError names an unknown kind or key, or a value that is not allowed."""
    keywords: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    kind = keywords.pop("kind", None)
    for cls in (ForecasterConfig, ClassifierConfig):
        if cls.kind == kind:
            known = {field.name for field in dataclasses.fields(cls)}
            if unknown := sorted(set(keywords) - known):
                raise ValueError(f"unknown keys {', '.join(unknown)} for kind {kind!r}")
            return cls(**keywords)
    raise ValueError(f"unknown kind {kind!r}; known: {ForecasterConfig.kind}, {ClassifierConfig.kind}")


def build(config: Config) -> nn.Module:
    """A freshly initialised module for `config`."""
    # Here, not above: both modules import `attention_module` from this file.
    from models.classifier import VolumeClassifier
    from models.forecaster import Forecaster

    if isinstance(config, ForecasterConfig):
        return Forecaster(config)
    return VolumeClassifier(config)
