"""Train a recipe with several seeds, or with another [model], and say how far its scores spread.

    KRONSERVE_DATA=... python -m bench.seeds hot-adrenal
    KRONSERVE_DATA=... python -m bench.seeds hot-adrenal --set attention=none --set hidden=256

Every seed is trained as `kronserve train` does, exported with the whole proof, and its bundle evaluated on validation
and test. Finished seeds are not trained again. What was found is kept in bench/results/seeds.json, from which
`make reproduce` makes the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch

from export.bundle import Request, export_bundle
from export.checkpoint import read_checkpoint
from models.config import from_dict, to_dict
from train.datasets.folder import data_source
from train.evaluate import evaluate_bundle
from train.recipe import Recipe, read_recipe
from train.run import choose_device, train_recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "seeds.json"
RUNS = ROOT / "bench" / ".work" / "seeds"
RECIPES = ROOT / "train" / "recipes"


def changed(recipe: Recipe, changes: dict[str, Any], seed: int) -> Recipe:
    """The recipe with other values in [model] and another seed. ValueError names a key or value that is none."""
    return dataclasses.replace(
        recipe,
        model=from_dict({**to_dict(recipe.model), **changes}),
        optimisation=dataclasses.replace(recipe.optimisation, seed=seed),
    )


def _value(text: str) -> Any:
    """A TOML value; what is none is a string: attention=none, hidden=256, rotary=[1]."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def one(recipe: Recipe, folder: Path, data: Path | None) -> dict[str, Any]:
    """Train, export and evaluate; parameters, epochs and the metrics of both splits."""
    training = train_recipe(recipe, data_source(data), folder / "run", choose_device(), resume=True)
    bundle = folder / "repository" / recipe.name / "1"
    if not bundle.exists():
        export_bundle(read_checkpoint(folder / "run"), Request(recipe.name, "1", folder / "repository"))
    found: dict[str, Any] = {key: training[key] for key in ("seed", "parameters", "best_epoch", "epochs_run")}
    splits = {split: evaluate_bundle(bundle, split, data)["values"] for split in ("val", "test")}
    return found | {split: values.get("average", values) for split, values in splits.items()}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: for each recipe and change mean and standard deviation over the seeds, of both splits."""
    lines = ["| Recipe | Parameters | Seeds | Score | Validation | Test |", "| --- | ---: | --- | --- | ---: | ---: |"]
    for name, rows in results.items():
        scores = [key for key in ("mse", "mae", "auc", "acc") if key in rows[0]["test"]]
        for first, score in enumerate(scores):
            head = [name, f"{rows[0]['parameters']:,}", ", ".join(str(row["seed"]) for row in rows)]
            cells = [_spread([row[split][score] for row in rows]) for split in ("val", "test")]
            lines.append(f"| {' | '.join([*(head if not first else ['', '', '']), score.upper(), *cells])} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} +- {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def main() -> None:
    """Add one recipe's seeds to the results and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.seeds", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", choices=sorted(path.stem for path in RECIPES.glob("*.toml")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of [model]")
    parser.add_argument("--data", type=Path, help="folder of the data files (default: KRONSERVE_DATA)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    changes = {key: _value(value) for key, _, value in (change.partition("=") for change in arguments.changes)}
    name = ", ".join([arguments.recipe, *arguments.changes])
    base = read_recipe(RECIPES / f"{arguments.recipe}.toml")
    rows = [
        one(changed(base, changes, seed), RUNS / name.replace(", ", "-") / str(seed), arguments.data)
        for seed in arguments.seeds
    ]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = rows
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
