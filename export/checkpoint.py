"""What an export starts from: a checkpoint folder, or a bundle that was exported before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from app.manifest import Forecasting, Manifest, VolumeClassification, fault
from export.signature import Description, OwnModule
from models.config import build, from_dict

WEIGHTS = "weights.safetensors"
_TEXTS = ("description", "intended_use")
"""What a recipe says of the model in words."""
_HALF = (torch.float16, torch.bfloat16)


class ExportError(Exception):
    """The export cannot be made; the message says what is wrong and where."""


@dataclass(frozen=True)
class Checkpoint:
    """config.json, weights.safetensors and, when trained here, training.json; a bundle has the same in its manifest."""

    config: Description
    path: Path
    """Of the weights, for messages."""
    weights: bytes
    """The safetensors file, read once: a run in progress may replace it at any time."""
    training: dict[str, Any]
    manifest: Manifest | None
    """The bundle's, when the export starts from one."""
    built: nn.Module | None = None
    """The user's own network; else `config` says how to build it."""
    left_out: tuple[str, ...] = ()
    """What the folder says of other weights than these, in words; it is not in `training` and `manifest`."""

    @property
    def texts(self) -> dict[str, Any]:
        """What the training's recipe says of the model in words; none where it is no recipe of ours."""
        recipe = self.training.get("recipe")
        return {key: recipe[key] for key in _TEXTS if key in recipe} if isinstance(recipe, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ExportError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


def read_checkpoint(folder: Path, weights: bytes | None = None) -> Checkpoint:
    """The checkpoint or bundle in `folder`, with its own weights or those given, a safetensors file.

    What was measured with its own weights does not speak of others: `Checkpoint.left_out`. ExportError names the
    missing or malformed file and key.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder}: no such folder")
    path = folder / WEIGHTS
    if weights is None and not path.is_file():
        raise ExportError(f"{path}: no such file")
    manifest = None
    if (folder / "config.json").is_file():
        values = _json(folder / "config.json")
        training = _json(folder / "training.json") if (folder / "training.json").is_file() else {}
    elif (folder / "manifest.json").is_file():
        try:
            manifest = Manifest.model_validate(_json(folder / "manifest.json"))
        except ValidationError as error:
            raise ExportError(f"{folder / 'manifest.json'} is not valid: {fault(error)}") from error
        if manifest.precision.kind != "fp32":
            raise ExportError(f"{folder} has weights in {manifest.precision.kind}; export from where it was made of")
        values, training = manifest.provenance.config, manifest.provenance.training
        if values.get("kind") == OwnModule.kind:
            raise ExportError(f"{folder} was made from a network of one's own; export it with --module and --weights")
    else:
        raise ExportError(f"{folder} has neither config.json (a checkpoint) nor manifest.json (a bundle)")
    try:
        config = from_dict(values)
    except (ValueError, TypeError) as error:
        raise ExportError(f"{folder}: {error}") from error
    if weights is None:
        return Checkpoint(config, path, path.read_bytes(), training, manifest)
    if manifest is not None:
        known = manifest.provenance.weights_sha256
    else:
        known = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    found = Checkpoint(config, path, weights, training, manifest)
    return found if hashlib.sha256(weights).hexdigest() == known else _of_other_weights(found)


def _of_other_weights(source: Checkpoint) -> Checkpoint:
    """Without what was measured with, or trained into, the weights that were there before.

    The task and the texts stay: they say what the model is for.
    """
    left_out, training, manifest = list[str](), source.training, source.manifest
    if manifest is not None:
        task = manifest.task
        if isinstance(task, Forecasting) and task.intervals is not None:
            left_out.append("intervals")
            task = task.model_copy(update={"intervals": None})
        elif isinstance(task, VolumeClassification) and task.temperature != 1:
            left_out.append("temperature")
            task = task.model_copy(update={"temperature": 1.0})
        left_out += ["metrics"] if manifest.metrics else []
        left_out += ["licence of the data"] if manifest.data_licence else []
        manifest = manifest.model_copy(update={"task": task, "metrics": {}, "data_licence": ""})
    if training:
        left_out += ["record of the training"]
        training = {key: value for key, value in (("task", training.get("task")), ("recipe", source.texts)) if value}
    return replace(source, training=training, manifest=manifest, left_out=tuple(left_out))


def load_module(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's module in float32, in inference mode.

    ExportError: the file is corrupt, or its tensors are not the module's; names, shapes and datatypes are listed.
    Weights must be stored as the module holds them, because the graph reads the very file. They must be finite; but a
    buffer may be infinite where the module makes it so itself, as a causal mask.
    """
    try:
        stored = load(checkpoint.weights)
    except (SafetensorError, ValueError) as error:
        raise ExportError(f"{checkpoint.path} is not a readable safetensors file: {error}") from error
    if checkpoint.built is not None:
        module = checkpoint.built
    else:
        assert not isinstance(checkpoint.config, OwnModule)
        try:
            module = build(checkpoint.config)
        except ValueError as error:
            raise ExportError(f"{checkpoint.path.parent}: the config cannot be built: {error}") from error
    wanted, buffers = module.state_dict(), {name for name, _ in module.named_buffers(remove_duplicate=False)}
    faults = [f"missing {name}" for name in wanted if name not in stored]
    faults += [f"unexpected {name}" for name in stored if name not in wanted]
    shared = sorted(wanted.keys() & stored.keys())
    for name in shared:
        have, want = stored[name], wanted[name]
        if have.shape != want.shape:
            faults.append(f"{name} has shape {tuple(have.shape)} instead of {tuple(want.shape)}")
        elif have.dtype != want.dtype:
            faults.append(f"{name} is {have.dtype} instead of {want.dtype}")
        elif have.is_floating_point():
            allowed = have.isfinite() | (have == want) if name in buffers else have.isfinite()
            if not bool(allowed.all()):
                faults.append(f"{name} holds NaN or infinity")
    if any(stored[name].dtype in _HALF and wanted[name].dtype == torch.float32 for name in shared):
        faults.append("save module.float().state_dict() to have half-precision weights in float32")
    if faults:
        raise ExportError(
            f"{checkpoint.path} does not fit its {'config' if checkpoint.built is None else 'module'}: "
            + "; ".join(faults)
        )
    module.load_state_dict(stored)
    return module.eval()
