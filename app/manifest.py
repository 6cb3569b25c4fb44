"""The bundle's contract: what `export` writes beside model.onnx is what `app` reads.

A bundle is a folder NAME/VERSION holding manifest.json (this file's `Manifest`), model.onnx (the graph) and
weights.safetensors (every weight once; model.onnx points into it as ONNX external data). One with outputs on request
also has explain.onnx, a graph on the same weights that gives these outputs after the ordinary ones.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
"""Tensor datatypes as the Open Inference Protocol names them."""


class Part(BaseModel):
    """Base of every part of the manifest: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(Part):
    """One input or output of the graph. A dynamic axis is -1; `axes` names every axis, the batch first.

    `on_request`: an output that only a request which names it gets; explain.onnx computes it, model.onnx does not.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    on_request: bool = False


class Reorient(Part):
    """Turn the volume's axes to the given anatomical orientation, when the file carries an affine."""

    op: Literal["reorient"] = "reorient"
    axcodes: Literal["RAS"] = "RAS"


class Resample(Part):
    """Resample to voxels of `spacing` mm, the first voxel staying where it is; `nearest` for masks."""

    op: Literal["resample"] = "resample"
    spacing: tuple[float, float, float]
    method: Literal["linear", "nearest"] = "linear"

    @model_validator(mode="after")
    def _is_a_size(self) -> Resample:
        if not all(size > 0 for size in self.spacing):
            raise ValueError("spacing must be positive")
        return self


class Clip(Part):
    """Bring voxels below `low` and above `high` to these; values, or percentiles (0 to 100) of the volume."""

    op: Literal["clip"] = "clip"
    low: float
    high: float
    of: Literal["values", "percentiles"] = "values"

    @model_validator(mode="after")
    def _is_a_range(self) -> Clip:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.of == "percentiles" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("percentiles are 0 to 100")
        return self


class Normalise(Part):
    """`minmax`: to 0..1 over the volume's own range; `standard`: to mean 0 and standard deviation 1, by its own or by
    the `mean` and `deviation` given."""

    op: Literal["normalise"] = "normalise"
    method: Literal["minmax", "standard"] = "standard"
    mean: float | None = None
    deviation: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _goes_together(self) -> Normalise:
        given = (self.mean is not None, self.deviation is not None)
        if given[0] is not given[1] or (given[0] and self.method == "minmax"):
            raise ValueError("mean and deviation go together, with the method standard")
        return self


class Binarise(Part):
    """Mask input: 1 above the threshold, else 0. `refuse`: a volume of more than two values is no mask."""

    op: Literal["binarise"] = "binarise"
    threshold: float = 0.0
    intensities: Literal["binarise", "refuse"] = "binarise"


class Crop(Part):
    """Cut every axis that is longer down to `shape`, around the centre."""

    op: Literal["crop"] = "crop"
    shape: tuple[int, int, int]


class Pad(Part):
    """Bring every axis that is shorter up to `shape` with `value`, around the centre."""

    op: Literal["pad"] = "pad"
    shape: tuple[int, int, int]
    value: float = 0.0


class Resize(Part):
    """Bring to a fixed grid: `area` averages the source voxels that each target voxel covers; `linear` and `nearest`
    sample at the centres of the target voxels."""

    op: Literal["resize"] = "resize"
    shape: tuple[int, int, int]
    method: Literal["area", "linear", "nearest"] = "area"


Step = Annotated[Reorient | Resample | Clip | Normalise | Binarise | Crop | Pad | Resize, Field(discriminator="op")]
"""One step of a volume's preprocessing, applied in the order of the manifest."""


class Intervals(Part):
    """Quantiles of forecast errors on a split that training did not see, for prediction intervals.

    An error is target minus forecast, in units of the standard deviation of the window that the forecast came from.
    `errors`: for each variate by name, and for all of them together under "", one list a step of `steps` (counted from
    1; between them errors are interpolated) with one number a probability of `probabilities` (ascending, in mirrored
    pairs around 0.5).
    """

    split: str
    windows: int = Field(gt=0)
    steps: tuple[int, ...] = Field(min_length=1)
    probabilities: tuple[float, ...] = Field(min_length=2)
    errors: dict[str, tuple[tuple[float, ...], ...]]

    @model_validator(mode="after")
    def _fits_together(self) -> Intervals:
        if "" not in self.errors:
            raise ValueError('errors must hold "", of all variates together')
        shape = (len(self.steps), len(self.probabilities))
        for name, rows in self.errors.items():
            if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
                raise ValueError(f"errors of {name!r} are not {shape[0]} steps of {shape[1]} probabilities")
        return self


class Forecasting(Part):
    """A forecaster: the last `lookback` steps of every variate in, `horizon` steps of every variate out.

    `standardise`: each variate's window is brought to mean 0, standard deviation 1 in float64 before the graph and back
    after it, so that a forecast follows the unit of its series.
    """

    kind: Literal["forecasting"] = "forecasting"
    lookback: int = Field(gt=0)
    horizon: int = Field(gt=0)
    standardise: bool = True
    variates: tuple[str, ...] = ()
    """Names of the variates it was trained on; any number of any others is accepted."""
    frequency: str | None = None
    """Sampling step of the training data as a pandas offset alias ("h", "10min")."""
    intervals: Intervals | None = None
    """Written by `kronserve calibrate`."""


class VolumeClassification(Part):
    """A classifier of single-channel volumes; one logit per label."""

    kind: Literal["volume-classification"] = "volume-classification"
    labels: tuple[str, ...] = Field(min_length=2)
    preprocessing: tuple[Step, ...] = ()
    modalities: tuple[str, ...] = ()
    """DICOM modalities (CT, MR, ..) that it takes; any if empty, and any file that names none."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it: fitted on the validation split, so that probabilities are what they say."""


class TensorClassification(Part):
    """A classifier of ready tensors (images, volumes of several channels): one logit per label.

    It answers the tensor protocol, whose classification extension names the labels; no file is read for it.
    """

    kind: Literal["tensor-classification"] = "tensor-classification"
    labels: tuple[str, ...] = Field(min_length=2)


Task = Annotated[Forecasting | VolumeClassification | TensorClassification, Field(discriminator="kind")]


class Serving(Part):
    """How to run the model, where its maker knows better than the measurement at load."""

    max_batch: int | None = Field(None, gt=0)
    """Rows per batch."""


class File(Part):
    """One file of the bundle, checked at load."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class ParityCase(Part):
    """Largest difference between ONNX Runtime and PyTorch on one kind of inputs at one shape.

    `relative` is the largest absolute error over the largest absolute value of the reference output.
    """

    shape: tuple[int, ...]
    absolute: float
    relative: float
    exact: float | None = None
    """Of the ordinary output, the same as `relative` from PyTorch in float64."""
    inputs: str = ""
    """What the inputs were: "random", "constant", "scaled by 1e6", ..."""
    output: str = ""
    """The worst output; empty for a graph with one output."""
    allowed: float | None = None
    """Allowed here in place of the tolerance, where float32 itself resolves less (see `Parity`)."""

    @property
    def error(self) -> float:
        """What is judged: the larger of `relative` and `exact`."""
        return max(self.relative, self.exact or 0.0)


class Answer(Part):
    """What PyTorch in float64 answered to one of the exporter's own inputs, so that others can compare without it."""

    inputs: str
    shape: tuple[int, ...]
    input_crc32: int
    """Of the input's bytes: whether another NumPy still draws the same numbers."""
    scale: float
    """Largest absolute value of the whole output."""
    values: tuple[float, ...]
    """At evenly spaced places of the flattened output, the first and the last among them."""


class Check(Part):
    """One thing that was checked about a bundle, and what was seen."""

    name: str
    passed: bool | None = True
    """None: skipped, so that nothing is known."""
    detail: str = ""

    @property
    def failed(self) -> bool:
        """It was made, and did not pass."""
        return self.passed is False


class Parity(Part):
    """The export's proof: every case stayed within `tolerance` (relative to the output's scale).

    An attention matrix of a series far from zero shows the rounding of the series' mean, which the forecast does not; a
    forecast of next to nothing, for a series of zeros, is itself but rounding. So for outputs on request, and for
    answers below a thousandth of those to ordinary inputs, kinds of inputs on which PyTorch in float32 is further than
    the tolerance from float64 are allowed a multiple of that distance.
    """

    tolerance: float
    cases: tuple[ParityCase, ...] = Field(min_length=1)
    rounding: dict[str, float] = {}
    """Largest relative distance from PyTorch in float64 of "pytorch" (float32) and "onnxruntime"; alike: rounding."""
    answers: tuple[Answer, ...] = ()

    @property
    def worst(self) -> ParityCase:
        """The case that is largest beside what was allowed."""
        return max(
            self.cases,
            key=lambda case: case.error if case.allowed is None else case.error / case.allowed * self.tolerance,
        )


class Provenance(Part):
    """Where the weights and the graph come from."""

    config: dict[str, Any]
    """The model's config.json: enough to build the PyTorch module again."""
    weights_sha256: str
    training: dict[str, Any] = {}
    """Recipe, seed, data hash and software versions of the training run, when it was trained here."""
    versions: dict[str, str]
    opset: int
    created: str
    """ISO 8601, UTC."""


PrecisionKind = Literal["fp32", "fp16", "int8"]


class Precision(Part):
    """In what the projections compute, and what that costs on the task's metric over the validation split.

    int8: weights with a scale for each output channel; activations with one scale for everything in a batch.
    """

    kind: PrecisionKind = "fp32"
    kept: tuple[str, ...] = ()
    """Weights of projections that stay in float32, because reducing them hurts."""
    dataset: str = ""
    split: str = ""
    full: dict[str, float] = {}
    """The metrics in float32."""
    reduced: dict[str, float] = {}
    loss_percent: float | None = None
    """Of the metric that suffered most, by how much it is worse; negative: better."""
    max_loss_percent: float | None = None
    """What was allowed."""


class Manifest(Part):
    """Everything the service and its users need to know about one version of one model."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[1-9][0-9]*$")
    description: str = ""
    task: Task
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    provenance: Provenance
    parity: Parity
    explain_parity: Parity | None = None
    """Of explain.onnx, over all of its outputs."""
    checks: tuple[Check, ...] = ()
    """What the exporter checked of each graph beside parity; a bundle is written only when all of them passed."""
    precision: Precision = Precision()
    metrics: dict[str, Any] = {}
    """Measured by `kronserve evaluate`: {"split": .., "values": {..}}."""
    serving: Serving = Serving()
    data_licence: str = ""
    intended_use: str = ""
    files: dict[str, File]

    @model_validator(mode="after")
    def _has_its_files(self) -> Manifest:
        if "model.onnx" not in self.files:
            raise ValueError("files must list model.onnx")
        return self

    @model_validator(mode="after")
    def _tells_outputs_on_request_apart(self) -> Manifest:
        on_request = [spec.on_request for spec in self.outputs]
        if on_request[0] or on_request != sorted(on_request):
            raise ValueError("outputs on request must follow the ordinary ones")
        if on_request[-1] is not ("explain.onnx" in self.files):
            raise ValueError("explain.onnx belongs to outputs on request, and they to it")
        if any(spec.on_request for spec in self.inputs):
            raise ValueError("an input cannot be on request")
        return self


def fault(error: ValidationError) -> str:
    """The first thing that is wrong with a manifest, in one line: where, and what."""
    first, *others = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return f"{where}: {first['msg']}{more}" if where else f"{first['msg']}{more}"
