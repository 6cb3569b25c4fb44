"""The commands `kronserve train` and `kronserve evaluate`. torch is imported only once `train` has its arguments."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from train.datasets.folder import VARIABLE, DatasetError, data_source

_RECIPES = Path(__file__).parent / "recipes"

_MOST_THREADS = 1024

_TRAIN_EXAMPLES = f"""\
examples:
  {VARIABLE}=~/data kronserve train hot-etth1
  kronserve train hot-etth1 --data my-series.csv --out runs/my-series
  kronserve train my.toml --data ~/data --out runs/mine --seed 3
  kronserve train my.toml --data ~/data --out runs/mine --seed 3 --resume
  kronserve export runs/mine --name mine --version 1

The folder then holds config.json, weights.safetensors and training.json (what export takes, from the epoch with the
best validation score), metrics.jsonl (one line per epoch) and resume.pt.
"""

_EVALUATE_EXAMPLES = f"""\
examples:
  {VARIABLE}=~/data kronserve evaluate hot-etth1
  kronserve evaluate hot-adrenal --repository model_repository --version 1 --split val --data ~/data
"""


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kronserve train",
        description="Train the model of a TOML recipe on its data set.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shipped = ", ".join(sorted(path.stem for path in _RECIPES.glob("*.toml")))
    parser.add_argument(
        "recipe", help=f"TOML file with data set, [model], [optimisation], [augmentation]; or a shipped one: {shipped}"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME of the recipe)")
    parser.add_argument("--seed", type=_whole, help="instead of the recipe's seed")
    parser.add_argument("--epochs", type=_whole, help="instead of the recipe's epochs")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder where it stopped")
    parser.add_argument(
        "--data",
        type=Path,
        help=f"folder of the data files (default: {VARIABLE}), or a wide CSV to train a forecaster on instead of the "
        "recipe's data set: timestamps, and a column of numbers for each variate",
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one"
    )
    parser.add_argument("--threads", type=_threads, help="CPU threads (default: all cores)")
    return parser


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None


def _threads(text: str) -> int:
    if not 1 <= (count := _whole(text)) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{count} is not from 1 to {_MOST_THREADS}")
    return count


def train(argv: Sequence[str] | None = None) -> int:
    """Train the model of a recipe on its data set.

    Exit status: 0 trained, 1 the recipe, the data or the run folder is not usable, 2 wrong arguments, 130 interrupted.
    """
    arguments = _train_parser().parse_args(argv)
    try:
        import torch
    except ModuleNotFoundError:
        return _fail("training needs torch: pip install 'kronserve[train]'")
    from train.checkpoint import RESUME, WEIGHTS
    from train.loop import ResumeError
    from train.recipe import RecipeError, read_recipe
    from train.run import DeviceError, choose_device, train_recipe

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = arguments.out or Path("runs")
    try:
        recipe = read_recipe(_recipe_path(arguments.recipe))
        folder = arguments.out or folder / recipe.name
        given = {key: getattr(arguments, key) for key in ("seed", "epochs") if getattr(arguments, key) is not None}
        try:
            recipe = dataclasses.replace(recipe, optimisation=dataclasses.replace(recipe.optimisation, **given))
        except ValueError as error:
            raise RecipeError(f"--{error}") from error
        device = choose_device(arguments.device)
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"--out {folder} is not a folder")
        if (folder / RESUME).exists():
            if not arguments.resume:
                raise RecipeError(f"{folder} holds a run already: continue it with --resume, or choose another --out")
        elif (folder / WEIGHTS).exists():
            raise RecipeError(f"{folder} holds trained weights without {RESUME} to go on from; choose another --out")
        training = train_recipe(recipe, data_source(arguments.data), folder, device, arguments.resume)
    except (RecipeError, DatasetError, DeviceError, ResumeError, FloatingPointError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or folder}: {error.strerror or error}")
    except KeyboardInterrupt:
        return _fail("interrupted; continue with --resume", status=130)
    _print({"run": str(folder), "best_epoch": training["best_epoch"], "validation": training["validation"]})
    return 0


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kronserve evaluate",
        description="Measure a bundle on its data set's split, through ONNX Runtime; the metrics are JSON on stdout.",
        epilog=_EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="model in the repository")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: model_repository")
    parser.add_argument("--version", help="default: the highest")
    parser.add_argument("--every", type=int, default=1, help="of a series, take one window in this many (default: all)")
    parser.add_argument("--split", default="test", choices=("val", "test"), help="default: test")
    parser.add_argument(
        "--data",
        type=Path,
        help=f"folder of the data files (default: {VARIABLE}), or the CSV that the model was trained on",
    )
    return parser


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Measure a bundle on its data set's split through ONNX Runtime.

    Exit status: 0 measured, 1 no such bundle or data, 2 wrong arguments.
    """
    parser = _evaluate_parser()
    arguments = parser.parse_args(argv)
    if arguments.every < 1:
        parser.error("--every must be at least 1")
    try:
        from train.evaluate import BundleError, evaluate_bundle
    except ModuleNotFoundError as error:
        return _fail(f"evaluation needs {error.name}: pip install 'kronserve[train]'")

    try:
        bundle = _find_bundle(arguments.repository, arguments.name, arguments.version)
        metrics = evaluate_bundle(bundle, arguments.split, arguments.data, progress=True, every=arguments.every)
    except (BundleError, DatasetError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.strerror else str(error))
    _print({"model": arguments.name, "version": bundle.name, **metrics})
    return 0


def _recipe_path(given: str) -> Path:
    """The file of that name, else the shipped recipe of that name."""
    path, shipped = Path(given), _RECIPES / f"{given}.toml"
    return shipped if not path.is_file() and shipped.exists() else path


def _find_bundle(repository: Path, name: str, version: str | None) -> Path:
    """REPOSITORY/NAME/VERSION, the highest version when none is asked for. FileNotFoundError says what there is."""
    found = sorted(
        (path.name for path in (repository / name).glob("*") if re.fullmatch(r"[1-9][0-9]*", path.name)), key=int
    )
    if not found:
        raise FileNotFoundError(f"no model {name!r} in {repository}")
    if version is not None and version not in found:
        raise FileNotFoundError(f"{name} has no version {version}; found: {', '.join(found)}")
    return repository / name / (version or found[-1])


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _fail(message: str, status: int = 1) -> int:
    sys.stderr.write(f"kronserve: {message}\n")
    return status
