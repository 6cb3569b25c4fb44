"""Print the tables of docs/results.md: every shipped bundle on its test split beside published rows, operators' cost.

Bundles are evaluated anew, which needs the data sets (KRONSERVE_DATA or --data); costs are read from
bench/results/operators.json, which `python -m bench.operators` measures, and the spread over seeds from
bench/results/seeds.json, which `python -m bench.seeds` trains. --write puts the tables into docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from app.manifest import Manifest
from bench import seeds
from bench.operators import report
from bench.published import FORECASTING, VOLUMES
from train.evaluate import evaluate_bundle
from train.metrics import HORIZONS

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "results.md"
REPOSITORY = ROOT / "model_repository"

Evaluated = dict[str, dict[str, Any]]


def shipped(repository: Path = REPOSITORY) -> dict[str, Path]:
    """The highest version of every bundle that names a data set."""
    found: dict[str, Path] = {}
    for model in sorted(repository.iterdir()):
        versions = sorted((path for path in model.glob("[0-9]*") if path.is_dir()), key=lambda path: int(path.name))
        if versions and "dataset" in _training(versions[-1]):
            found[model.name] = versions[-1]
    return found


def _training(bundle: Path) -> dict[str, Any]:
    return Manifest.model_validate_json((bundle / "manifest.json").read_bytes()).provenance.training


def _row(name: str, errors: list[tuple[float, float]], digits: int) -> str:
    errors = [*errors, (sum(e[0] for e in errors) / len(errors), sum(e[1] for e in errors) / len(errors))]
    cells = [f"{mse:.{digits}f} / {mae:.{digits}f}" for mse, mae in errors]
    return f"| {name} | {' | '.join(cells)} |"


def forecasting_table(dataset: str, evaluated: Evaluated) -> str:
    """Markdown: MSE / MAE at the benchmark's horizons and on average, ours to four digits."""
    heads = [*map(str, HORIZONS), "average"]
    lines = [f"| {dataset} | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for name, metrics in evaluated.items():
        values = metrics["values"]
        if metrics["dataset"] == dataset:
            errors = [(values[str(h)]["mse"], values[str(h)]["mae"]) for h in HORIZONS]
            lines.append(_row(f"**{name}**", errors, 4))
    lines += [_row(name, list(errors), 3) for name, errors in FORECASTING[dataset].items()]
    return "\n".join(lines)


def volumes_table(dataset: str, evaluated: Evaluated) -> str:
    """Markdown: AUC and accuracy."""
    lines = [f"| {dataset} | AUC | Accuracy |", "| --- | ---: | ---: |"]
    for name, metrics in evaluated.items():
        if metrics["dataset"] == dataset:
            lines.append(f"| **{name}** | {metrics['values']['auc']:.4f} | {metrics['values']['acc']:.4f} |")
    lines += [f"| {name} | {auc:.3f} | {acc:.3f} |" for name, (auc, acc) in VOLUMES[dataset].items()]
    return "\n".join(lines)


def tables(evaluated: Evaluated) -> dict[str, str]:
    """Every table of the document by the name of its place there."""
    rows = json.loads(report.RESULTS.read_text())["rows"]
    used = {metrics["dataset"] for metrics in evaluated.values()}
    made = {name: forecasting_table(name, evaluated) for name in FORECASTING if name in used}
    made |= {name: volumes_table(name, evaluated) for name in VOLUMES if name in used}
    if seeds.RESULTS.exists():
        made["seeds"] = seeds.table(json.loads(seeds.RESULTS.read_text()))
    made |= {"claims": report.claims(rows), "savings": report.savings(rows), "growth": report.growth(rows)}
    for order in (2, 3):
        made[f"operators-{order}d"] = report.table(rows, order, "bare")
        made[f"modules-{order}d"] = report.table(rows, order, "module")
    return made


def replaced(document: str, made: dict[str, str]) -> str:
    """The document with what stands between <!-- NAME --> and <!-- / --> put anew."""
    for name, table in made.items():
        before, mark, rest = document.partition(f"<!-- {name} -->\n")
        if mark:
            document = before + mark + table + "\n" + rest[rest.index("<!-- / -->") :]
    return document


def evaluate_all(data: Path | None) -> Evaluated:
    """Every shipped bundle on its test split."""
    return {name: evaluate_bundle(bundle, "test", data, progress=True) for name, bundle in shipped().items()}


def main() -> None:
    """Print the tables, and with --write put them into the document."""
    parser = argparse.ArgumentParser(prog="python -m bench.reproduce", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data files (default: KRONSERVE_DATA)")
    parser.add_argument("--write", action="store_true", help="into docs/results.md too")
    arguments = parser.parse_args()
    made = tables(evaluate_all(arguments.data))
    for name, table in made.items():
        sys.stdout.write(f"{name}\n\n{table}\n\n")
    if arguments.write:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
