"""The compute limit: the most samples a second that bare ONNX Runtime reaches in a process, and its best lone latency.

Nothing but InferenceSession.run on a tensor that lies ready: no HTTP, no queue, no decoding. Two ways are tried at
every batch size: as many caller threads as cores on one session with one intra-op thread each, and one caller on one
session with an intra-op thread per core. All are tried briefly, then the best three at length; the best of these is
the limit.

Runs as a process of its own: python -m bench.limit MODEL.onnx --shape 1,7,96 --seconds 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort

from bench.bundles import Benchmarked

BATCHES = (1, 2, 4, 8)
TRIAL_SECONDS = 0.25
FINALISTS = 3

Way = tuple[str, int, int, ort.InferenceSession]
"""Description, caller threads, batch size, session."""


def session(graph: str, threads: int, *, spinning: bool) -> ort.InferenceSession:
    """A CPU session with `threads` intra-op threads, its caller included."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def samples_per_second(way: Way, sample: np.ndarray, seconds: float) -> float:
    """Throughput of one way: every caller runs its batch again and again; all of them must have finished."""
    _, callers, batch, runner = way
    name = runner.get_inputs()[0].name
    feed = {name: np.concatenate([sample] * batch)}
    runner.run(None, feed)
    until = time.perf_counter() + seconds

    def repeat(_: int) -> int:
        count = 0
        while time.perf_counter() < until:
            runner.run(None, feed)
            count += 1
        return count

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        runs = sum(pool.map(repeat, range(callers)))
    return runs * batch / (time.perf_counter() - started)


def lone_latency(runner: ort.InferenceSession, sample: np.ndarray, seconds: float) -> float:
    """Median seconds of a batch of one, one after another."""
    run: Callable[[], object] = lambda: runner.run(None, {runner.get_inputs()[0].name: sample})  # noqa: E731
    run()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure(graph: str, sample: np.ndarray, seconds: float) -> dict[str, object]:
    """{"samples_per_second", "way", "trials": {way: samples/s}, "lone_seconds", "lone_by_threads": {threads: s}}."""
    cores = len(os.sched_getaffinity(0))
    narrow, wide = session(graph, 1, spinning=False), session(graph, cores, spinning=True)
    ways: list[Way] = [(f"{cores} callers, intra-op 1, batch {batch}", cores, batch, narrow) for batch in BATCHES]
    ways += [(f"1 caller, intra-op {cores}, batch {batch}", 1, batch, wide) for batch in BATCHES]
    trials = {way[0]: samples_per_second(way, sample, TRIAL_SECONDS) for way in ways}
    finalists = sorted(ways, key=lambda way: -trials[way[0]])[:FINALISTS]
    final = {way[0]: samples_per_second(way, sample, seconds / FINALISTS) for way in finalists}
    best = max(final, key=lambda name: final[name])
    lone = {threads: lone_latency(runner, sample, seconds / 4) for threads, runner in ((1, narrow), (cores, wide))}
    return {
        "samples_per_second": final[best],
        "way": best,
        "trials": trials | final,
        "lone_seconds": min(lone.values()),
        "lone_by_threads": lone,
    }


def apart(model: Benchmarked, seconds: float) -> dict[str, Any]:
    """`measure` on the model's own request, in a process of its own. Raises CalledProcessError."""
    command = [sys.executable, "-m", "bench.limit", str(model.graph), "--shape", ",".join(map(str, model.shape))]
    done = subprocess.run([*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", metavar="MODEL.onnx")
    parser.add_argument("--shape", required=True, help="of one sample, the batch axis first: 1,7,96")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the final measurement; default: %(default)s")
    arguments = parser.parse_args()
    shape = tuple(int(size) for size in arguments.shape.split(","))
    one = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    print(json.dumps(measure(arguments.graph, one, arguments.seconds)))
