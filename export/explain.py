"""A module's mode attentions as further results: what `kronserve export --explain` traces beside the ordinary graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from app.manifest import TensorSpec
from export.signature import Description, OwnModule
from models.attention import HOTAttention
from models.config import ForecasterConfig, KANetConfig


def attention_outputs(config: Description) -> tuple[TensorSpec, ...]:
    """Every block's mode attentions, in the order in which they are computed.

    `attention.BLOCK.MODE`, both counted from 0, is A_i (batch, head, Ni, Ni): row n says how position n of the mode
    attends to all of them. ValueError: the model has no mode attentions.
    """
    if isinstance(config, OwnModule):
        raise ValueError("--explain knows the attention of our own networks alone")
    if not config.attention.startswith("hot-") or isinstance(config, KANetConfig):
        raise ValueError(f"a {config.kind} with attention {config.attention!r} has no mode attentions to explain")
    if isinstance(config, ForecasterConfig):
        modes = [("variate", -1), ("patch", config.lookback // config.patch)]
    else:
        modes = [
            (axis, side // config.patch) for axis, side in zip(("depth", "height", "width"), config.volume, strict=True)
        ]
    return tuple(
        TensorSpec(
            name=f"attention.{block}.{mode}",
            datatype="FP32",
            shape=(-1, config.heads, size, size),
            axes=("batch", "head", axis, axis),
            on_request=True,
        )
        for block in range(config.depth)
        for mode, (axis, size) in enumerate(modes)
    )


@contextmanager
def explained(module: nn.Module) -> Iterator[None]:
    """Inside the block `module(x)` gives (output, A of block 0 and mode 0, ..).

    Hooks do it: in a module around this one, the weights would have other names.
    """
    found: list[Tensor] = []

    def collect(attention: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(attention, HOTAttention)
        found.extend(attention.mode_attentions(*arguments))

    def append(_: nn.Module, __: Any, output: Tensor) -> tuple[Tensor, ...]:
        results = (output, *found)
        found.clear()
        return results

    hooks = [part.register_forward_pre_hook(collect) for part in module.modules() if isinstance(part, HOTAttention)]
    hooks.append(module.register_forward_hook(append))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
