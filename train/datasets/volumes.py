"""MedMNIST3D volumes (Yang et al., MedMNIST v2): the official split, as stored."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from train.datasets.folder import DatasetError, read_bytes

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Source:
    """One published file and what its class indices mean."""

    file: str
    md5: str
    labels: tuple[str, ...]
    licence: str


SOURCES: dict[str, Source] = {
    "adrenalmnist3d": Source(
        file="adrenalmnist3d_64.npz",
        md5="17721accfe9fb005146a47d33bc54b2f",
        labels=("normal", "hyperplasia"),
        licence="CC BY 4.0 (MedMNIST v2, AdrenalMNIST3D)",
    ),
}


@dataclass(frozen=True)
class Volumes:
    """Volumes per split, uint8 [n, D, H, W] as stored (axes taken as RAS), and class indices, int64 [n]."""

    name: str
    images: dict[Split, NDArray[np.uint8]]
    targets: dict[Split, NDArray[np.int64]]
    labels: tuple[str, ...]
    licence: str
    sha256: str


def load_volumes(name: str, folder: Path) -> Volumes:
    """A MedMNIST3D set from its .npz. DatasetError: unknown name, missing or altered file."""
    if name not in SOURCES:
        raise DatasetError(f"unknown volumes {name!r}; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    content, sha256 = read_bytes(folder, source.file, source.md5)
    splits: tuple[Split, ...] = ("train", "val", "test")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images = {split: arrays[f"{split}_images"] for split in splits}
        targets = {split: arrays[f"{split}_labels"].reshape(-1).astype(np.int64) for split in splits}
    return Volumes(name, images, targets, source.labels, source.licence, sha256)


def shrink_masks(images: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Binarise at 0 and average whole blocks of voxels: uint8 [n, D, H, W] -> float32 [n, 1, *shape].

    The numbers are those of the manifest's `binarise` and `resize` steps. DatasetError unless `shape` divides D, H, W.
    """
    factors = [side // target for side, target in zip(images.shape[1:], shape, strict=True)]
    if any(target * factor != side for side, target, factor in zip(images.shape[1:], shape, factors, strict=True)):
        raise DatasetError(f"{tuple(shape)} does not divide {images.shape[1:]}")
    (d, h, w), (fd, fh, fw) = shape, factors
    blocks = (images > 0).reshape(-1, d, fd, h, fh, w, fw)
    counts = blocks.sum(axis=(2, 4, 6), dtype=np.int64)
    means: NDArray[np.float32] = (counts / (fd * fh * fw)).astype(np.float32)[:, None]
    return means
