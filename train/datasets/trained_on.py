"""The data that a bundle was trained on, and no other: recognised by its SHA-256 and its splits."""

from __future__ import annotations

import hashlib
from pathlib import Path

from app.manifest import Manifest
from train.datasets.csv_file import load_csv
from train.datasets.folder import DatasetError, data_source
from train.datasets.series import SOURCES, Series, load_series
from train.datasets.volumes import Volumes, load_volumes


def trained_series(manifest: Manifest, data: Path | None = None) -> Series:
    """A forecaster's series. data: the data sets' folder (None: KRONSERVE_DATA), or the CSV that it was trained on.

    DatasetError: not there, other bytes than it was trained on, or the same split into other rows.
    """
    training = manifest.provenance.training
    name, recorded = str(training["dataset"]), training.get("data_sha256")
    if name not in SOURCES and recorded is not None and (data is None or data.is_dir()):
        raise DatasetError(f"{manifest.name} was trained on a CSV, {name}; give it with --data FILE")
    source = data_source(data)
    if source.is_file():
        loaded = load_csv(source)
        _check(str(source), loaded.sha256, manifest)
        # A training that recorded no splits had the data set's own, if these are the data set's bytes.
        splits = None if is_published(name, source) else loaded.splits
    else:
        loaded = load_series(name, source)
        if recorded is not None:
            _check(f"{SOURCES[name].file} in {source}", loaded.sha256, manifest)
        splits = loaded.splits
    if training.get("splits", splits) != loaded.splits:
        other = "the data sets' folder" if source.is_file() else "the CSV itself"
        raise DatasetError(f"{manifest.name} was trained on other rows of {source}; give {other} with --data")
    return loaded


def trained_volumes(manifest: Manifest, data: Path | None = None) -> Volumes:
    """A classifier's volumes from the data sets' folder (None: KRONSERVE_DATA). DatasetError: as of a series."""
    source = data_source(data)
    if source.is_file():
        raise DatasetError(f"{source} is a file; for a classifier of volumes give the data sets' folder")
    loaded = load_volumes(str(manifest.provenance.training["dataset"]), source)
    if "data_sha256" in manifest.provenance.training:
        _check(f"{loaded.name} in {source}", loaded.sha256, manifest)
    return loaded


def _check(what: str, sha256: str, manifest: Manifest) -> None:
    if sha256 != manifest.provenance.training.get("data_sha256"):
        raise DatasetError(f"{what} is not the file that {manifest.name} was trained on: its SHA-256 is another")


def is_published(name: str, file: Path) -> bool:
    """Whether a file is the data set of this name, byte for byte."""
    return name in SOURCES and hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == SOURCES[name].md5
