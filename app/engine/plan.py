"""How to run a model on this device, measured when it is loaded and kept for the next start.

A batch is worth its latency only while it raises throughput, and a second core is worth its spinning only while a lone
request gains from it; both depend on the model and the machine, so both are timed.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

CPU_SIZES, GPU_SIZES = (1, 2, 4), (1, 2, 4, 8, 16, 32, 64, 128)
"""Batch sizes that are tried."""

TURNS, LEAST_TURNS = 15, 3
"""Everything is timed in so many short turns, and compared within each: the machine's speed drifts all the while."""

ENOUGH = 0.98
"""The plan takes the smallest batch that reaches this share of the best throughput."""

BATCH_SECONDS = 0.00025
"""What a batch costs its executor beside the model: the event loop's turns for it, the handing over, colder caches.

`python -m bench.batch_cost` measures it, with what the model itself gains in batches of two: for the benchmark's
forecaster and its classifier 0.18 and 0.09 ms on two cores of an AMD EPYC, 0.64 and 0.69 ms on two of an Intel Xeon.
"""

WORTHWHILE = 0.98
"""A lone request runs on all cores if that takes at most this share of its time on one.

Little gain suffices: noise at the start must not cost a larger one.
"""


@dataclass(frozen=True)
class Plan:
    """batch_limit: rows per batch. threads_alone: cores for a request with nothing beside it.

    rows_per_second: measured throughput by batch size, all executors at work. latency_alone: seconds of one row by
    number of threads. source: "measured", "cached", "set" (the limit, by operator or manifest) or "not batched".
    """

    batch_limit: int
    threads_alone: int = 1
    rows_per_second: dict[str, float] = field(default_factory=dict)
    latency_alone: dict[str, float] = field(default_factory=dict)
    source: str = "measured"


Run = Callable[[int], object]
"""Runs one batch of the given number of rows."""


def measure(
    run: Run, run_wide: Run | None, *, sizes: Sequence[int], executors: int, threads: int, budget: float
) -> Plan:
    """Time `run` at each batch size with all executors at once, and a lone row on one core against all of them.

    run_wide: the same model on `threads` cores, if it can run so. budget: seconds for all of it, kept roughly.
    """
    share = budget / (len(sizes) + 1)
    rates: dict[int, list[float]] = {}
    ways = {1: run} | ({threads: run_wide} if run_wide is not None and threads > 1 else {})
    alone: dict[int, list[float]] = {count: [] for count in ways}
    begun = time.perf_counter()
    with ThreadPoolExecutor(executors) as pool:
        for turn in range(TURNS):
            if turn >= LEAST_TURNS and time.perf_counter() - begun > budget:
                break
            fitting = list(rates)
            begin = turn % max(1, len(fitting))  # each in turn is first: what comes and goes must not find the same one
            for size in sizes if turn == 0 else (*fitting[begin:], *fitting[:begin]):
                started = time.perf_counter()
                run(size)
                if turn == 0 and rates and time.perf_counter() - started > share:
                    break  # larger ones would not fit the budget either
                rates.setdefault(size, []).append(_throughput(pool, run, size, executors, share / TURNS))
            _run_alone(ways, alone, share / TURNS)
    paces = [statistics.mean(turn) for turn in zip(*rates.values(), strict=True)]
    pace = statistics.median(paces)
    throughput = {
        size: pace * statistics.median(rate / mean for rate, mean in zip(measured, paces, strict=True))
        for size, measured in rates.items()
    }
    served = {size: 1 / (1 / rate + BATCH_SECONDS / (executors * size)) for size, rate in throughput.items()}
    batch_limit = min(size for size, rate in served.items() if rate >= ENOUGH * max(served.values()))
    latency = {count: statistics.median(seconds) for count, seconds in alone.items()}
    wide = latency.get(threads, float("inf")) <= WORTHWHILE * latency[1]
    return Plan(
        batch_limit,
        threads if wide else 1,
        {str(size): round(rate, 2) for size, rate in throughput.items()},
        {str(count): round(seconds, 6) for count, seconds in latency.items()},
    )


def _throughput(pool: ThreadPoolExecutor, run: Run, size: int, executors: int, seconds: float) -> float:
    """Rows per second of all executors together, for about `seconds`.

    Each executor's time is its own: one that waits for the others' last batches would count against large batches.
    """

    def repeat(_: int) -> float:
        started = time.perf_counter()
        count = 0
        while count == 0 or time.perf_counter() - started < seconds:
            run(size)
            count += 1
        return count / (time.perf_counter() - started)

    return size * sum(pool.map(repeat, range(executors)))


def _run_alone(ways: Mapping[int, Run], times: Mapping[int, list[float]], seconds: float) -> None:
    """Add times of one row to those of every way, in turns, for about `seconds`."""
    until = time.perf_counter() + seconds
    while True:
        for count, way in ways.items():
            started = time.perf_counter()
            way(1)
            times[count].append(time.perf_counter() - started)
        if time.perf_counter() >= until:
            return


def recall(file: Path) -> Plan | None:
    """The plan kept in `file`, or None."""
    try:
        return Plan(**(json.loads(file.read_text()) | {"source": "cached"}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("the plan in the cache is not readable, it is measured again: %s", error)
        return None


def keep(plan: Plan, file: Path) -> None:
    """Write the plan; a cache that cannot be written costs the next start its time, no more."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=".plan-")
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(plan), stream, indent=1)
        os.replace(partial, file)
    except OSError as error:
        logger.warning("the plan cannot be kept: %s", error)
