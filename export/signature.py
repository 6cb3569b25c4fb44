"""What the exported graph takes and gives: names, shapes and axes, as the manifest lists them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from app.manifest import TensorSpec
from models.config import Config, ForecasterConfig, input_shape

_SPATIAL = ("depth", "height", "width")


@dataclass(frozen=True)
class OwnModule:
    """A network that is no config's: made by the user's own factory, "package.module:function".

    input_shape: of one sample, -1 where any size is taken; output_shape: of what the module gives for it.
    """

    kind = "module"
    factory: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


Description = Config | OwnModule


@dataclass(frozen=True)
class Signature:
    """Names of the graph's one input and one output, and of their axes; a dynamic axis has size -1."""

    input: str
    input_axes: tuple[str, ...]
    input_shape: tuple[int, ...]
    output: str
    output_axes: tuple[str, ...]
    output_shape: tuple[int, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As the manifest lists them."""
        return (TensorSpec(name=self.input, datatype="FP32", shape=self.input_shape, axes=self.input_axes),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As the manifest lists them, without those on request."""
        return (TensorSpec(name=self.output, datatype="FP32", shape=self.output_shape, axes=self.output_axes),)


def forecasts(description: Description) -> bool:
    """Whether the network continues series; otherwise it classifies."""
    if isinstance(description, OwnModule):
        return len(description.input_shape) == 2
    return isinstance(description, ForecasterConfig)


def lookback_and_horizon(description: Description) -> tuple[int, int]:
    """Of a network that forecasts, time steps in and out."""
    if isinstance(description, OwnModule):
        return description.input_shape[-1], description.output_shape[-1]
    assert isinstance(description, ForecasterConfig)
    return description.lookback, description.horizon


def class_count(description: Description) -> int:
    """Of a network that classifies."""
    if isinstance(description, OwnModule):
        return prod(description.output_shape)
    assert not isinstance(description, ForecasterConfig)
    return description.classes


def sample_shape(description: Description) -> tuple[int, ...]:
    """Of one sample of the input; -1 where any size is taken."""
    return description.input_shape if isinstance(description, OwnModule) else input_shape(description)


def signature(description: Description) -> Signature:
    """What a model of this kind takes and gives."""
    if forecasts(description):
        lookback, horizon = lookback_and_horizon(description)
        return Signature(
            "series",
            ("batch", "variate", "lookback"),
            (-1, *sample_shape(description)[:-1], lookback),
            "forecast",
            ("batch", "variate", "horizon"),
            (-1, *sample_shape(description)[:-1], horizon),
        )
    shape = sample_shape(description)
    spatial = _SPATIAL[-(len(shape) - 1) :]
    return Signature(
        "volume" if len(spatial) == 3 else "image",
        ("batch", "channel", *spatial),
        (-1, *shape),
        "logits",
        ("batch", "class"),
        (-1, class_count(description)),
    )
