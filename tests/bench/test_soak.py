"""A soak's verdict: every one of its lines fails when, and only when, what it is about went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from bench.soak import PERIODS, Report, Sample, render
from bench.soak_clients import Seen


def sound() -> Report:
    seen = Seen(Counter({200: 900, 400: 30, 429: 4}), Counter({"waiting": 8, "sending": 2}), latencies=[0.01] * 900)
    samples = [Sample(float(n), 200.0 + n % 2, 40, 0.5 * n, 10 * n, 0, 9 * n) for n in range(10 * PERIODS + 1)]
    counted = {
        "submitted": 910,
        "succeeded": 903,
        "cancelled": 7,
        "failed": 0,
        "refused": 0,
        "expired": 0,
        "aborted": 0,
    }
    served = Counter({200: 903, 400: 30, 429: 4, 499: 7})
    return Report(100.0, seen, 100.0, 3, samples, [(190.0, 14), (191.0, 14)], counted, served)


def fat(report: Report) -> None:
    report.samples = [Sample(s.at, s.resident * (1 + s.at / 1000), 40, 0, 0, 0, 0) for s in report.samples]


FAULTS: dict[str, Callable[[Report], object]] = {
    "every request was answered as its kind must be": lambda report: report.seen.wrong.update({"csv: 500": 1}),
    "resident memory under load within 5 %": fat,
    "resident memory at rest within 5 %": lambda report: report.resting.__setitem__(1, (200.0, 14)),
    "no descriptor more than before": lambda report: report.resting.__setitem__(1, (190.0, 15)),
    "the server counts the answers that the clients got": lambda report: report.seen.statuses.update({400: 1}),
    "the scheduler's endings add up to what was submitted": lambda report: report.counted.update(submitted=911),
    "nothing failed in the scheduler": lambda report: report.counted.update(failed=1, succeeded=902),
}


def test_a_sound_soak_holds_every_line():
    report = sound()
    assert all(report.checks.values())
    assert len(report.periods) == PERIODS
    assert report.periods[0][-1] is report.periods[1][0]
    assert "FAILS" not in render(report)


@pytest.mark.parametrize("line", FAULTS)
def test_one_fault_fails_one_line(line: str):
    report = sound()
    FAULTS[line](report)
    assert [name for name, holds in report.checks.items() if not holds] == [line]
    assert f"FAILS: {line}" in render(report)


def test_one_answer_5xx_is_one_too_many():
    report = sound()
    report.seen.statuses[503] = report.served[503] = 1
    assert [name for name, holds in report.checks.items() if not holds] == ["no answer 5xx"]
