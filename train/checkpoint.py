"""Files of a training run, each written whole or not at all.

RUN/config.json, weights.safetensors, training.json: the checkpoint that `kronserve export` takes, rewritten whenever
the validation score improves. RUN/metrics.jsonl: one line per epoch. RUN/resume.pt: what --resume needs.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

CONFIG, WEIGHTS, TRAINING, METRICS, RESUME = (
    "config.json",
    "weights.safetensors",
    "training.json",
    "metrics.jsonl",
    "resume.pt",
)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a complete new file; a reader sees the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; NaN is an error."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    write_atomically(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values).encode())


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict as safetensors."""
    write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


def write_state(path: Path, state: dict[str, Any]) -> None:
    """The loop's whole state, tensors and plain values."""
    content = io.BytesIO()  # writing files itself, torch says of a full disk only that its writer failed
    torch.save(state, content)
    write_atomically(path, content.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote; never unpickles code."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
