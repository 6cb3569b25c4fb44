"""Half an hour at 80 % of the capacity, with reloads, leaving clients and bad requests: nothing fails, nothing grows.

A real server with default settings on copies of the shipped bundles. The capacity is what 32 clients reach that send
without pause; then as many are paced to 0.8 of it. Meanwhile one model gets a second version and loses it again, and
another is unloaded and loaded, every ten seconds. Memory and descriptors are compared under load, and at rest between
the warm-up and the load and after it. Other work on the machine does no harm: nothing that is checked depends on speed.

    python -m bench.soak [--minutes 30]

Writes bench/results/soak.md; exits with 1 when a line does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from app.integrity import MANIFEST, SUM, sum_line
from bench import machine
from bench.cells import cores
from bench.chaos import OUTCOMES, counters
from bench.process import Running, free_port
from bench.report import RESULTS, ms, table
from bench.servers import environment
from bench.soak_clients import Clients, Seen
from bench.soak_requests import kinds

CLIENTS, LOAD = 32, 0.8
CAPACITY_SECONDS, WARM_SHARE = 20.0, 0.1
CHANGE_SECONDS = 10.0
PERIODS, SAMPLES = 10, 36
"""Lines of the table, of which the first and the last are compared, and samples for each."""
GROWTH = 0.05
TWO_VERSIONS, COMING_AND_GOING = "hot-etth1", "kan-adrenal"


@dataclass(frozen=True)
class Sample:
    """The process at one time: MiB, open descriptors, CPU seconds, and the clients' totals so far."""

    at: float
    resident: float
    descriptors: int
    cpu: float
    requests: int
    refused: int
    answered: int


@dataclass
class Report:
    """What a soak found. `resting`: MiB and descriptors without a client, after the warm-up and at the end."""

    seconds: float
    seen: Seen
    capacity: float = 0.0
    changes: int = 0
    samples: list[Sample] = field(default_factory=list)
    resting: list[tuple[float, int]] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    """The scheduler's counters."""
    served: Counter[int] = field(default_factory=Counter)
    """Answers by status, as the server counts them."""

    @property
    def periods(self) -> list[list[Sample]]:
        """The samples in equal parts; each begins with the last of the part before."""
        last = len(self.samples) - 1
        bounds = [round(n * last / PERIODS) for n in range(PERIODS + 1)]
        return [self.samples[start : stop + 1] for start, stop in pairwise(bounds)]

    @property
    def checks(self) -> dict[str, bool]:
        """The lines that have to hold."""
        first, last = (statistics.median(one.resident for one in self.periods[n]) for n in (0, -1))
        (rest_before, open_before), (rest_after, open_after) = self.resting
        seen, counted, left = self.seen, self.counted, self.seen.left
        told = {status: n for status, n in self.served.items() if status not in (200, 499)}
        extra = self.served[200] - seen.statuses[200]
        return {
            "no answer 5xx": not any(status >= 500 for status in [*seen.statuses, *self.served]),
            "every request was answered as its kind must be": not seen.wrong,
            "resident memory under load within 5 %": last <= first * (1 + GROWTH),
            "resident memory at rest within 5 %": rest_after <= rest_before * (1 + GROWTH),
            "no descriptor more than before": open_after <= open_before,
            "the server counts the answers that the clients got": told
            == {status: n for status, n in seen.statuses.items() if status != 200}
            and extra >= 0
            and extra + self.served[499] == left.total(),
            "the scheduler's endings add up to what was submitted": sum(counted[name] for name in OUTCOMES)
            == counted["submitted"],
            "nothing failed in the scheduler": counted["failed"] == counted["aborted"] == counted["expired"] == 0,
        }


class Server:
    """`kronserve serve` on bundles of its own, which change while it serves."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self._models, self._aside = folder / "models", folder / "second"
        shutil.copytree(repository, self._models)
        _second_version(self._models / TWO_VERSIONS / "1", self._aside)
        command = [str(Path(sys.executable).with_name("kronserve")), "serve", "--repository", str(self._models)]
        command += ["--port", str(port := free_port()), "--grpc-port", "none", "--version-policy", "latest:1"]
        command += ["--cache-dir", str(folder / "cache")]
        self.running = Running(command, port, "/v2/health/ready", folder / "log", environment(), patience=120.0)

    async def change(self, report: Report) -> None:
        """Another version and back, a model gone and back, again and again, until cancelled."""
        second = self._models / TWO_VERSIONS / "2"
        while True:
            await asyncio.sleep(CHANGE_SECONDS)
            if second.exists():
                second.rename(self._aside)
            else:
                self._aside.rename(second)
            for model, action in ((TWO_VERSIONS, "load"), (COMING_AND_GOING, "unload"), (COMING_AND_GOING, "load")):
                await asyncio.to_thread(self._post, f"/v2/repository/models/{model}/{action}")
            report.changes += 1

    def _post(self, path: str) -> None:
        url = f"http://127.0.0.1:{self.running.port}{path}"
        with urllib.request.urlopen(url, data=b"", timeout=60):  # raises HTTPError if the change was not made
            pass

    def served(self) -> Counter[int]:
        """Answers of the routes that the clients use, by status."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.running.port}/metrics") as page:
            text = page.read().decode()
        counted = Counter[int]()
        line = r'^kronserve_http_requests_total\{route="[^"]*/(?:infer|forecast|classify)",status="(\d+)"\} (\S+)$'
        for status, number in re.findall(line, text, re.MULTILINE):
            counted[int(status)] += int(float(number))
        return counted

    def resting(self) -> tuple[float, int]:
        """MiB and descriptors when nothing is under way."""
        self.running.settle()
        return self.running.memory().rss, self.running.descriptors()


def _second_version(bundle: Path, folder: Path) -> None:
    """The bundle once more, as version 2."""
    shutil.copytree(bundle, folder)
    content = (folder / MANIFEST).read_bytes().replace(b'"version": "1"', b'"version": "2"', 1)
    (folder / MANIFEST).write_bytes(content)
    (folder / SUM).write_text(sum_line(content), encoding="ascii")


async def soak(minutes: float, repository: Path) -> Report:
    """Start a server, load it, and report."""
    seen = Seen()
    report = Report(60 * minutes, seen)
    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.to_thread(Server, Path(folder), repository)
        running = server.running
        try:
            clients = Clients(running.port, CLIENTS, kinds(), seen)
            async with clients.sending(None):
                await asyncio.sleep(CAPACITY_SECONDS)
                report.capacity = seen.requests / CAPACITY_SECONDS
            changing = asyncio.create_task(server.change(report))
            async with clients.sending(LOAD * report.capacity):
                await asyncio.sleep(WARM_SHARE * report.seconds)
            report.resting.append(await asyncio.to_thread(server.resting))
            seen.latencies.clear()
            async with clients.sending(LOAD * report.capacity):
                until = time.monotonic() + report.seconds
                while time.monotonic() < until and not changing.done():
                    report.samples.append(_sample(running, seen))
                    await asyncio.sleep(report.seconds / PERIODS / SAMPLES)
                report.samples.append(_sample(running, seen))
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)
            if not changing.cancelled():
                changing.result()  # a change that failed
            report.resting.append(await asyncio.to_thread(server.resting))
            report.served, report.counted = server.served(), counters(running.port)
        finally:
            await asyncio.to_thread(running.stop)
    return report


def _sample(running: Running, seen: Seen) -> Sample:
    descriptors, resident = running.descriptors(), running.memory().rss
    cpu, answered = running.cpu_seconds(), len(seen.latencies)
    return Sample(time.monotonic(), resident, descriptors, cpu, seen.requests, seen.statuses[429], answered)


def _period(part: list[Sample], began: float, latencies: list[float]) -> list[str]:
    """A line of the table."""
    first, last = part[0], part[-1]
    seconds = last.at - first.at
    taken = sorted(latencies[first.answered : last.answered])
    low, high = (taken[int(len(taken) * share)] if taken else None for share in (0.5, 0.99))
    return [
        f"{(last.at - began) / 60:.1f}",
        f"{(last.requests - first.requests) / seconds:.0f}",
        f"{ms(low)} / {ms(high)}",
        str(last.refused - first.refused),
        f"{(last.cpu - first.cpu) / seconds:.2f}",
        f"{statistics.median(one.resident for one in part):.1f}",
        str(max(one.descriptors for one in part)),
    ]


COLUMNS = [
    "until minute",
    "requests/s",
    "200: p50 / p99, ms",
    "429",
    "cores used",
    "resident, MiB",
    "descriptors, most",
]


def render(report: Report) -> str:
    """soak.md."""
    seen, counted, left = report.seen, report.counted, report.seen.left
    about = f"{machine.processor()}, {cores()} cores, no GPU; the clients share them"
    (rest_before, open_before), (rest_after, open_after) = report.resting
    statuses = ", ".join(f"{n} x {status}" for status, n in sorted(seen.statuses.items()))
    wrong = ", ".join(f"{n} x {what}" for what, n in seen.wrong.items()) or "nothing"
    lines = [
        "# Soak",
        "",
        f"Generated by `make soak`; docs/performance.md says how to read it. {about}.",
        "",
        f"Capacity {report.capacity:.0f} requests/s with {CLIENTS} clients; then {LOAD:g} of it, for "
        f"{WARM_SHARE * report.seconds / 60:g} minutes of warm-up and these {report.seconds / 60:g}.",
        f"{report.changes} times a version came or went, and a model was unloaded and loaded.",
        "",
        table(COLUMNS, [_period(part, report.samples[0].at, seen.latencies) for part in report.periods]),
        "",
        f"- at rest, after the warm-up and at the end: {rest_before:.1f} and {rest_after:.1f} MiB, {open_before} and "
        f"{open_after} descriptors",
        f"- answers: {statuses}; hung up: {left['waiting']} while waiting, {left['sending']} while sending",
        f"- other than its kind must be: {wrong}",
        "- the scheduler: " + ", ".join(f"{counted[name]} {name}" for name in ("submitted", *OUTCOMES)),
        "",
        *(f"- {'holds' if holds else 'FAILS'}: {name}" for name, holds in report.checks.items()),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Parse the command line, load, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for soak.md")
    options = parser.parse_args()
    report = asyncio.run(soak(options.minutes, options.repository))
    text = render(report)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.md").write_text(text)
    print(text)
    return 0 if all(report.checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
