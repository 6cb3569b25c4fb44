"""Driving a server with wrk, a load generator in C that costs little of the cores it shares with the server.

Every connection sends its next request as soon as it has the last answer. wrk cannot tell the latencies of refusals
from those of answers; where refusals are expected, `bench.closed_loop` is used instead, and where more is to come than
the server can do, whatever it answers, `bench.open_loop`.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("post.lua")


class NoLoadGenerator(Exception):
    """wrk is not installed."""


@dataclass(frozen=True)
class Target:
    """What is sent: a POST of the body file to the URL."""

    url: str
    headers: Mapping[str, str]
    body: Path


@dataclass(frozen=True)
class Load:
    """What came of it. Times in seconds; `rate`, `p50`, `p99` are of good answers (status 200) only.

    `refused`: answers 429, with `refused_p99` their latency, `bare_refusals` those without Retry-After. `failed`: any
    other status, and broken connections. `generator_cpu`: CPU seconds of the load generator. In an open loop,
    `offered`: requests that fell due, `unsent`: those of them for which no connection was free.
    """

    seconds: float
    good: int
    p50: float | None
    p99: float | None
    generator: str
    generator_cpu: float
    refused: int = 0
    refused_p99: float | None = None
    bare_refusals: int = 0
    failed: int = 0
    offered: int = 0
    unsent: int = 0
    detail: Mapping[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds


def require_wrk() -> str:
    """The version of wrk. Raises NoLoadGenerator, which says how to install it."""
    if shutil.which("wrk") is None:
        raise NoLoadGenerator("wrk is not on PATH; on Debian and Ubuntu: apt-get install wrk")
    return subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.split("\n")[0].strip()


def wrk(target: Target, connections: int, seconds: float) -> Load:
    """Closed loop of `connections` for whole seconds (wrk knows no fractions). Raises CalledProcessError."""
    headers = [f"{name}: {value}" for name, value in target.headers.items()]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "120s"]
    command += ["-s", str(SCRIPT), target.url, "--", str(target.body), *headers]
    found, cpu = _run(command, "RESULT ")
    errors: dict[str, int] = found["errors"]
    failed = sum(errors.values())
    return Load(
        seconds=found["duration"] / 1e6,
        good=found["requests"] - errors["status"],
        p50=found["p50"] / 1e6,
        p99=found["p99"] / 1e6,
        generator="wrk",
        generator_cpu=cpu,
        failed=failed,
        detail=errors if failed else {},
    )


def closed_loop(target: Target, connections: int, seconds: float) -> Load:
    """As `wrk`, with refusals told apart; each refused client waits as long as Retry-After says."""
    return _told_apart("closed_loop", target, connections, seconds)


def open_loop(target: Target, connections: int, seconds: float, rate: float) -> Load:
    """`rate` requests a second fall due whatever becomes of those before; refused clients do not wait."""
    return _told_apart("open_loop", target, connections, seconds, "--rate", str(rate))


def _told_apart(generator: str, target: Target, connections: int, seconds: float, *options: str) -> Load:
    command = [sys.executable, "-m", f"bench.{generator}", target.url, "--body", str(target.body)]
    command += ["--connections", str(connections), "--seconds", str(seconds), *options]
    for name, value in target.headers.items():
        command += ["--header", f"{name}: {value}"]
    found, cpu = _run(command, "RESULT ")
    statuses: dict[str, dict[str, float]] = found["statuses"]
    good, refused = statuses.get("200"), statuses.get("429")
    others = {name: int(entry["count"]) for name, entry in statuses.items() if name not in ("200", "429")}
    others |= {"broken": found["broken"]} if found["broken"] else {}
    return Load(
        seconds=found["seconds"],
        good=int(good["count"]) if good else 0,
        p50=good["p50"] if good else None,
        p99=good["p99"] if good else None,
        generator=generator,
        generator_cpu=cpu,
        refused=int(refused["count"]) if refused else 0,
        refused_p99=refused["p99"] if refused else None,
        bare_refusals=found.get("bare_refusals", 0),
        failed=sum(others.values()),
        offered=found.get("offered", 0),
        unsent=found.get("unsent", 0),
        detail=others,
    )


def _run(command: list[str], mark: str) -> tuple[dict[str, Any], float]:
    """The JSON after `mark` in the command's output, and the CPU seconds that it took.

    Children are counted when they have ended, so servers that still run do not count.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = next(line for line in done.stdout.splitlines() if line.startswith(mark))
    return json.loads(line.removeprefix(mark)), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
