"""What a volume classifier attended to: its attention matrices, and how much each slice received."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from app.errors import UnusableInput
from app.manifest import Manifest, TensorSpec


def attention_outputs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """The outputs attention.BLOCK.MODE. UnusableInput: the bundle was exported without them."""
    specs = tuple(spec for spec in manifest.outputs if spec.on_request and spec.name.startswith("attention."))
    if not specs:
        config = manifest.provenance.config
        which = f"{manifest.name}/{manifest.version}"
        if config.get("kind") == "volume-classifier" and str(config.get("attention")).startswith("hot-"):
            why = (
                f"it was exported without --explain; kronserve export FOLDER/{which} --name {manifest.name} "
                f"--version {manifest.version} --repository NEW --explain makes one of it that can"
            )
        else:
            why = "its network has no attention matrix of each mode, as HOT networks have"
        raise UnusableInput(f"{which} cannot explain itself: {why}", field="explain")
    return specs


def explanation(manifest: Manifest, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Attention matrices and saliency of one volume, from outputs of one row.

    "attention": {"0": {"depth": heads x N x N, ..}, ..} by block and mode; row n of a matrix says how position n
    attends to all of them. "saliency": {"depth": [..], ..}, one number a slice of the model's input: the attention that
    the slice's position receives, over heads, blocks and askers; 1 is what an even attention would give.
    """
    volume = dict(zip(manifest.inputs[0].axes, manifest.inputs[0].shape, strict=True))
    attention: dict[str, dict[str, np.ndarray]] = {}
    received: dict[str, list[np.ndarray]] = {}
    for spec in attention_outputs(manifest):
        _, block, _ = spec.name.split(".")
        axis = spec.axes[-1]
        matrices = np.ascontiguousarray(outputs[spec.name][0])
        attention.setdefault(block, {})[axis] = matrices
        received.setdefault(axis, []).append(matrices.mean(axis=(0, 1)) * matrices.shape[-1])
    saliency = {}
    for axis, per_block in received.items():
        positions = np.mean(per_block, axis=0)
        saliency[axis] = positions.repeat(volume.get(axis, len(positions)) // len(positions))
    return {"attention": attention, "saliency": saliency}
