"""Weights as users have them: safetensors, or a PyTorch file read without running anything that it contains."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from export.author_names import is_authors, renamed
from export.checkpoint import ExportError

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
_NESTED = ("state_dict", "model_state_dict", "model")
"""Where training frameworks keep the state dict inside a larger file."""


def read_weights(path: Path) -> bytes:
    """The file's tensors as a safetensors file, under the names that `models` uses.

    A PyTorch file is read with weights_only=True. It may hold the state dict itself or under one of the usual keys;
    the prefix "module." of a parallel training run goes, and the HOT authors' names are translated
    (`export.author_names`). A safetensors file under its own names is taken as it is. ExportError: not such a file.
    """
    if path.suffix not in SUFFIXES:
        raise ExportError(f"--weights {path}: a file ending in {', '.join(SUFFIXES)} is needed")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"--weights {path}: {error.strerror}") from error
    stored = load(content) if path.suffix == ".safetensors" and _readable(content, path) else _read_torch(path)
    names = {name: name.removeprefix("module.") for name in stored}
    if is_authors(names.values()):
        names = {name: new for name, old in names.items() if (new := renamed(old)) is not None}
    if path.suffix == ".safetensors" and all(old == new for old, new in names.items()) and len(names) == len(stored):
        return content
    translated: bytes = save({new: stored[old].detach().clone().contiguous() for old, new in names.items()})
    return translated


def _readable(content: bytes, path: Path) -> bool:
    from safetensors import SafetensorError

    try:
        load(content)
    except (SafetensorError, ValueError) as error:
        raise ExportError(f"{path} is not a readable safetensors file: {error}") from error
    return True


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path} holds more than tensors, and nothing in it is run; save the state dict alone: "
            "torch.save(module.state_dict(), ...)"
        ) from error
    except Exception as error:  # bytes that are no pickle make its reader stumble in any way
        raise ExportError(f"{path} is not a readable PyTorch file: {' '.join(str(error).split())[:200]}") from error
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ExportError(f"{path} holds no state dict, a mapping from names to tensors, at its top or under {_NESTED}")
    return {str(name): tensor for name, tensor in found.items()}
