"""The verdict on an overload: every line fails when, and only when, what it is about went wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.load import Load
from bench.overload import SITUATIONS, Found, render


def load(good: int, seconds: float = 10.0, **more: Any) -> Load:
    return Load(seconds, good, 0.5, more.pop("p99", 1.0), "made up", 0.5, **more)


OVERLOAD = load(580, refused=5600, refused_p99=0.01, offered=6250)
SOUND = Found(
    SITUATIONS["rows"],
    limit=1000.0,
    batch_limit=2,
    before=load(600),
    overload=OVERLOAD,
    first_second=load(590),
    after=load(600),
    resident=[100.0, *[150.0] * 59],
    answer_loop_cpu=1e-3,
    refusal_loop_cpu=1e-4,
)

FAULTS = {
    "throughput at least 0.9 of the limit": {"limit": 1100.0},
    "p99 of the accepted within the queue's budget": {"overload": replace(OVERLOAD, p99=2.1)},
    "every other answer is 429 with Retry-After": {"overload": replace(OVERLOAD, bare_refusals=1)},
    "ten times the limit was offered": {"overload": replace(OVERLOAD, unsent=100)},
    "memory is flat": {"resident": [100.0, *[150.0] * 58, 160.0]},
    "full speed a second after the end": {"after": load(500)},
}


def test_a_sound_overload_holds_every_line():
    assert SOUND.share(OVERLOAD) == pytest.approx(58 * 16 / 1000)
    assert set(SOUND.checks) == set(FAULTS)
    assert all(SOUND.checks.values())
    assert SOUND.passes
    assert "FAILS" not in render([SOUND])


@pytest.mark.parametrize("line", FAULTS)
def test_one_fault_fails_one_line(line: str):
    found = replace(SOUND, **FAULTS[line])
    assert [name for name, holds in found.checks.items() if not holds] == [line]
    assert not found.passes
    assert f"FAILS: requests of 16 rows, default settings: {line}" in render([found])


def test_a_failure_is_neither_answer_nor_refusal():
    found = replace(SOUND, overload=replace(OVERLOAD, failed=1))
    assert [name for name, holds in found.checks.items() if not holds] == ["every other answer is 429 with Retry-After"]


def test_the_worst_case_of_refusing_is_shown_and_not_required():
    found = replace(SOUND, situation=SITUATIONS["small"])
    assert found.share(OVERLOAD) < 0.9
    assert found.passes
    assert "does not hold: requests of 1 row, a queue of 0.2 s: throughput at least 0.9 of the limit" in render([found])
