"""The plan: chosen from what was timed, kept, recalled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app.engine import plan


class Clock:
    """Time that passes only when a run says so; `perf_counter` for the code under test."""

    def __init__(self) -> None:
        self.now = 0.0

    def runs(self, seconds_of):
        def run(rows: int) -> None:
            self.now += seconds_of(rows)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def measured(clock: Clock, narrow, wide=None, sizes=plan.CPU_SIZES, threads: int = 2) -> plan.Plan:
    return plan.measure(
        clock.runs(narrow),
        None if wide is None else clock.runs(wide),
        sizes=sizes,
        executors=1,
        threads=threads,
        budget=1.0,
    )


def test_batch_that_gains_nothing_is_not_taken(clock: Clock):
    """A slow model on a CPU: each row costs the same, so one row per batch has the least latency."""
    assert measured(clock, lambda rows: 0.02 * rows).batch_limit == 1


def test_batch_makes_up_for_what_each_batch_costs_beside_the_model(clock: Clock):
    """A fast model on a CPU: handing over and answering weigh as much as a part of the row."""
    assert measured(clock, lambda rows: 0.0005 * rows).batch_limit == 4


def test_batch_grows_while_it_gains(clock: Clock):
    """A GPU: a batch costs a launch, then rows are nearly free up to the size where it is full."""
    chosen = measured(clock, lambda rows: 0.001 + 1e-5 * max(0, rows - 32), sizes=plan.GPU_SIZES)
    rates = {int(size): rate for size, rate in chosen.rows_per_second.items()}
    assert chosen.batch_limit == 128
    assert rates[32] == pytest.approx(32_000, rel=1e-3)


@pytest.mark.parametrize("period", [0.05, 0.11, 0.23])
def test_machine_whose_speed_changes_does_not_change_the_plan(clock: Clock, period: float):
    """Neighbours take a third of the machine now and then: that must not look like a batch size's doing."""

    def seconds(rows: int) -> float:
        row = {1: 0.00200, 2: 0.00190, 4: 0.00196}[rows]
        return rows * row * (1.3 if int(clock.now / period) % 2 else 1.0)

    assert measured(clock, seconds).batch_limit == 2


def test_sizes_that_do_not_fit_the_budget_are_left_out(clock: Clock):
    chosen = measured(clock, lambda rows: 0.15 * rows)
    assert set(chosen.rows_per_second) == {"1"}


@pytest.mark.parametrize(("wide", "threads"), [(0.0008, 2), (0.00097, 2), (0.00099, 1), (0.002, 1)])
def test_all_cores_for_a_lone_row_only_if_faster_beyond_noise(clock: Clock, wide: float, threads: int):
    chosen = measured(clock, lambda rows: 0.001 * rows, lambda rows: wide * rows)
    assert chosen.threads_alone == threads
    assert chosen.latency_alone == {"1": pytest.approx(0.001), "2": pytest.approx(wide)}


@pytest.mark.parametrize("begin", [0.0, 0.2, 0.4, 0.6, 0.75])
def test_a_bad_quarter_of_the_time_does_not_decide_about_all_cores(clock: Clock, begin: float):
    """A neighbour on the other core slows what needs both of them."""

    def wide(rows: int) -> float:
        return rows * (0.002 if begin <= clock.now < begin + 0.25 else 0.0008)

    assert measured(clock, lambda rows: 0.001 * rows, wide).threads_alone == 2


def test_kept_and_recalled(tmp_path: Path):
    file = tmp_path / "cache" / "x.plan.json"
    assert plan.recall(file) is None
    plan.keep(plan.Plan(4, 2, {"1": 10.0}, {"1": 0.1}), file)
    assert plan.recall(file) == plan.Plan(4, 2, {"1": 10.0}, {"1": 0.1}, source="cached")
    assert [path.name for path in file.parent.iterdir()] == ["x.plan.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"unknown": 1}', "{"])
def test_unreadable_plan_is_measured_again(tmp_path: Path, content: str):
    file = tmp_path / "x.plan.json"
    file.write_text(content)
    assert plan.recall(file) is None


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    plan.keep(plan.Plan(1), tmp_path / "file" / "x.plan.json")
