"""Two models of one server under load at once, against each alone in the same block.

"both": as many connections to one as to the other, both saturating. "lone": one connection to the forecaster while the
classifier is saturated, which shows what a busy neighbour adds to a request's latency.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.bundles import CLASSIFIER, FORECASTER
from bench.cells import WARM_CONNECTIONS, WARM_SECONDS, describe
from bench.load import Target, wrk
from bench.process import Running
from bench.servers import Server

SITUATIONS = {
    "both": {FORECASTER.name: 8, CLASSIFIER.name: 8},
    "lone": {FORECASTER.name: 1, CLASSIFIER.name: 32},
}
"""Connections per model."""


def measure(server: Server, running: Running, seconds: float) -> dict[str, Any]:
    """{situation: {model: {"alone": load, "mixed": load}}}, loads as in `bench.cells.describe`; binary tensors."""
    targets: dict[str, Target] = {}
    for model in (FORECASTER.name, CLASSIFIER.name):
        form = server.form("binary", model)
        assert form is not None, f"{server.name} takes no binary tensors"
        targets[model] = form.target(running.port)
        wrk(targets[model], WARM_CONNECTIONS, WARM_SECONDS)
    found: dict[str, Any] = {}
    for situation, connections in SITUATIONS.items():
        alone = {model: wrk(targets[model], count, seconds) for model, count in connections.items()}
        with ThreadPoolExecutor(len(connections)) as pool:
            futures = {model: pool.submit(wrk, targets[model], count, seconds) for model, count in connections.items()}
            together = {model: future.result() for model, future in futures.items()}
        found[situation] = {
            model: {
                "connections": connections[model],
                "alone": describe(alone[model]),
                "mixed": describe(together[model]),
            }
            for model in connections
        }
    return found
