"""`kronserve calibrate`: what a bundle's validation split says of its errors, written into its manifest.

A forecaster gets quantiles of its errors, from which the service makes prediction intervals. A classifier of volumes
gets the temperature that makes its probabilities most likely (Guo et al. 2017).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from app.integrity import MANIFEST, SIGNATURE, SUM, sum_line
from app.manifest import Forecasting, Intervals, Manifest, TensorClassification, VolumeClassification, fault
from app.readers.volume import Volume
from app.tasks import classification
from app.tasks.forecasting import as_taken
from app.tasks.preprocessing import preprocess
from train.datasets.folder import VARIABLE, DatasetError
from train.datasets.series import Series, Split, lookback_windows, window_count
from train.datasets.trained_on import trained_series, trained_volumes
from train.datasets.volumes import Volumes
from train.evaluate import BATCH, BundleError, Run, _session, read_manifest

PROBABILITIES = (0.005, 0.025, 0.05, 0.1, 0.2, 0.35, 0.65, 0.8, 0.9, 0.95, 0.975, 0.995)
STEPS = 16
"""Steps whose errors are stored, denser where they change faster; between them the service interpolates."""


def interval_errors(run: Run, task: Forecasting, series: Series, split: Split) -> Intervals:
    """Quantiles of a forecaster's errors over every window of a split.

    A variate that never moves in it has none of its own and gets those of all variates together. DatasetError: the
    split holds no window, or none that moves.
    """
    rows = series.with_windows(split, task.lookback, task.horizon)
    steps = np.unique(np.geomspace(1, task.horizon, STEPS).round().astype(int))
    count = window_count(len(rows), task.lookback, task.horizon)
    windows = lookback_windows(rows, task.lookback)[:count]
    errors = np.empty((count, rows.shape[1], len(steps)))
    for start in range(0, count, BATCH):
        part = windows[start : start + BATCH]
        scaled, mean, scale = as_taken(part.reshape(-1, task.lookback), task)
        answer = run(scaled.reshape(part.shape))[:, :, steps - 1]
        at = np.arange(start, start + len(part))[:, np.newaxis] + task.lookback + steps - 1
        shape = (*part.shape[:2], 1)
        error = (rows[at].transpose(0, 2, 1) - mean.reshape(shape)) / scale.reshape(shape) - answer
        # A window that never changes has no deviation to count in, where that is what errors are counted in.
        moves = scaled.reshape(part.shape).any(axis=2, keepdims=True) | (not task.standardise)
        errors[start : start + len(part)] = np.where(moves, error, np.nan)
    moved = [bool(np.isfinite(errors[:, at]).any()) for at in range(len(series.variates))]
    if not any(moved):
        raise DatasetError(f"{series.name}: no variate moves in split {split}, so it says nothing of errors")
    named = {variate: errors[:, at : at + 1] if moved[at] else errors for at, variate in enumerate(series.variates)}
    return Intervals(
        split=split,
        windows=count,
        steps=tuple(int(step) for step in steps),
        probabilities=PROBABILITIES,
        errors={variate: _quantiles(own) for variate, own in {**named, "": errors}.items()},
    )


def _quantiles(errors: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """(windows, variates, steps) -> one row a step, to four digits."""
    found = np.nanquantile(errors, PROBABILITIES, axis=(0, 1)).T
    return tuple(tuple(float(f"{number:.4g}") for number in row) for row in found)


def temperature(run: Run, task: VolumeClassification, volumes: Volumes, split: Split) -> float:
    """The temperature under which a split's labels are most likely."""
    from scipy.optimize import minimize_scalar

    images, targets = volumes.images[split], volumes.targets[split]
    parts = [
        run(np.stack([preprocess(Volume(image, "npy"), task)[0] for image in images[start : start + BATCH]]))
        for start in range(0, len(images), BATCH)
    ]
    logits = np.concatenate(parts)

    def unlikelihood(log_temperature: float) -> float:
        found = classification.probabilities(logits, float(np.exp(log_temperature)))
        return float(-np.log(found[np.arange(len(targets)), targets] + 1e-300).mean())

    return float(f"{np.exp(minimize_scalar(unlikelihood, bounds=(-3, 3), method='bounded').x):.4g}")


def calibrate_bundle(bundle: Path, split: Split = "val", data: Path | None = None) -> Manifest:
    """Measure a bundle on a split and write the result into its manifest.

    Args:
        data: folder of the data files, or the CSV that the model was trained on; None takes KRONSERVE_DATA.

    Raises:
        BundleError: not a bundle, signed, or of a task that has nothing to calibrate. DatasetError: its data is not
            there, or not what it was trained on. OSError: its manifest cannot be written.
    """
    manifest = read_manifest(bundle)
    task = manifest.task
    if not isinstance(manifest.provenance.training.get("dataset"), str):
        raise BundleError(f"{bundle}: the manifest's provenance.training names no dataset to calibrate on")
    if isinstance(task, TensorClassification):
        raise BundleError(f"{bundle}: a classifier of tensors has nothing to calibrate")
    if (bundle / SIGNATURE).exists():
        raise BundleError(
            f"{bundle} is signed, and its signature would no longer hold; calibrate it before it is signed"
        )
    run = _session(bundle, manifest)
    if isinstance(task, Forecasting):
        update: dict[str, object] = {"intervals": interval_errors(run, task, trained_series(manifest, data), split)}
    else:
        update = {"temperature": temperature(run, task, trained_volumes(manifest, data), split)}
    calibrated = manifest.model_copy(update={"task": task.model_copy(update=update)})
    content = (calibrated.model_dump_json(indent=2) + "\n").encode()
    try:
        Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{bundle}: what was measured cannot be written: {fault(error)}") from error
    _replace(bundle, {MANIFEST: content, SUM: sum_line(content).encode()})
    return calibrated


def _replace(bundle: Path, files: dict[str, bytes]) -> None:
    """All of the files or, where one cannot be written, none of them."""
    partial = {bundle / name: bundle / f".{name}" for name in files}
    try:
        for path, temporary in partial.items():
            temporary.write_bytes(files[path.name])
        for path, temporary in partial.items():
            temporary.replace(path)
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)


def calibrate(argv: Sequence[str] | None = None) -> int:
    """Write a bundle's prediction intervals, or its temperature, into its manifest.

    Exit status: 0 written, 1 no such bundle or data, 2 wrong arguments.
    """
    parser = argparse.ArgumentParser(
        prog="kronserve calibrate",
        description="Measure a bundle's errors on its validation split and write prediction intervals (a forecaster) "
        "or the temperature (a classifier) into its manifest.",
        epilog=f"examples:\n  {VARIABLE}=~/data kronserve calibrate model_repository/hot-etth1/1\n"
        "  kronserve calibrate model_repository/own/1 --data own.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder NAME/VERSION with manifest.json")
    parser.add_argument("--split", default="val", choices=("val", "test"), help="default: val")
    parser.add_argument(
        "--data",
        type=Path,
        help=f"folder of the data files (default: {VARIABLE}), or the CSV that the model was trained on",
    )
    arguments = parser.parse_args(argv)
    try:
        task = calibrate_bundle(arguments.bundle, arguments.split, arguments.data).task
    except (BundleError, DatasetError) as error:
        sys.stderr.write(f"kronserve: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"kronserve: {error.filename or arguments.bundle}: {error.strerror or error}\n")
        return 1
    if isinstance(task, Forecasting):
        assert task.intervals is not None
        written: object = {"intervals": {"split": task.intervals.split, "windows": task.intervals.windows}}
    else:
        assert isinstance(task, VolumeClassification)
        written = {"temperature": task.temperature}
    sys.stdout.write(json.dumps(written, indent=2) + "\n")
    return 0
