"""Ten times what the machine can do, for a minute, on 512 connections: what becomes of the accepted and of the rest.

The offer is an open loop (`bench.open_loop`): requests fall due at ten times the rate that bare ONNX Runtime reaches
in the same minutes, and whoever is refused comes back with the next one that falls due, without a pause. So that 512
connections suffice, what the queue may hold must be far less than 512 requests: either requests have many rows, or
the queue is short. Both situations are measured.

    python -m bench.overload [--seconds 60] [--situation rows] [--situation small]

Writes bench/results/overload.md; exits with 1 when a line of the first situation does not hold. The second is the worst
case of refusing, whose cost it shows. Use a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.settings import Settings
from bench import limit, load, machine
from bench.bundles import FORECASTER, WORK, ensure_bundles
from bench.cells import cores
from bench.load import Load
from bench.payloads import v2_binary
from bench.process import Running, free_port
from bench.report import RESULTS, ms, table
from bench.servers import PATIENCE, environment, kronserve_command

CONNECTIONS, FACTOR = 512, 10
NORMAL = 32
"""Connections of the load before and after."""
SETTLED = 10
"""Seconds after which memory has to stay where it is."""
GROWTH = 0.05

LIMIT_SECONDS, NORMAL_SECONDS = 3.0, 3.0


@dataclass(frozen=True)
class Situation:
    """What is sent, how long a queue the server keeps, seconds, and whether every line has to hold."""

    name: str
    rows: int
    queue_budget: float
    required: bool


DEFAULT_BUDGET = float(Settings.model_fields["queue_budget"].default)
SITUATIONS = {
    "rows": Situation("requests of 16 rows, default settings", 16, DEFAULT_BUDGET, True),
    "small": Situation("requests of 1 row, a queue of 0.2 s", 1, 0.2, False),
}


@dataclass(frozen=True)
class Found:
    """One situation's measurement. Rates in rows a second, times in seconds, memory in MiB, CPU in cores."""

    situation: Situation
    limit: float
    batch_limit: int
    """Rows of a batch, as the server's plan has it."""
    before: Load
    overload: Load
    first_second: Load
    after: Load
    resident: list[float]
    """Once a second of the overload."""
    answer_loop_cpu: float
    """Of the event loop, for an answer, where nothing is refused."""
    refusal_loop_cpu: float
    """Of the event loop, for a refusal: what is left when the answers' share is taken off."""

    def share(self, part: Load) -> float:
        """Rows answered over the limit."""
        return part.rate * self.situation.rows / self.limit

    @property
    def left(self) -> float:
        """Part of the processors that the generator and the refusals leave."""
        taken = self.overload.generator_cpu + self.overload.refused * self.refusal_loop_cpu
        return 1.0 - taken / self.overload.seconds / cores()

    @property
    def settled(self) -> list[float]:
        """Resident memory after the first seconds; the last value of a measurement that is shorter than those."""
        return self.resident[SETTLED:] or self.resident[-1:]

    @property
    def checks(self) -> dict[str, bool]:
        """What an overload must not change."""
        late, overload = self.settled, self.overload
        return {
            "throughput at least 0.9 of the limit": self.share(overload) >= 0.9,
            "p99 of the accepted within the queue's budget": (overload.p99 or 0.0) <= self.situation.queue_budget,
            "every other answer is 429 with Retry-After": overload.failed == overload.bare_refusals == 0,
            "ten times the limit was offered": overload.unsent <= 0.01 * overload.offered,
            "memory is flat": max(late) <= late[0] * (1 + GROWTH),
            "full speed a second after the end": self.after.rate >= 0.95 * self.before.rate,
        }

    @property
    def passes(self) -> bool:
        """Whether every line holds that has to."""
        return not self.situation.required or all(self.checks.values())


def measure(situation: Situation, seconds: float) -> Found:
    """A server of its own; the limit before and after, while the server is frozen."""
    form = v2_binary(FORECASTER.name, situation.rows)
    command = [*kronserve_command(port := free_port()), "--queue-budget", str(situation.queue_budget)]
    log = WORK / "logs" / "overload.log"
    running = Running(command, port, "/v2/health/ready", log, environment(), PATIENCE)
    target = form.target(port)
    try:
        load.closed_loop(target, NORMAL, 1.0)
        batch_limit = int(running.get_json(f"/v2/models/{FORECASTER.name}/config")["max_batch_size"])
        limits = [_limit(running)]
        started = running.event_loop_seconds()
        before = load.closed_loop(target, NORMAL, NORMAL_SECONDS)
        answer_cpu = (running.event_loop_seconds() - started) / before.good
        running.settle()
        rate = FACTOR * limits[0] / situation.rows
        resident, started = [], running.event_loop_seconds()
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(load.open_loop, target, CONNECTIONS, seconds, rate)
            while not pending.done():
                resident.append(running.memory().rss)
                _wait(pending, 1.0)
            overload = pending.result()
        loop_cpu = running.event_loop_seconds() - started
        first_second = load.closed_loop(target, NORMAL, 1.0)
        after = load.closed_loop(target, NORMAL, NORMAL_SECONDS)
        limits.append(_limit(running))
    finally:
        running.stop()
    refusal_cpu = (loop_cpu - answer_cpu * overload.good) / max(1, overload.refused)
    mean = sum(limits) / len(limits)
    return Found(situation, mean, batch_limit, before, overload, first_second, after, resident, answer_cpu, refusal_cpu)


def _wait(pending: Any, seconds: float) -> None:
    try:
        pending.result(timeout=seconds)
    except TimeoutError:
        return


def _limit(running: Running) -> float:
    running.settle()
    running.freeze()
    try:
        return float(limit.apart(FORECASTER, LIMIT_SECONDS)["samples_per_second"])
    finally:
        running.thaw()


def render(found: list[Found]) -> str:
    """overload.md."""
    header = ["", *(one.situation.name for one in found)]
    lines: dict[str, list[str]] = {
        "bare ONNX Runtime, rows/s": [f"{one.limit:.0f}" for one in found],
        "rows of a batch, by the server's plan": [str(one.batch_limit) for one in found],
        "offered, requests/s": [f"{one.overload.offered / one.overload.seconds:.0f}" for one in found],
        "of it unsent, no connection being free": [str(one.overload.unsent) for one in found],
        "answered 200, requests/s": [f"{one.overload.rate:.0f}" for one in found],
        "the same in rows, share of the limit": [f"**{one.share(one.overload):.3f}**" for one in found],
        "left of the processors by generator and refusals": [f"{one.left:.3f}" for one in found],
        "share before, 32 connections in a closed loop": [f"{one.share(one.before):.3f}" for one in found],
        "accepted: p50 / p99, ms": [f"{ms(one.overload.p50)} / {ms(one.overload.p99)}" for one in found],
        "the queue's budget, ms": [f"{one.situation.queue_budget * 1e3:.0f}" for one in found],
        "refused with 429 and Retry-After, requests/s": [
            f"{(one.overload.refused - one.overload.bare_refusals) / one.overload.seconds:.0f}" for one in found
        ],
        "refused: p99, ms": [ms(one.overload.refused_p99) for one in found],
        "anything else": [f"{one.overload.failed + one.overload.bare_refusals}" for one in found],
        "event loop, CPU per answer / per refusal, us": [
            f"{one.answer_loop_cpu * 1e6:.0f} / {one.refusal_loop_cpu * 1e6:.0f}" for one in found
        ],
        "load generator, cores": [f"{one.overload.generator_cpu / one.overload.seconds:.2f}" for one in found],
        "resident at 0 s / 10 s / the end / most, MiB": [
            " / ".join(f"{value:.0f}" for value in (one.resident[0], late[0], late[-1], max(late)))
            for one in found
            for late in [one.settled]
        ],
        "share in the first second after / the next three": [
            f"{one.share(one.first_second):.3f} / {one.share(one.after):.3f}" for one in found
        ],
    }
    checks = []
    for one in found:
        missed = "FAILS" if one.situation.required else "does not hold"
        checks += [f"- {'holds' if ok else missed}: {one.situation.name}: {name}" for name, ok in one.checks.items()]
    about = f"{machine.processor()}, {cores()} cores, no GPU; server and load generator share them"
    return "\n".join(
        [
            "# Overload",
            "",
            f"Generated by `make overload`; docs/performance.md says how to read it. {about}.",
            f"{CONNECTIONS} connections, {found[0].overload.seconds:.0f} s, {FACTOR} times the limit offered.",
            "",
            table(header, [[name, *values] for name, values in lines.items()]),
            "",
            *checks,
            "",
        ]
    )


def main() -> int:
    """Parse the command line, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload; default: %(default)s")
    parser.add_argument("--situation", action="append", choices=list(SITUATIONS), help="default: all of them")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for overload.md")
    options = parser.parse_args()
    ensure_bundles()
    found = [measure(SITUATIONS[name], options.seconds) for name in options.situation or SITUATIONS]
    text = render(found)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overload.md").write_text(text)
    print(text)
    return 0 if all(one.passes for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
