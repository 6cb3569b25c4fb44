"""What a call costs grpcio's asyncio server by itself: the forecaster's ModelInfer, answered with zeros.

    python -m bench.grpc_call [--releases 1.83.2 1.84.2] [--rounds 5] [--seconds 2]

Every release has an environment of its own and runs twice, as `kronserve serve` sets its core up and with the core's
defaults; h2load drives all of them in turns, with 8 connections. Prints JSON: microseconds of CPU per call, medians
over rounds. app.serve.GRPC_EXPERIMENTS and grpcio's upper bound in pyproject.toml rest on it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import grpc
import psutil

from app.serve import GRPC_EXPERIMENTS
from bench import machine
from bench.bundles import ensure_bundles
from bench.environments import environment
from bench.over_grpc import METHOD, WARM_SECONDS, call_options, h2load
from bench.payloads import reference
from bench.process import free_port

MODEL, CONNECTIONS = "forecaster", 8
SERVER = Path(__file__).with_name("noop_grpc.py")
SETTINGS = {"as served": GRPC_EXPERIMENTS, "defaults": ""}
PATIENCE = 30


class Noop:
    """bench/noop_grpc.py with one release and one setting of its core, ready when constructed."""

    def __init__(self, release: str, experiments: str) -> None:
        """Raises NotInstallable, and grpc.FutureTimeoutError for a server that does not answer."""
        requirements = f"grpcio=={release}\nuvloop=={version('uvloop')}\n"
        size = reference(MODEL)[2].nbytes
        self.port = free_port()
        command = [environment(f"grpcio-{release}", requirements), SERVER, "--port", self.port, "--bytes", size]
        variables = os.environ | {"GRPC_EXPERIMENTS": experiments}
        self._process = psutil.Popen([str(part) for part in command], env=variables, stderr=subprocess.DEVNULL)
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE)
            assert channel.unary_unary(METHOD)(b"") == bytes(size)

    def cpu_per_call(self, seconds: int) -> float:
        """Microseconds of the server's CPU."""
        before = self._cpu_seconds()
        rate = h2load(call_options(MODEL, self.port), CONNECTIONS, seconds)
        return (self._cpu_seconds() - before) / (rate * (seconds + WARM_SECONDS)) * 1e6

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def measure(releases: Sequence[str], rounds: int, seconds: int) -> dict[str, dict[str, float]]:
    """Microseconds of CPU per call: release -> setting -> median over rounds. Raises as Noop does."""
    servers: dict[tuple[str, str], Noop] = {}
    try:
        for release in releases:
            for name, experiments in SETTINGS.items():
                servers[release, name] = Noop(release, experiments)
        turns = [{key: server.cpu_per_call(seconds) for key, server in servers.items()} for _ in range(rounds)]
    finally:
        for server in servers.values():
            server.stop()
    return {
        release: {name: round(statistics.median(turn[release, name] for turn in turns), 1) for name in SETTINGS}
        for release in releases
    }


def main() -> int:
    """Command line; the result goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", nargs="+", default=[version("grpcio"), "1.84.2"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    ensure_bundles()
    costs = measure(options.releases, options.rounds, options.seconds)
    print(json.dumps({"machine": machine.describe(), "cpu_us_per_call": costs}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
