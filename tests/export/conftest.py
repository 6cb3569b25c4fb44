"""Small random checkpoints of every kind, exported once for the whole run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from app.manifest import Manifest
from export.bundle import Request, export_bundle
from export.checkpoint import load_module, read_checkpoint
from models.config import ClassifierConfig, Config, ForecasterConfig, build, to_dict

CONFIGS: dict[str, Config] = {
    "forecaster-product": ForecasterConfig(
        lookback=24, horizon=16, patch=4, dim=16, depth=2, heads=2, hidden=24, readout="mean"
    ),
    "forecaster-sum": ForecasterConfig(
        lookback=24, horizon=16, dim=16, depth=1, heads=4, hidden=24, attention="hot-sum", readout="flatten"
    ),
    "classifier-product": ClassifierConfig(
        volume=(8, 12, 16), classes=3, dim=16, depth=2, heads=2, hidden=24, position="learned"
    ),
    "classifier-sum": ClassifierConfig(
        volume=(8, 8, 8), dim=16, depth=1, heads=2, hidden=24, attention="hot-sum", rotary=(0, 1, 2), position="none"
    ),
}


@dataclass(frozen=True)
class Exported:
    """A bundle beside the module it was made from."""

    folder: Path
    manifest: Manifest
    config: Config
    module: nn.Module

    @property
    def graph(self) -> Path:
        return self.folder / "model.onnx"


@pytest.fixture(scope="session", autouse=True)
def one_quiet_thread() -> Iterator[None]:
    # pytest's log capture makes torch write structured traces, which take a quarter of an export's time.
    threads, tracing = torch.get_num_threads(), logging.getLogger("torch.__trace")
    level = tracing.level
    torch.set_num_threads(1)
    tracing.setLevel(logging.WARNING)
    yield
    tracing.setLevel(level)
    torch.set_num_threads(threads)


def write_checkpoint(folder: Path, config: Config, seed: int = 0) -> Path:
    """A randomly initialised checkpoint whose norms and biases are not the neutral ones of a fresh module."""
    torch.manual_seed(seed)
    module = build(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    save_file(module.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the checkpoint of a kind into this test's folder."""
    return lambda kind: write_checkpoint(tmp_path / "checkpoint" / kind, CONFIGS[kind])


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The exported bundle of a kind, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("export"), dict[str, Exported]()

    def get(kind: str) -> Exported:
        if kind not in made:
            source = read_checkpoint(write_checkpoint(root / "checkpoints" / kind, CONFIGS[kind]))
            folder, manifest = export_bundle(source, Request(kind, "1", root / "repository"))
            made[kind] = Exported(folder, manifest, CONFIGS[kind], load_module(source))
        return made[kind]

    return get


@pytest.fixture(scope="session", params=list(CONFIGS))
def exported(request: pytest.FixtureRequest, exports: Callable[[str], Exported]) -> Exported:
    """Each bundle in turn."""
    return exports(request.param)
