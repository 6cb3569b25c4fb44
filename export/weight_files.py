"""Weights as users have them: safetensors, or a PyTorch file read without running anything that it contains."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from export.author_names import is_authors, renamed
from export.checkpoint import ExportError
from export.weights import check_dtype, layout

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
_NESTED = ("state_dict", "model_state_dict", "model")
"""Where training frameworks keep the state dict inside a larger file."""
_PARALLEL = "module."
"""What torch.nn.parallel and torch.optim.swa_utils.AveragedModel put before every name."""
_WRAPPERS = (_PARALLEL, "_orig_mod.", "model.")
"""The second is torch.compile's, the third usual in Lightning."""
_AVERAGED = "n_averaged"
"""The count that AveragedModel keeps beside the averaged weights."""


def read_weights(path: Path, wanted: Set[str] | None = None, *, authors: bool = True) -> bytes:
    """The file's tensors as a safetensors file, under the names that the module uses.

    A PyTorch file is read with weights_only=True. It may hold the state dict itself or under one of the usual keys.
    Prefixes that wrappers of a module leave (`_WRAPPERS`, one in another too) go if every name has them, with the count
    of an AveragedModel, and the HOT authors' names are translated (`export.author_names`). A safetensors file under its
    own names is taken as it is. ExportError: not such a file, or a tensor of a datatype that no bundle holds.

    wanted: the module's own names, where they are known: nothing is renamed unless more of them fit then. None: those
    of a network of ours, which has no such prefixes.
    authors: whether the network may be one of the authors'.
    """
    if path.suffix not in SUFFIXES:
        raise ExportError(f"--weights {path}: a file ending in {', '.join(SUFFIXES)} is needed")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"--weights {path}: {error.strerror}") from error
    stored = _read_safetensors(content, path) if path.suffix == ".safetensors" else _read_torch(path)
    names = _renaming(stored.keys(), wanted, authors=authors)
    for name in names:
        # Before anything is traced, and because safetensors does not hold all that PyTorch does.
        check_dtype(path, name, str(stored[name].dtype))
        if stored[name].layout != torch.strided:
            raise ExportError(f"{path}: the tensor {name} is {stored[name].layout}; save it as to_dense()")
    if path.suffix == ".safetensors" and all(old == new for old, new in names.items()) and len(names) == len(stored):
        return content
    translated: bytes = save({new: stored[old].detach().clone().contiguous() for old, new in names.items()})
    return translated


def _renaming(stored: Set[str], wanted: Set[str] | None, *, authors: bool) -> dict[str, str]:
    """The new name of each tensor that is kept."""
    ways = [{name: name for name in stored}]
    while unwrapped := _unwrapped(ways[-1]):
        ways.append(unwrapped)
    if authors and is_authors(stored):
        ways.append({name: new for name, old in ways[-1].items() if (new := renamed(old)) is not None})
    if wanted is None:
        return ways[-1]
    return max(ways, key=lambda names: len(wanted & set(names.values())))  # the first of equals: as little as possible


def _unwrapped(names: dict[str, str]) -> dict[str, str]:
    """The new names without the prefix that all of them have; none where they have none."""
    inner = {old: new for old, new in names.items() if new != _AVERAGED}
    for prefix in _WRAPPERS if len(inner) == len(names) else (_PARALLEL,):
        if all(new.startswith(prefix) for new in inner.values()):
            return {old: new.removeprefix(prefix) for old, new in inner.items()}
    return {}


def _read_safetensors(content: bytes, path: Path) -> Mapping[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load(content)
    except KeyError:  # four bits, say, for which PyTorch has no datatype
        layout(path)  # says which tensor
        raise
    except (SafetensorError, ValueError) as error:
        raise ExportError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path} holds more than tensors, and nothing in it is run; save the state dict alone: "
            "torch.save(module.state_dict(), ...)"
        ) from error
    except Exception as error:  # bytes that are no pickle make its reader stumble in any way
        reason = " ".join(str(error).split())[:200] or "it is empty or cut short"
        raise ExportError(f"{path} is not a readable PyTorch file: {reason}") from error
    for key in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ExportError(f"{path} holds no state dict, a mapping from names to tensors, at its top or under {_NESTED}")
    return {str(name): tensor for name, tensor in found.items()}
