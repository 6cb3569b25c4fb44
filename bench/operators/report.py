"""What the measurements say: tables, fitted growth, the papers' claims, a log-log plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from bench.operators.catalogue import CATALOGUE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parents[1] / "results" / "operators.json"
BASE = "full, naive"
QUANTITIES = (("madd", "multiply-adds"), ("bytes", "peak memory, bytes"), ("seconds", "time, s"))

Rows = list[dict[str, Any]]


def _of(rows: Rows, name: str, order: int) -> Rows:
    return [row for row in rows if row["operator"] == name and row["order"] == order]


def slope(rows: Rows, name: str, order: int, kind: str, quantity: str) -> float:
    """Exponent a of the fitted quantity ~ N^a over an order's maps, by least squares of the logarithms."""
    points = [(row["tokens"], row[kind][quantity]) for row in _of(rows, name, order) if quantity in row[kind]]
    tokens, values = np.log(np.array(points, dtype=np.float64)).T
    return float(np.polyfit(tokens, values, 1)[0])


def _number(value: float) -> str:
    """Three digits with a unit prefix."""
    if not value:
        return "0"
    power = min(4, max(-2, math.floor(math.log10(abs(value)) / 3)))
    return f"{value / 1000**power:.3g} {('u', 'm', '', 'k', 'M', 'G', 'T')[power + 2]}".rstrip()


def _cost(row: dict[str, Any], kind: str) -> str:
    cells = [_number(row[kind]["madd"])]
    for quantity, unit in (("bytes", "B"), ("seconds", "s")):
        cells.append(_number(row[kind][quantity]) + unit if quantity in row[kind] else "does not fit")
    return " | ".join(cells)


def table(rows: Rows, order: int, kind: str) -> str:
    """Markdown: one line an operator and map of an order."""
    lines = [
        "| Map | Operator | Parameters | Multiply-adds | Peak memory | Time |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in (row for row in rows if row["order"] == order):
        size = "x".join([str(row["side"])] * order)
        parameters = f"{row['parameters']:,}" if kind == "module" else "0"
        lines.append(f"| {size} | {row['operator']} | {parameters} | {_cost(row, kind)} |")
    return "\n".join(lines)


def growth(rows: Rows) -> str:
    """Markdown: fitted exponents of every operator."""
    lines = [
        "| Operator | " + " | ".join(f"{order}-D {label}" for order in (2, 3) for _, label in QUANTITIES) + " |",
        "| --- |" + " ---: |" * 6,
    ]
    for name in CATALOGUE:
        exponents = [f"{slope(rows, name, order, 'bare', key):.2f}" for order in (2, 3) for key, _ in QUANTITIES]
        lines.append(f"| {name} | {' | '.join(exponents)} |")
    return "\n".join(lines)


def savings(rows: Rows) -> str:
    """Markdown: how many times less than full naive attention, and than fused for time, at the largest map it fits."""
    lines = [
        "| Operator | Map | Multiply-adds | Peak memory | Time | Time against fused |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for order in (2, 3):
        base = max((row for row in _of(rows, BASE, order) if row["fits"]), key=lambda row: row["tokens"])
        fused = next(row for row in _of(rows, "full, fused", order) if row["tokens"] == base["tokens"])
        for name in CATALOGUE:
            row = next(row for row in _of(rows, name, order) if row["tokens"] == base["tokens"])
            ratios = [base["bare"][key] / row["bare"][key] for key, _ in QUANTITIES]
            ratios.append(fused["bare"]["seconds"] / row["bare"]["seconds"])
            size = "x".join([str(row["side"])] * order)
            lines.append(f"| {name} | {size} | " + " | ".join(f"{ratio:.3g}" for ratio in ratios) + " |")
    return "\n".join(lines)


def _ratio(rows: Rows, order: int, side: int, name: str, base: str, quantity: str, kind: str = "bare") -> float:
    found = {row["operator"]: row for row in rows if row["order"] == order and row["side"] == side}
    return float(found[base][kind][quantity] / found[name][kind][quantity])


def claims(rows: Rows) -> str:
    """Markdown: what the papers predict beside what was measured."""
    lines = ["| Claim | Predicted | Measured |", "| --- | ---: | ---: |"]
    for order, side in ((2, 56), (3, 16)):
        size, tokens, means = "x".join([str(side)] * order), side**order, order * side
        for name, power in (("KAO_KV", 1), ("HOT product", 1), ("KAO_QKV", 2)):
            predicted = (tokens / means) ** power
            measured = _ratio(rows, order, side, name, BASE, "madd")
            lines.append(f"| {name}: fewer multiply-adds at {size} | {predicted:.0f} x | {measured:.1f} x |")
    for kind, label in (("bare", "bare"), ("module", "with projections")):
        faster = _ratio(rows, 3, 16, "HOT product", "full, fused", "seconds", kind)
        lines.append(f"| HOT product: faster than fused at 16x16x16, {label} | 20 x | {faster:.1f} x |")
    for name in ("KAO_QKV", "HOT kernelised"):
        for order in (2, 3):
            exponent = slope(rows, name, order, "bare", "seconds")
            lines.append(f"| {name}: exponent of time, {order}-D | at most 1.1 | {exponent:.2f} |")
    return "\n".join(lines)


def draw(rows: Rows, file: Path) -> None:
    """Log-log, one panel a quantity and order; the legend has the exponents."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 9))
    for line, order in zip(axes, (2, 3), strict=True):
        for panel, (quantity, label) in zip(line, QUANTITIES, strict=True):
            for name in CATALOGUE:
                points = [
                    (row["tokens"], row["bare"][quantity]) for row in _of(rows, name, order) if quantity in row["bare"]
                ]
                if len(points) > 1:
                    exponent = slope(rows, name, order, "bare", quantity)
                    panel.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=f"{name}: {exponent:.2f}")
            panel.set_title(f"{order}-D, {label}", fontsize=10)
            panel.set_xlabel("tokens")
            panel.grid(alpha=0.25)
            if not panel.lines:
                continue
            panel.legend(fontsize=7, title="exponent", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
