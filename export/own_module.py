"""A user's own network, built by a function of theirs, as what an export starts from."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from export import PACKAGES
from export.checkpoint import Checkpoint, ExportError
from export.signature import OwnModule
from export.weight_files import read_weights
from models.config import Config

_SERIES, _VARIATES = 2, 3


def read_own_module(factory: str, weights: Path, input_shape: tuple[int, ...] | None) -> Checkpoint:
    """The network that `factory` ("package.module:function", called without arguments) builds, with these weights.

    The working directory is importable. input_shape: of one sample, -1 where any size is taken; [-1, lookback] makes a
    forecaster. A network with one of our configs as its attribute `config` needs none. ExportError says what is wrong.
    """
    module = _built(factory)
    config, names = getattr(module, "config", None), module.state_dict().keys()
    if isinstance(config, Config):
        return Checkpoint(config, weights, read_weights(weights, names), {}, None, module)
    if input_shape is None:
        raise ExportError(f"--module {factory}: say what one sample is with --input-shape, as 'N,96' or '1,32,32,32'")
    description = OwnModule(factory, input_shape, _output_shape(module, factory, input_shape))
    return Checkpoint(description, weights, read_weights(weights, names, authors=False), {}, None, module)


def _built(factory: str) -> nn.Module:
    package, _, function = factory.partition(":")
    if not package or not function:
        raise ExportError(f"--module {factory}: name it as package.module:function")
    _require_free(factory, package)
    sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(package), function)
        module = make()
    except SystemExit as error:  # a script without `if __name__ == "__main__"` does that
        raise ExportError(f"--module {factory}: it calls sys.exit; a module that only defines is needed") from error
    except Exception as error:
        if isinstance(error, ImportError) and error.name:
            _require_free(factory, error.name)
        raise ExportError(f"--module {factory}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, nn.Module):
        raise ExportError(f"--module {factory} gave a {type(module).__name__}, not a torch.nn.Module")
    return module.float().eval()


def _require_free(factory: str, module: str) -> None:
    """ExportError: `module` names one of Kronserve's packages, where the working directory has another of that name."""
    first, ours = module.partition(".")[0], Path(__file__).resolve().parents[1]
    if first not in PACKAGES:
        return
    for path in (Path.cwd() / f"{first}.py", Path.cwd() / first):
        if (path.is_file() or any(path.glob("*.py"))) and path.resolve() != ours / first:
            raise ExportError(
                f"--module {factory}: {path} cannot be imported, because {first!r} is the name of one of Kronserve's "
                f"own packages ({', '.join(PACKAGES)}); rename it"
            )


def _output_shape(module: nn.Module, factory: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of one sample, from a run on two; dynamic axes three wide."""
    sample = torch.zeros(2, *(3 if size < 0 else size for size in input_shape))
    try:
        with torch.no_grad():
            output = module(sample)
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(f"--module {factory} does not run on {list(sample.shape)}: {message}") from error
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
    if len(input_shape) == _SERIES and len(shape) == _VARIATES and shape[:2] == tuple(sample.shape[:2]):
        return shape[1:]
    if len(input_shape) > _SERIES and len(shape) == _SERIES and shape[0] == len(sample):
        return shape[1:]
    wanted = "[2, variates, horizon]" if len(input_shape) == _SERIES else "[2, classes]"
    raise ExportError(
        f"--module {factory} gives {list(shape) or type(output).__name__} for {list(sample.shape)}, not {wanted}"
    )
