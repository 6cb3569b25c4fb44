"""Is the load generator the bottleneck? Both generators against the server that does nothing.

If a generator gets many times more answers a second here than any model server gives, at little CPU per request, then
what it measures elsewhere is the server.
"""

from __future__ import annotations

from typing import Any

from bench import load
from bench.bundles import MODELS
from bench.cells import describe
from bench.process import Running
from bench.servers import SERVERS

CONNECTIONS = (8, 64, 512)


def measure(running: Running, seconds: float) -> list[dict[str, Any]]:
    """One entry per payload, model, generator and concurrency, as in `bench.cells.describe`; `running` is the no-op."""
    found = []
    for payload in ("binary", "json"):
        for model in MODELS:
            form = SERVERS["noop"].form(payload, model)
            assert form is not None
            target = form.target(running.port)
            for connections in CONNECTIONS:
                for generate in (load.wrk, load.closed_loop):
                    result = generate(target, connections, seconds)
                    key = {"payload": payload, "model": model, "connections": connections}
                    cost = {"generator_cpu_per_request": result.generator_cpu / max(1, result.good)}
                    found.append(key | describe(result) | cost)
    return found
