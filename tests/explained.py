"""Small bundles with attention matrices as outputs on request, and inputs for them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from export.bundle import Request, export_bundle
from export.checkpoint import read_checkpoint
from models.config import ClassifierConfig, Config, ForecasterConfig
from tests.export.conftest import CONFIGS, write_checkpoint
from tests.models import networks

EXPLAINED: dict[str, Config] = {
    "forecaster": CONFIGS["forecaster-product"],
    "classifier": replace(CONFIGS["classifier-sum"], depth=2, position="learned"),
}


def write_explained(root: Path, kind: str) -> Path:
    """The folder of the bundle root/repository/KIND/1, exported with --explain from random weights."""
    torch.set_num_threads(1)
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)  # pytest's log capture would make torch trace itself
    source = read_checkpoint(write_checkpoint(root / "checkpoints" / kind, EXPLAINED[kind], seed=1))
    return export_bundle(source, Request(kind, "1", root / "repository", explain=True))[0]


def sample(kind: str, rows: int) -> np.ndarray:
    """An input of so many rows, float32."""
    config, rng = EXPLAINED[kind], np.random.default_rng(rows)
    if isinstance(config, ForecasterConfig):
        return rng.normal(size=(rows, 5, config.lookback)).astype(np.float32)
    return rng.random(size=(rows, 1, *config.volume)).astype(np.float32)


def reference(bundle: Path, kind: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """The attention matrices in float64, from the bundle's weights and the papers' equations."""
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(bundle / "weights.safetensors").items()}
    config, of_rows = EXPLAINED[kind], []
    for row in x.astype(np.float64):
        if isinstance(config, ClassifierConfig):
            tokens = networks.classifier_tokens(row[0], weights, config)
        else:
            tokens = networks.forecaster_tokens(row, weights, config)
        of_rows.append(networks.attentions(tokens, weights, config))
    return {name: np.stack([found[name] for found in of_rows]) for name in of_rows[0]}
