"""What an export starts from: a checkpoint folder, or a bundle that was exported before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from app.manifest import Manifest
from export.signature import Description, OwnModule
from models.config import build, from_dict

WEIGHTS = "weights.safetensors"


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

    ExportError names the missing or malformed file and key.
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
            raise ExportError(f"{folder / 'manifest.json'} is not a manifest: {error}") from error
        if manifest.precision.kind != "fp32":
            raise ExportError(f"{folder} has weights in {manifest.precision.kind}; export from where it was made of")
        values, training = manifest.provenance.config, manifest.provenance.training
        if values.get("kind") == OwnModule.kind:
            raise ExportError(f"{folder} was made from a network of one's own; export it with --module and --weights")
    else:
        raise ExportError(f"{folder} has neither config.json (a checkpoint) nor manifest.json (a bundle)")
    try:
        return Checkpoint(from_dict(values), path, weights or path.read_bytes(), training, manifest)
    except (ValueError, TypeError) as error:
        raise ExportError(f"{folder}: {error}") from error


def load_module(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's module in float32, in inference mode.

    ExportError: the file is corrupt, or its tensors are not the module's; names, shapes and datatypes are listed.
    Weights must be stored as the module holds them, because the graph reads the very file.
    """
    try:
        stored = load(checkpoint.weights)
    except (SafetensorError, ValueError) as error:
        raise ExportError(f"{checkpoint.path} is not a readable safetensors file: {error}") from error
    if checkpoint.built is not None:
        module = checkpoint.built
    else:
        assert not isinstance(checkpoint.config, OwnModule)
        module = build(checkpoint.config)
    wanted = module.state_dict()
    faults = [f"missing {name}" for name in wanted if name not in stored]
    faults += [f"unexpected {name}" for name in stored if name not in wanted]
    for name in sorted(wanted.keys() & stored.keys()):
        have, want = stored[name], wanted[name]
        if have.shape != want.shape:
            faults.append(f"{name} has shape {tuple(have.shape)} instead of {tuple(want.shape)}")
        elif have.dtype != want.dtype:
            faults.append(f"{name} is {have.dtype} instead of {want.dtype}")
        elif have.is_floating_point() and not bool(torch.isfinite(have).all()):
            faults.append(f"{name} holds NaN or infinity")
    if faults:
        raise ExportError(
            f"{checkpoint.path} does not fit its {'config' if checkpoint.built is None else 'module'}: "
            + "; ".join(faults)
        )
    module.load_state_dict(stored)
    return module.eval()
