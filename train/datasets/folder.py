"""Where the data sets lie, and the check that a file is the one whose figures are published."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

VARIABLE = "KRONSERVE_DATA"


class DatasetError(ValueError):
    """A data set is unknown, missing, or not the file it should be."""


def data_folder(override: Path | None = None) -> Path:
    """The data files' folder: `override`, else the environment variable KRONSERVE_DATA. DatasetError without one."""
    value = override or os.environ.get(VARIABLE)
    if not value:
        raise DatasetError(f"no data folder: set {VARIABLE} or give --data")
    folder = Path(value)
    if not folder.is_dir():
        raise DatasetError(f"data folder {folder} is not a folder")
    return folder


def data_source(override: Path | None = None) -> Path:
    """What is read: a file that `override` names, else the data files' folder. DatasetError: neither is there."""
    if override is not None and not override.exists():
        raise DatasetError(f"--data {override}: no such file or folder")
    return override if override is not None and override.is_file() else data_folder(override)


def read_bytes(folder: Path, name: str, md5: str | None) -> tuple[bytes, str]:
    """A data file's content and its SHA-256. DatasetError if it is missing or its published md5 differs."""
    path = folder / name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{name} is not in {folder}") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise DatasetError(f"{path}: md5 is {found}, the published file's is {md5}")
    return content, hashlib.sha256(content).hexdigest()
