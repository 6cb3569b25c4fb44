"""What is measured: a cell is a payload, a model and a number of connections; one measurement is a server in a cell."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import psutil

from bench import load
from bench.bundles import MODELS
from bench.load import Load, Target
from bench.process import Running

CONCURRENCY = (1, 8, 32, 64, 512)
OVERLOAD = 512
"""From this concurrency on, answers and refusals are told apart, by the generator that can."""

OVERLOAD_FACTOR = 3
"""So many times longer are measurements under overload, where one answer may take a second or two."""

WARM_SECONDS, WARM_CONNECTIONS = 1.0, 8


@dataclass(frozen=True)
class Cell:
    """`str` of it is what --cells filters: binary-forecaster-32."""

    payload: str
    model: str
    concurrency: int

    def __str__(self) -> str:
        return f"{self.payload}-{self.model}-{self.concurrency}"


def cells(patterns: Iterable[str]) -> list[Cell]:
    """Every cell whose name fits one of the shell patterns; npy, which one server speaks, at 8 and 32 only."""
    every = [
        Cell(payload, model, concurrency)
        for model in MODELS
        for payload in ("binary", "json", "npy")
        for concurrency in CONCURRENCY
        if payload != "npy" or concurrency in (8, 32)
    ]
    chosen = list(patterns)
    return [cell for cell in every if any(fnmatch(str(cell), pattern) for pattern in chosen)]


def drive(target: Target, concurrency: int, seconds: float) -> Load:
    """One load with the generator that suits the concurrency."""
    return (load.closed_loop if concurrency >= OVERLOAD else load.wrk)(target, concurrency, seconds)


def measure(running: Running, target: Target, concurrency: int, seconds: float) -> dict[str, Any]:
    """Warm up, then load: `describe`, and {"cpu_per_request", "server_cores", "other_cores", "rss", "pss", ..}.

    Rates in good answers a second, times in seconds, memory in MiB. `other_cores`: what neither the server nor the load
    generator used, other processes and other virtual machines, which disturbs the measurement.
    """
    drive(target, min(concurrency, WARM_CONNECTIONS), WARM_SECONDS)
    before, machine_before = running.cpu_seconds(), _machine_busy()
    found = drive(target, concurrency, seconds * OVERLOAD_FACTOR if concurrency >= OVERLOAD else seconds)
    cpu = running.cpu_seconds() - before
    others = _machine_busy() - machine_before - cpu - found.generator_cpu
    memory = running.memory()
    return describe(found) | {
        "cpu_per_request": cpu / found.good if found.good else None,
        "server_cores": cpu / found.seconds,
        "other_cores": max(0.0, others / found.seconds),
        "rss": memory.rss,
        "pss": memory.pss,
        "processes": memory.processes,
    }


def describe(found: Load) -> dict[str, Any]:
    """A load as it stands in the results."""
    return {
        "rate": found.rate,
        "p50": found.p50,
        "p99": found.p99,
        "good": found.good,
        "refused": found.refused,
        "refused_p99": found.refused_p99,
        "failed": found.failed,
        "detail": dict(found.detail),
        "seconds": found.seconds,
        "generator": found.generator,
        "generator_cores": found.generator_cpu / found.seconds,
    }


def _machine_busy() -> float:
    """CPU seconds that the whole machine has been busy or robbed of since its start."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def cores() -> int:
    """Cores that this process, and so every server, may use."""
    return len(os.sched_getaffinity(0))
