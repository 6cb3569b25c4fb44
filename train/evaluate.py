"""A bundle's figures on its data set's split, through ONNX Runtime and the service's own pre- and postprocessing.

No torch. Everything between the stored sample and the answer is `app.tasks`' code, so the figures are the service's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from app.manifest import Forecasting, Manifest, VolumeClassification, fault
from app.readers.series import MAX_VARIATES, Series
from app.readers.volume import Volume
from app.tasks import classification, forecasting
from app.tasks.preprocessing import preprocess
from train.datasets.series import Series as TrainedSeries
from train.datasets.series import Split, lookback_windows
from train.datasets.trained_on import trained_series, trained_volumes
from train.datasets.volumes import Volumes
from train.metrics import ForecastErrors, binary_scores, measured_horizons

BATCH = 64

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class BundleError(Exception):
    """The folder is not a bundle that can be evaluated."""


def read_manifest(bundle: Path) -> Manifest:
    """A bundle's manifest. BundleError: none there, or not valid."""
    try:
        return Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise BundleError(
            f"{bundle} has no manifest.json" if bundle.is_dir() else f"{bundle}: no such folder"
        ) from None
    except OSError as error:
        raise BundleError(f"{error.filename}: {error.strerror}") from None
    except ValidationError as error:
        raise BundleError(f"{bundle / 'manifest.json'} is not valid: {fault(error)}") from error


def _session(bundle: Path, manifest: Manifest) -> Run:
    """The graph as a function of its one input, on the CPU provider and all cores."""
    if len(manifest.inputs) != 1:
        raise BundleError(f"{bundle}: a data set feeds one input, the graph has {len(manifest.inputs)}")
    try:
        session = ort.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base of their own
        raise BundleError(f"{bundle / 'model.onnx'} cannot be loaded: {error}") from error
    name, output = manifest.inputs[0].name, manifest.outputs[0].name
    most = manifest.serving.max_batch or BATCH

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        # In an int8 graph rows of a batch have a part in each other's rounding: as many as the service takes.
        parts = [session.run([output], {name: batch[at : at + most]})[0] for at in range(0, len(batch), most)]
        return np.concatenate(parts)

    return run


def _steps(count: int, label: str, progress: bool, batch: int = BATCH) -> Iterable[range]:
    ranges = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    return tqdm(ranges, desc=label, unit="batch", file=sys.stderr, disable=not progress)


def _forecasts(run: Run, task: Forecasting, windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Windows [b, variates, lookback] -> forecasts [b, variates, horizon], as the service answers them."""
    # The service scales every series by itself, so it prepares a batch of windows as one window of more variates.
    flat = windows.reshape(-1, task.lookback)
    names = tuple(str(number) for number in range(len(flat)))
    prepared = forecasting.prepare(Series(flat, names), task)
    (tensor,) = prepared.tensors.values()
    answer = run(tensor.reshape(windows.shape))
    return forecasting.finish(prepared, {"forecast": answer.reshape(1, len(flat), -1)}).values.reshape(answer.shape)


def _evaluate_series(
    run: Run, task: Forecasting, loaded: TrainedSeries, split: Split, every: int, progress: bool
) -> dict[str, Any]:
    rows = loaded.with_windows(split, task.lookback, task.horizon)
    errors = ForecastErrors(rows, task.lookback, measured_horizons(task.horizon))
    windows = lookback_windows(rows, task.lookback)
    chosen = range(0, max(errors.windows.values()), every)
    # A batch is prepared as one series, which may not be wider than a request's.
    batch = max(1, min(BATCH, MAX_VARIATES // rows.shape[1]))
    for steps in _steps(len(chosen), loaded.name, progress, batch):
        numbers = chosen[steps.start : steps.stop]
        errors.add(numbers, _forecasts(run, task, windows[numbers.start : numbers.stop : every]))
    return errors.result()


def _evaluate_volumes(
    run: Run, task: VolumeClassification, volumes: Volumes, split: Split, progress: bool
) -> dict[str, Any]:
    images, targets = volumes.images[split], volumes.targets[split]
    probabilities = np.empty((len(images), len(task.labels)))
    for numbers in _steps(len(images), volumes.name, progress):
        inputs = [preprocess(Volume(images[i], "npy"), task)[0] for i in numbers]
        logits = run(np.stack(inputs))
        probabilities[numbers.start : numbers.stop] = classification.probabilities(logits, task.temperature)
    return binary_scores(targets, probabilities)


def evaluate_bundle(
    bundle: Path, split: Split = "test", data: Path | None = None, progress: bool = False, every: int = 1
) -> dict[str, Any]:
    """Metrics of NAME/VERSION on a split of the data set its manifest names: {"dataset", "split", "values"}.

    every: of a series, take the first window in this many. data: folder of the data files, or the CSV the model was
    trained on; None takes KRONSERVE_DATA. BundleError: not a bundle, or it names no data set. DatasetError: the data
    set is not known, not there, or not what the model was trained on.
    """
    manifest = read_manifest(bundle)
    name = manifest.provenance.training.get("dataset")
    if not isinstance(name, str):
        raise BundleError(f"{bundle}: the manifest's provenance.training names no dataset to evaluate on")
    run, task = _session(bundle, manifest), manifest.task
    if isinstance(task, Forecasting):
        values = _evaluate_series(run, task, trained_series(manifest, data), split, every, progress)
    elif not isinstance(task, VolumeClassification):
        raise BundleError(f"{bundle}: no data set here feeds a model for {task.kind}")
    else:
        values = _evaluate_volumes(run, task, trained_volumes(manifest, data), split, progress)
    return {"dataset": name, "split": split, "values": values}
