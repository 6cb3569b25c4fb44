"""What a batch costs the server beside the model: CPU per request one by one against batches of two.

    python -m bench.batch_cost [--rounds 5] [--seconds 3]

Two servers that differ only in --max-batch are driven in turns by 32 connections with binary tensors, for each model.
A request in batches of n costs a + b / n seconds of CPU, so b follows from n = 1 and n = 2; what the model itself gains
or loses in a batch is in it. Prints JSON. `app.engine.plan.BATCH_SECONDS` lies between what machines give.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from bench import machine
from bench.bundles import MODELS, WORK, ensure_bundles
from bench.load import wrk
from bench.payloads import v2_binary
from bench.process import Running, free_port
from bench.servers import PATIENCE, environment, kronserve_command

SIZES, CONNECTIONS = (1, 2), 32


def start(size: int) -> Running:
    """A server whose batches have at most `size` rows."""
    port = free_port()
    command = [*kronserve_command(port), "--max-batch", str(size)]
    return Running(command, port, "/v2/health/ready", WORK / "logs" / f"batch-{size}.log", environment(), PATIENCE)


def cpu_per_request(server: Running, model: str, seconds: float) -> float:
    """CPU seconds of the server per answered request."""
    before = server.cpu_seconds()
    load = wrk(v2_binary(model).target(server.port), CONNECTIONS, seconds)
    return (server.cpu_seconds() - before) / load.good


def summary(rounds: list[dict[int, float]]) -> dict[str, object]:
    """CPU per request by batch size, and what a batch costs, in milliseconds."""
    one, more = SIZES
    costs = [(measured[one] - measured[more]) / (1 / one - 1 / more) for measured in rounds]
    return {
        "cpu_ms_per_request": {size: round(1e3 * statistics.median(row[size] for row in rounds), 3) for size in SIZES},
        "batch_ms": {"median": round(1e3 * statistics.median(costs), 3), "rounds": [round(1e3 * c, 3) for c in costs]},
    }


def main() -> int:
    """Command line; the result goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    ensure_bundles()
    servers = {size: start(size) for size in SIZES}
    try:
        rounds = [
            {
                model: {size: cpu_per_request(server, model, options.seconds) for size, server in servers.items()}
                for model in MODELS
            }
            for _ in range(options.rounds)
        ]
    finally:
        for server in servers.values():
            server.stop()
    result = {"machine": machine.describe()} | {model: summary([row[model] for row in rounds]) for model in MODELS}
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
