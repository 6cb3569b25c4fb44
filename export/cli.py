"""The command `kronserve export`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

from export import PACKAGES

_EXPORT_EXAMPLES = """\
examples:
  kronserve export runs/hot-etth1 --name hot-etth1 --version 2
  kronserve export my-checkpoint --name adrenal --version 3 --labels normal,hyperplasia --repository /srv/models
  kronserve export model_repository/hot-etth1/1 --name hot-etth1 --version 3     (a bundle, exported anew)
  kronserve export runs/own --name own --version 1 --evaluate test --data own.csv
  kronserve export --module my_package.nets:build --weights best.pt --input-shape N,96 --name mine --version 1
"""


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(-1 if part.strip() == "N" else int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not 2 <= len(shape) <= 4 or any(size == 0 or size < -1 for size in shape) or -1 in shape[1:]:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither N,LOOKBACK nor CHANNELS,SIDE,SIDE or CHANNELS,SIDE,SIDE,SIDE"
        )
    return shape


def _tolerance(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number from 0 on")
    return value


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kronserve export",
        description="Turn a checkpoint (config.json, weights.safetensors, training.json if trained here) or a bundle "
        "into a verified ONNX bundle REPOSITORY/NAME/VERSION. A failed check writes nothing and exits with 1.",
        epilog=_EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="folder of the checkpoint or bundle"
    )
    parser.add_argument(
        "--module", metavar="PACKAGE.MODULE:FUNCTION", help="instead of CHECKPOINT: what builds a network of your own"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors, .pt, .pth or .ckpt to read the weights from"
    )
    parser.add_argument(
        "--input-shape",
        type=_shape,
        metavar="N,..",
        help="one sample of --module's input: N,96 (any number of series of 96 steps) or 1,32,32,32 (a volume)",
    )
    parser.add_argument("--name", required=True, help="the model's name in the repository")
    parser.add_argument("--version", required=True, help="a whole number from 1 on")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--opset", type=int, default=20, help="default: %(default)s")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        help="largest error against PyTorch, relative to the output's scale; default: 1e-5, fp16 0.01, int8 0.1",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the proof there, as text")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default: %(default)s")
    parser.add_argument(
        "--max-metric-loss",
        type=_tolerance,
        default=0.5,
        metavar="PERCENT",
        help="how much worse fp16 or int8 may make the metric on the validation split; default: %(default)s",
    )
    parser.add_argument("--labels", type=_names, default=(), metavar="A,B,..", help="a classifier's labels, in order")
    parser.add_argument("--variates", type=_names, default=(), metavar="A,B,..", help="variates a forecaster learned")
    parser.add_argument("--frequency", metavar="ALIAS", help="a forecaster's sampling step: h, 10min, D")
    parser.add_argument(
        "--standardise",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="have the service bring each window to mean 0 and standard deviation 1 for a forecaster, and its forecast "
        "back, or give it values as they are sent; default: as trained or exported before, else yes",
    )
    parser.add_argument("--description", metavar="TEXT", help="what the model is")
    parser.add_argument("--data-licence", metavar="TEXT", help="licence of the training data")
    parser.add_argument("--intended-use", metavar="TEXT", help="what the model is for, and what not")
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="JSON to record as the manifest's metrics; default: those of the bundle, if its weights stay",
    )
    measured.add_argument(
        "--evaluate", choices=("train", "val", "test"), help="measure the bundle on a split of its data and record it"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="for --evaluate and --precision: folder of the data files (default: KRONSERVE_DATA), or the CSV that the "
        "model was trained on",
    )
    parser.add_argument(
        "--explain",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="add the attention matrices of every block and mode as outputs on request (attention.BLOCK.MODE); "
        "default: as in the bundle exported before",
    )
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="PEM file of an Ed25519 private key: sign the manifest"
    )
    parser.add_argument(
        "--inline",
        action="store_true",
        help="write the graph without functions, for runtimes that need one; no kernel library can take its nodes then",
    )
    parser.add_argument("--force", action="store_true", help="replace the version if it exists")
    return parser


def _read_metrics(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"kronserve export: --metrics {path}: {error}") from error
    if not isinstance(metrics, dict):
        raise SystemExit(f"kronserve export: --metrics {path}: not a JSON object")
    return metrics


def export(argv: list[str]) -> int:
    """Turn a PyTorch checkpoint into a verified ONNX bundle."""
    parser = _export_parser()
    options = parser.parse_args(argv)
    if (options.checkpoint is None) is (options.module is None):
        parser.error("give either CHECKPOINT or --module")
    if options.module is not None and options.weights is None:
        parser.error("--module needs --weights")
    if options.module is None and options.input_shape is not None:
        parser.error("--input-shape belongs to --module")
    if options.data is not None and options.evaluate is None and options.precision == "fp32":
        parser.error("--data is for --evaluate and --precision")
    if options.report is not None and (options.report.is_dir() or not options.report.parent.is_dir()):
        return fail(f"kronserve export: --report {options.report}: not a file in a folder that exists")
    metrics = _read_metrics(options.metrics)
    try:
        from export.bundle import Request, export_bundle
        from export.checkpoint import ExportError, read_checkpoint
        from export.own_module import read_own_module
        from export.reduce import Reduction
        from export.report import proof
        from export.weight_files import read_weights
    except ModuleNotFoundError as error:
        return missing("export", error)
    evaluate = reduction = None
    if options.evaluate is not None or options.precision != "fp32":
        try:
            from train.datasets.folder import DatasetError
            from train.evaluate import BundleError, evaluate_bundle
        except ModuleNotFoundError as error:
            return missing("train", error)

        def on_split(split: Any, option: str, folder: Path) -> dict[str, Any]:
            try:
                return evaluate_bundle(folder, split, options.data, progress=sys.stderr.isatty())
            except (BundleError, DatasetError) as error:
                raise ExportError(f"{option}: {error}") from error

        if options.evaluate is not None:
            evaluate = partial(on_split, options.evaluate, f"--evaluate {options.evaluate}")
        if options.precision != "fp32":
            judge = partial(on_split, "val", f"--precision {options.precision} is judged on the validation split")
            reduction = Reduction(options.precision, judge, options.max_metric_loss)

    request = Request(
        name=options.name,
        version=options.version,
        repository=options.repository,
        opset=options.opset,
        tolerance=options.tolerance,
        labels=options.labels,
        variates=options.variates,
        frequency=options.frequency,
        standardise=options.standardise,
        description=options.description,
        data_licence=options.data_licence,
        intended_use=options.intended_use,
        metrics=metrics,
        explain=options.explain,
        inline=options.inline,
        reduction=reduction,
        sign=options.sign,
        force=options.force,
    )
    try:
        if options.module is not None:
            checkpoint = read_own_module(options.module, options.weights, options.input_shape)
        else:
            given = None if options.weights is None else read_weights(options.weights)
            checkpoint = read_checkpoint(options.checkpoint, given)
        if checkpoint.training.get("finished") is False:
            sys.stderr.write(
                "kronserve export: note: this training run has not finished; exporting its best epoch yet\n"
            )
        if checkpoint.left_out:
            sys.stderr.write(
                f"kronserve export: note: {options.weights} are other weights than those of {options.checkpoint}; left "
                f"out, being of those: {', '.join(checkpoint.left_out)}\n"
            )
        folder, manifest = export_bundle(checkpoint, request, evaluate)
    except ExportError as error:
        return fail(f"kronserve export: {error}")
    except OSError as error:
        return fail(f"kronserve export: {error.filename or options.repository}: {error.strerror or error}")
    size = sum(file.size for file in manifest.files.values())
    report = proof(manifest)
    if options.report is not None:
        try:
            options.report.write_text(report + "\n", encoding="utf-8")
        except OSError as error:
            return fail(f"kronserve export: {folder} is written, its report is not: {error}")
    lines = [f"{folder}: {size / 1e6:.2f} MB, opset {manifest.provenance.opset}", report]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def fail(message: str) -> int:
    """Say what went wrong; the exit status."""
    sys.stderr.write(message + "\n")
    return 1


def missing(extra: str, error: ModuleNotFoundError) -> int:
    """Name the extra to install; the exit status."""
    if (error.name or "").split(".")[0] in PACKAGES:
        raise error  # a fault of this installation, which no extra repairs
    return fail(f"kronserve: the module {error.name} is missing; install kronserve[{extra}]")
