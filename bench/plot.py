"""The results as a picture: share of the compute limit over the number of connections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from bench import summary
from bench.servers import FLOORS, SERVERS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLE = {
    "kronserve": ("#1b5e9b", "o", 2.4),
    "triton": ("#6a994e", "s", 1.4),
    "litserve": ("#bc4749", "^", 1.4),
    "naive": ("#8d8d8d", "D", 1.4),
}
"""Colour, marker, line width."""


def draw(results: dict[str, Any], file: Path) -> None:
    """One panel per model and payload that was measured; nothing when none was."""
    cells = summary.by_cell(results["blocks"])
    panels = list(dict.fromkeys((model, payload) for payload, model, _ in cells if payload != "npy"))
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, 3.6 * lines), squeeze=False, sharey=True)
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    for panel, (model, payload) in zip(axes.flat, panels, strict=False):
        chosen = {key[2]: cell for key, cell in sorted(cells.items()) if key[:2] == (payload, model)}
        positions = {concurrency: position for position, concurrency in enumerate(chosen)}
        for name in (name for name in SERVERS if name not in FLOORS):
            points = {at: cell["servers"][name]["share"] for at, cell in chosen.items() if name in cell["servers"]}
            colour, marker, width = STYLE[name]
            places = [positions[at] for at in points]
            panel.plot(places, list(points.values()), color=colour, marker=marker, linewidth=width, label=name)
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        panel.set_xticks(list(positions.values()), [str(concurrency) for concurrency in positions])
        panel.set_ylim(0, max(1.08, panel.get_ylim()[1]))
        panel.set_title(f"{model}, {payload}", fontsize=10)
        panel.set_xlabel("connections")
        panel.grid(alpha=0.25)
    for line in axes:
        line[0].set_ylabel("share of the compute limit")
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
