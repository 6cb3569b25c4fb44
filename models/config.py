"""What a checkpoint's config.json says, as frozen dataclasses, and the registry from `kind` to module.

A checkpoint is a folder with config.json (`to_dict` of one of these) and weights.safetensors (the module's state dict).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from models.attention import Combine, FeatureMap, HOTAttention
from models.full import FullAttention, NoAttention, Variant
from models.kao import KAOAttention, Queries

AttentionKind = Literal[
    "hot-product", "hot-sum", "hot-kernelised", "kao-kv", "kao-qkv", "full", "full-naive", "full-pooled", "none"
]
Readout = Literal["mean", "flatten"]
Position = Literal["none", "learned", "sinusoidal"]

_HOT: dict[AttentionKind, Combine] = {"hot-product": "product", "hot-sum": "sum", "hot-kernelised": "kernelised"}
_KAO: dict[AttentionKind, Queries] = {"kao-kv": "tokens", "kao-qkv": "means"}
_FULL: dict[AttentionKind, Variant] = {"full": "fused", "full-naive": "naive", "full-pooled": "pooled"}


@dataclass(frozen=True)
class ForecasterConfig:
    """Forecaster over a [variates, patches] grid. Defaults: the HOT paper's (arXiv 2412.02919, section 6).

    lookback, horizon, patch: time steps; the patch divides the lookback. rotary: modes, 0 the variates and 1 the time;
    only HOT has matrices of single modes, other attention takes no notice of it. position: of a patch in time, added to
    its token. feature_map: of "hot-kernelised". ValueError: a value that cannot be built.
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
    position: Position = "none"
    feature_map: FeatureMap = "elu"

    def __post_init__(self) -> None:
        _require_positive(self, "lookback", "horizon", "patch", "dim", "depth", "heads", "hidden")
        _require_dropout(self.dropout)
        _require_known_names(self)
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
    feature_map: FeatureMap = "elu"

    def __post_init__(self) -> None:
        _require_positive(self, "patch", "dim", "depth", "heads", "hidden")
        _require_classes(self.classes)
        _require_dropout(self.dropout)
        _require_known_names(self)
        _require_whole_numbers("volume", self.volume)
        if len(self.volume) != 3:
            raise ValueError(f"volume must have three sides, got {self.volume}")
        if any(side <= 0 or side % self.patch for side in self.volume):
            raise ValueError(f"volume {self.volume} is not divisible by patch {self.patch}")


Stage = tuple[str, int, int, int]
"""One module of a KANet: "base" or "attention", channels, expansion, stride."""

MODULES: tuple[Stage, ...] = (
    ("base", 24, 4, 2),
    ("attention", 24, 4, 1),
    ("base", 48, 4, 2),
    ("attention", 48, 4, 1),
)


@dataclass(frozen=True)
class KANetConfig:
    """Convolutional classifier with attention in its residual branches (arXiv 2007.08442, section 4.1).

    size: pixels or voxels of each spatial axis, two for images and three for volumes. channels: of the input.
    stem, features: channels after the first and the last convolution. A module's width inside is its input's channels
    times the expansion, which the heads of an "attention" module divide. ValueError: a value that cannot be built.
    """

    kind: ClassVar[str] = "kanet"
    size: tuple[int, ...] = (32, 32, 32)
    channels: int = 1
    classes: int = 2
    stem: int = 16
    modules: tuple[Stage, ...] = MODULES
    features: int = 192
    heads: int = 4
    dropout: float = 0.2
    attention: AttentionKind = "kao-kv"
    rotary: tuple[int, ...] = ()
    feature_map: FeatureMap = "elu"

    def __post_init__(self) -> None:
        _require_positive(self, "channels", "stem", "features", "heads")
        _require_classes(self.classes)
        _require_dropout(self.dropout)
        _require_known_names(self)
        _require_whole_numbers("size", self.size)
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise ValueError(f"size must have two or three sides of at least 1, got {self.size}")
        if not isinstance(self.modules, tuple) or not self.modules:
            raise ValueError("modules must be a list of at least one")
        for stage in self.modules:
            if not isinstance(stage, tuple):
                raise ValueError(f"a module is [kind, channels, expansion, stride], got {stage!r}")
            if len(stage) != 4 or any(not isinstance(value, int) or value < 1 for value in stage[1:]):
                raise ValueError(f"a module is [kind, channels, expansion, stride], got {list(stage)}")
            _require_one_of("a module's kind", stage[0], ("base", "attention"))


Config = ForecasterConfig | ClassifierConfig | KANetConfig
KINDS: tuple[type[Config], ...] = (ForecasterConfig, ClassifierConfig, KANetConfig)


def input_shape(config: Config) -> tuple[int, ...]:
    """Of one sample; -1 where any size is taken."""
    if isinstance(config, ForecasterConfig):
        return (-1, config.lookback)
    return (1, *config.volume) if isinstance(config, ClassifierConfig) else (config.channels, *config.size)


def _require_known_names(config: Config) -> None:
    _require_one_of("attention", config.attention, get_args(AttentionKind))
    _require_one_of("feature_map", config.feature_map, get_args(FeatureMap))
    _require_whole_numbers("rotary", config.rotary)
    if not isinstance(config, KANetConfig):
        _require_one_of("position", config.position, get_args(Position))


def _require_positive(config: Config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def _require_classes(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise ValueError(f"classes must be a whole number of at least 2, got {value!r}")


def _require_whole_numbers(name: str, value: object) -> None:
    if not isinstance(value, tuple) or any(not isinstance(part, int) or isinstance(part, bool) for part in value):
        raise ValueError(f"{name} must be a list of whole numbers, got {value!r}")


def _require_dropout(value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"dropout must be in [0, 1), got {value!r}")


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def attention_module(config: Config, dim: int, order: int) -> nn.Module:
    """The attention that `config.attention` names, over tokens of width `dim` on an order-`order` grid."""
    kind = config.attention
    if kind in _HOT:
        return HOTAttention(dim, order, config.heads, _HOT[kind], config.rotary, config.feature_map)
    if kind in _KAO:
        return KAOAttention(dim, config.heads, _KAO[kind])
    if kind in _FULL:
        return FullAttention(dim, config.heads, _FULL[kind], (1,) if isinstance(config, ForecasterConfig) else None)
    return NoAttention(dim)


def to_dict(config: Config) -> dict[str, Any]:
    """The JSON form of a config, `kind` included."""
    return {"kind": config.kind, **dataclasses.asdict(config)}


def from_dict(values: dict[str, Any]) -> Config:
    """The config that `to_dict` wrote. ValueError names an unknown kind or key, or a value that is not allowed."""
    keywords: dict[str, Any] = {key: _frozen(value) for key, value in values.items()}
    kind = keywords.pop("kind", None)
    for cls in KINDS:
        if cls.kind == kind:
            known = {field.name for field in dataclasses.fields(cls)}
            if unknown := sorted(set(keywords) - known):
                raise ValueError(f"unknown keys {', '.join(unknown)} for kind {kind!r}")
            return cls(**keywords)
    raise ValueError(f"unknown kind {kind!r}; known: {', '.join(cls.kind for cls in KINDS)}")


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def build(config: Config) -> nn.Module:
    """A freshly initialised module for `config`."""
    # Here, not above: these modules import `attention_module` from this file.
    from models.classifier import VolumeClassifier
    from models.forecaster import Forecaster
    from models.kanet import KANet

    if isinstance(config, ForecasterConfig):
        return Forecaster(config)
    return VolumeClassifier(config) if isinstance(config, ClassifierConfig) else KANet(config)
