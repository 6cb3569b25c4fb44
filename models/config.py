"""What a checkpoint's config.json says, as frozen dataclasses, and the registry from `kind` to module.

A checkpoint is a folder with config.json (`to_dict` of one of these) and weights.safetensors (the module's state dict).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from models.attention import FullAttention, HOTAttention

AttentionKind = Literal["hot-product", "hot-sum", "full"]


@dataclass(frozen=True)
class ForecasterConfig:
    """Forecaster over a [variates, patches] grid. Defaults: the HOT paper's configuration (arXiv 2412.02919, section 6)."""

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
    readout: Literal["mean", "flatten"] = "mean"


@dataclass(frozen=True)
class ClassifierConfig:
    """Classifier of single-channel volumes of one fixed size, over a [D/p, H/p, W/p] grid."""

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
    position: Literal["none", "learned"] = "learned"


Config = ForecasterConfig | ClassifierConfig


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
    values = dict(values)
    kind = values.pop("kind", None)
    for cls in (ForecasterConfig, ClassifierConfig):
        if cls.kind == kind:
            known = {field.name for field in dataclasses.fields(cls)}
            if unknown := sorted(set(values) - known):
                raise ValueError(f"config.json: unknown keys {', '.join(unknown)} for kind {kind!r}")
            return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    raise ValueError(f"config.json: unknown kind {kind!r}")


def build(config: Config) -> nn.Module:
    """A freshly initialised module for `config`."""
    from models.classifier import VolumeClassifier
    from models.forecaster import Forecaster

    if isinstance(config, ForecasterConfig):
        return Forecaster(config)
    return VolumeClassifier(config)
