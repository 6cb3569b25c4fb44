"""Measure every operator on every map and write bench/results/operators.json and .png.

Run on a machine that does nothing else: times are of one thread, but its memory bandwidth is shared.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import psutil
import torch

from bench.operators.catalogue import CATALOGUE, HEADS, MAPS, WIDTH, matrix_bytes
from bench.operators.measure import multiply_adds, peak_bytes, seconds
from bench.operators.report import RESULTS, draw

LIMIT = 3 << 30
"""Bytes of one attention matrix that are tried at most, and of free memory a third at most."""


def measure(name: str, order: int, side: int) -> dict[str, Any]:
    """One operator on one map; without memory and times where its matrix does not fit."""
    entry = CATALOGUE[name]
    torch.manual_seed(0)
    module = entry.module(order).eval()
    shape = (1, *[side] * order, WIDTH)
    fits = matrix_bytes(name, order, side) <= min(LIMIT, psutil.virtual_memory().available // 3)
    row: dict[str, Any] = {"operator": name, "order": order, "side": side, "tokens": side**order, "fits": fits}
    row["parameters"] = sum(parameter.numel() for parameter in module.parameters())
    x = torch.randn(shape) if fits else torch.empty(shape, device="meta")
    if not fits:
        module = module.to("meta")
    for label, call in (("bare", entry.bare), ("module", module)):
        row[label] = {"madd": multiply_adds(call, x)}
        if fits:
            row[label] |= {"bytes": peak_bytes(call, x), "seconds": seconds(call, x)}
    return row


def main() -> None:
    """Measure the orders asked for and keep the others' results."""
    parser = argparse.ArgumentParser(prog="python -m bench.operators", description=__doc__)
    parser.add_argument("--orders", type=int, nargs="*", default=list(MAPS), choices=list(MAPS))
    orders = parser.parse_args().orders
    torch.set_num_threads(1)
    rows = []
    for order in orders:
        for side in MAPS[order]:
            for name in CATALOGUE:
                rows.append(measure(name, order, side))
                sys.stderr.write(f"{order}-D {side:>4} {name:<16}{json.dumps(rows[-1]['bare'])}\n")
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = sorted(
        [row for row in kept if row["order"] not in orders] + rows, key=lambda row: (row["order"], row["tokens"])
    )
    RESULTS.write_text(json.dumps({"width": WIDTH, "heads": HEADS, "torch": torch.__version__, "rows": rows}) + "\n")
    draw(rows, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
