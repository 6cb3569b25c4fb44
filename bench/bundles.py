"""The two models of the benchmark: bundles with fixed-seed random weights, made by the project's own exporter.

How long a network takes does not depend on what it has learned, so nothing is trained here. The sizes are the HOT
paper's (arXiv 2412.02919): width 128, 4 blocks, 8 heads, feed-forward 512.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORK = Path(__file__).parent / ".work"
"""Everything the benchmark makes and may be deleted: bundles, virtual environments, caches, request bodies, logs."""

REPOSITORY = WORK / "repository"
SEED = 20240717


@dataclass(frozen=True)
class Benchmarked:
    """One model and the shape of the one request that all servers get. `options`: for `kronserve export`."""

    name: str
    config: dict[str, object]
    shape: tuple[int, ...]
    options: tuple[str, ...]

    @property
    def graph(self) -> Path:
        """The ONNX file that every server runs."""
        return REPOSITORY / self.name / "1" / "model.onnx"

    def tensor(self) -> np.ndarray:
        """The request's tensor: standard normal float32, always the same."""
        return np.random.default_rng(SEED).standard_normal(self.shape).astype(np.float32)


FORECASTER = Benchmarked(
    "forecaster",
    {"kind": "forecaster"},  # the paper's values are the defaults: lookback 96, horizon 720
    (1, 7, 96),
    ("--variates", "a,b,c,d,e,f,g"),  # so that the server measures its plan at seven variates
)
CLASSIFIER = Benchmarked(
    "classifier",
    {
        "kind": "volume-classifier",
        "volume": [28, 28, 28],
        "patch": 4,
        "dim": 128,
        "depth": 4,
        "heads": 8,
        "hidden": 512,
    },
    (1, 1, 28, 28, 28),
    ("--labels", "normal,hyperplasia"),
)
MODELS = {model.name: model for model in (FORECASTER, CLASSIFIER)}


def ensure_bundles() -> None:
    """Export what is missing. Raises CalledProcessError when the export fails."""
    for model in MODELS.values():
        if not (model.graph.parent / "manifest.json").is_file():
            _export(model)


def _export(model: Benchmarked) -> None:
    import torch  # here: the measuring processes do not need it
    from safetensors.torch import save_file

    from models.config import build, from_dict, to_dict

    checkpoint = WORK / "checkpoints" / model.name
    checkpoint.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    config = from_dict(dict(model.config))
    save_file(build(config).state_dict(), checkpoint / "weights.safetensors")
    (checkpoint / "config.json").write_text(json.dumps(to_dict(config)))
    command = [str(Path(sys.executable).with_name("kronserve")), "export", str(checkpoint), "--name", model.name]
    command += ["--version", "1", "--repository", str(REPOSITORY), "--force", *model.options]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    ensure_bundles()
