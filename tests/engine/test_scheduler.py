"""The scheduler with real threads and a runtime that fails and waits on demand."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.queueing import Batch
from app.engine.scheduler import COMPANY_SECONDS, LONE_RUNS, LONE_TRIALS, BatchRun, BatchTimes, Runnable, Scheduler
from app.errors import DeadlineExceeded, DeviceFailed, InferenceFailed, KronserveError, Overloaded, Unavailable
from tests.engine.fakes import FATAL, POISON, DoublingModel, DyingModel


@asynccontextmanager
async def running(
    *models: DoublingModel,
    executors: int = 2,
    max_requests: int = 1000,
    hold: float = 0.0,
    lone: float = 0.0,
    **others: Any,
) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(executors=executors, max_wait=inf, max_requests=max_requests, hold=hold, lone=lone, **others)
    scheduler.start()
    for model in models:
        scheduler.register(model)
    try:
        yield scheduler
    finally:
        for model in models:
            model.gate.set()
        await scheduler.close(5.0)


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.array(values, dtype=np.float32)[:, None], 3, axis=1)}


async def blocked(scheduler: Scheduler, model: DoublingModel) -> asyncio.Future:
    """A one-row request that holds its executor until the model's gate is opened."""
    model.gate.clear()
    future = scheduler.submit(model, rows(1), ["y"])
    while not scheduler.running:  # noqa: ASYNC110  (an executor thread sets it)
        await asyncio.sleep(0.001)
    return future


async def test_each_request_gets_its_own_rows():
    model = DoublingModel()
    async with running(model) as scheduler:
        futures = [scheduler.submit(model, rows(*range(n, n + n % 7)), ["y"]) for n in range(100)]
        for n, future in enumerate(futures):
            np.testing.assert_array_equal((await future)["y"], rows(*range(n, n + n % 7))["x"] * 2)
    assert scheduler.counters.succeeded == 100


async def test_batches_form_while_executors_are_busy():
    model = DoublingModel(batch_limit=8)
    async with running(model, executors=1) as scheduler:
        first = await blocked(scheduler, model)
        rest = [scheduler.submit(model, rows(n), ["y"]) for n in range(16)]
        model.gate.set()
        await asyncio.gather(first, *rest)
    assert model.batches == [1, 8, 8]


async def test_answers_leave_when_the_next_batch_is_prepared_and_before_it_has_run(monkeypatch: pytest.MonkeyPatch):
    """Sooner, the event loop would ask for the interpreter while the executor has nothing that runs without it."""
    model, loop = DoublingModel(batch_limit=2), asyncio.get_running_loop()
    happened: list[str] = []
    tell, run = loop.call_soon_threadsafe, model.run

    def telling(*arguments: Any, **options: Any) -> asyncio.Handle:
        happened.append("answers")
        return tell(*arguments, **options)

    def noted(inputs: Any, outputs: Any, *, alone: bool) -> list[np.ndarray]:
        happened.append("run")
        return run(inputs, outputs, alone=alone)

    class Read(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            happened.append("read")
            return super().__getitem__(name)

    async with running(model, executors=1) as scheduler:
        model.run = noted  # type: ignore[method-assign]
        first = await blocked(scheduler, model)
        while not happened:  # noqa: ASYNC110  (an executor thread notes it)
            await asyncio.sleep(0.001)
        happened.clear()
        rest = [scheduler.submit(model, Read(rows(n)), ["y"]) for n in range(4)]
        monkeypatch.setattr(loop, "call_soon_threadsafe", telling)
        model.gate.set()
        await asyncio.gather(first, *rest)
        monkeypatch.undo()
    assert happened == ["read", "read", "answers", "run"] * 2 + ["answers"]


class SlowModel(DoublingModel):
    """A batch of two takes a second of its clock, and so the scheduler expects; each has to be let go by `gate`."""

    def __init__(self) -> None:
        super().__init__(batch_limit=2)
        self.seconds_per_element = 1 / 6
        self.now = 0.0

    def run(self, inputs: Any, outputs: Any, *, alone: bool) -> list[np.ndarray]:
        results = super().run(inputs, outputs, alone=alone)
        self.now += len(inputs["x"]) / 2
        return results


@pytest.mark.parametrize(
    ("hold", "told"),
    [
        # Half a second until the first is finished, then one for each pair. What is finished may wait until the next
        # pair is, if by then it has waited no longer than `hold` and than half the work that is left.
        (0.0, [1, 2, 2, 2, 2, 2, 2, 2]),
        (1.5, [1 + 2, 2 + 2, 2 + 2, 2, 2]),
        (inf, [1 + 2 + 2, 2 + 2, 2, 2, 2]),
    ],
)
async def test_answers_wait_for_each_other_while_there_is_work(
    monkeypatch: pytest.MonkeyPatch, hold: float, told: list[int]
):
    model, loop = SlowModel(), asyncio.get_running_loop()
    tell, found = loop.call_soon_threadsafe, list[int]()

    def telling(callback: Callable[..., Any], results: Any) -> asyncio.Handle:
        found.append(len(results))
        return tell(callback, results)

    async with running(model, executors=1, hold=hold, clock=lambda: model.now) as scheduler:
        first = await blocked(scheduler, model)
        rest = [scheduler.submit(model, rows(n), ["y"]) for n in range(14)]
        monkeypatch.setattr(loop, "call_soon_threadsafe", telling)
        model.gate.set()
        await asyncio.gather(first, *rest)
        monkeypatch.undo()
    assert found == told


async def test_answers_of_a_model_without_a_queue_do_not_wait_for_another_model_s(monkeypatch: pytest.MonkeyPatch):
    """One client of a model beside many of another: held with theirs, each of its answers would come later."""
    model, other, loop = SlowModel(), DoublingModel("other"), asyncio.get_running_loop()
    tell, found = loop.call_soon_threadsafe, list[list[Runnable]]()

    def telling(callback: Callable[..., Any], results: Any) -> asyncio.Handle:
        found.append([part.entry.model for part, _ in results])
        return tell(callback, results)

    async with running(model, other, executors=1, hold=inf, clock=lambda: model.now) as scheduler:
        first = await blocked(scheduler, model)
        alone = scheduler.submit(other, rows(1), ["y"])
        rest = [scheduler.submit(model, rows(n), ["y"]) for n in range(14)]
        monkeypatch.setattr(loop, "call_soon_threadsafe", telling)
        model.gate.set()
        await asyncio.gather(first, alone, *rest)
        monkeypatch.undo()
    assert found[0] == [model, other], "told when the batch after it is prepared"
    assert len(found[1]) > 2, "those that have a queue wait for each other"


@pytest.mark.parametrize("late", [False, True])
async def test_answers_wait_for_the_batch_of_another_executor_unless_it_is_late(
    monkeypatch: pytest.MonkeyPatch, late: bool
):
    now, loop, started, found = [0.0], asyncio.get_running_loop(), list[float](), list[int]()
    tell, gates = loop.call_soon_threadsafe, [threading.Event() for _ in range(6)]

    class Gated(DoublingModel):
        """Batches of one, of which a second is expected, each let go by a gate of its own."""

        def run(self, inputs: Any, outputs: Any, *, alone: bool) -> list[np.ndarray]:
            gate = gates[len(started)]
            started.append(now[0])
            assert gate.wait(10)
            return super().run(inputs, outputs, alone=alone)

    async def runs(count: int) -> None:
        while len(started) < count:  # noqa: ASYNC110  (an executor thread adds to it)
            await asyncio.sleep(0.001)

    def telling(callback: Callable[..., Any], results: Any) -> asyncio.Handle:
        found.append(len(results))
        return tell(callback, results)

    model = Gated(batch_limit=1)
    model.seconds_per_element = 1 / 3
    async with running(model, executors=2, hold=2.0, clock=lambda: now[0]) as scheduler:
        futures = [scheduler.submit(model, rows(1), ["y"])]
        await runs(1)
        now[0] = 0.5
        futures += [scheduler.submit(model, rows(1), ["y"]) for _ in range(5)]
        await runs(2)
        monkeypatch.setattr(loop, "call_soon_threadsafe", telling)
        if late:  # the first executor's batch, which was expected to end at 1
            now[0] = 2.0
            gates[1].set()
            await runs(3)
            assert found == [], "it may end at any moment"
            now[0] = 4.0
            gates[2].set()
            await runs(4)
        else:
            now[0] = 1.0
            gates[0].set()
            await runs(3)  # with three seconds of work for two executors, and half a second until the next is free
            assert found == []
            now[0] = 1.5
            gates[1].set()
            await runs(4)
        assert found == [2]
        monkeypatch.undo()
        for gate in gates:
            gate.set()
        await asyncio.gather(*futures)


class WatchedModel(DoublingModel):
    """Notes which of its runs were in the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.in_loop: list[bool] = []
        self._thread = threading.get_ident()

    def run(self, inputs: Any, outputs: Any, *, alone: bool) -> list[np.ndarray]:
        self.in_loop.append(threading.get_ident() == self._thread)
        return super().run(inputs, outputs, alone=alone)


BRIEF = 3 * 1e-4
"""Seconds that a row of it is expected to take."""


async def at_rest(scheduler: Scheduler) -> None:
    """Return when every executor waits for work: one that has just told of an answer would take the next request."""
    async with asyncio.timeout(10):
        while len(scheduler._work_came._waiters) < scheduler.executors:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def trials(scheduler: Scheduler, model: DoublingModel) -> None:
    """As many lone requests as show that there is but one client."""
    for _ in range(LONE_TRIALS):
        await scheduler.submit(model, rows(1), ["y"])
        await at_rest(scheduler)


async def test_the_event_loop_runs_a_lone_client_s_rows_and_tries_again_whether_it_is_alone():
    model = WatchedModel()
    async with running(model, lone=2 * BRIEF, clock=lambda: 5.0) as scheduler:
        for n in range(2 * (LONE_TRIALS + LONE_RUNS)):
            result = await scheduler.submit(model, rows(*range(n, n + n % 2)), ["y"])
            np.testing.assert_array_equal(result["y"], rows(*range(n, n + n % 2))["x"] * 2)
            await at_rest(scheduler)
        assert model.in_loop == [*[False] * LONE_TRIALS, *[True] * LONE_RUNS] * 2
        await trials(scheduler, model)
        with pytest.raises(InferenceFailed):
            await scheduler.submit(model, rows(POISON), ["y"])
        assert model.in_loop[-1]
    assert (scheduler.counters.succeeded, scheduler.counters.failed) == (2 * LONE_RUNS + 3 * LONE_TRIALS, 1)
    assert (scheduler.running, scheduler.queued) == (0, 0)


async def test_a_lone_client_s_answer_goes_before_what_is_noted_of_its_batch():
    order: list[str] = []

    class Noting:
        def batch_done(self, batch: Batch, waited: list[float], times: BatchTimes) -> None:
            order.append("batch")

        def request_done(self, model: Runnable, seconds: float, error: KronserveError | None) -> None:
            pass

    model = WatchedModel()
    async with running(model, lone=inf, observers=[Noting()]) as scheduler:
        await trials(scheduler, model)
        order.clear()
        future = scheduler.submit(model, rows(1), ["y"])
        future.add_done_callback(lambda _: order.append("answer"))
        await future
        await asyncio.sleep(0)
    assert model.in_loop[-1]
    assert order == ["answer", "batch"]


async def test_executors_run_what_is_not_alone_or_has_several_rows():
    model, other, now = WatchedModel(), DoublingModel("other"), [5.0]
    async with running(model, other, lone=2 * BRIEF, clock=lambda: now[0]) as scheduler:
        await trials(scheduler, model)
        await scheduler.submit(model, rows(1, 2), ["y"])  # two executors do that in the time of one row
        assert True not in model.in_loop
        await at_rest(scheduler)
        await scheduler.submit(model, rows(1), ["y"])
        assert model.in_loop.pop()
        await asyncio.gather(*(scheduler.submit(model, rows(n), ["y"]) for n in range(2)))  # the first seemed alone
        assert True not in model.in_loop
        blocker = await blocked(scheduler, other)
        await scheduler.submit(model, rows(5), ["y"])
        other.gate.set()
        await blocker
        await trials(scheduler, model)
        await scheduler.submit(model, rows(1), ["y"])
        now[0] += COMPANY_SECONDS / 2
        await scheduler.submit(model, rows(1), ["y"])
        assert True not in model.in_loop, "not long ago there was another client"
        now[0] += COMPANY_SECONDS
        await at_rest(scheduler)
        await scheduler.submit(model, rows(1), ["y"])
        assert model.in_loop[-1]


async def test_executors_run_what_comes_while_a_core_works_for_nobody():
    model, other = WatchedModel(), DoublingModel("other")
    async with running(model, other, lone=inf) as scheduler:
        await trials(scheduler, model)
        other.gate.clear()
        abandoned = scheduler.submit(other, rows(1, 2), ["y"])
        async with asyncio.timeout(10):
            while scheduler.running < 2:  # noqa: ASYNC110  (executor threads set it)
                await asyncio.sleep(0.001)
        abandoned.cancel()
        await asyncio.sleep(0)
        future = scheduler.submit(model, rows(1), ["y"])
        await asyncio.sleep(0.01)
        other.gate.set()
        await future
    assert True not in model.in_loop


async def test_the_event_loop_runs_no_row_that_takes_long():
    model = WatchedModel()
    async with running(model, lone=BRIEF / 2) as scheduler:
        await trials(scheduler, model)
        await scheduler.submit(model, rows(1), ["y"])
    assert True not in model.in_loop


async def test_a_request_that_ends_before_the_event_loop_runs_it_is_not_run():
    model = WatchedModel()
    async with running(model, lone=inf) as scheduler:
        await trials(scheduler, model)
        scheduler.submit(model, rows(1), ["y"]).cancel()
        await asyncio.sleep(0.01)
        with pytest.raises(DeadlineExceeded):
            await scheduler.submit(model, rows(2), ["y"], timeout=0.0)
        await scheduler.submit(model, rows(3), ["y"])
    assert model.in_loop == [False] * LONE_TRIALS + [True]
    assert (scheduler.counters.cancelled, scheduler.counters.expired) == (1, 1)


async def test_what_ends_a_run_in_the_event_loop_leaves_nobody_waiting():
    model, dying = DoublingModel(), DyingModel("dying")
    async with running(model, dying, lone=inf) as scheduler:
        await trials(scheduler, model)
        with pytest.raises(DeviceFailed, match="event loop died"):
            await scheduler.submit(dying, rows(1), ["y"])
        with pytest.raises(DeviceFailed):
            scheduler.submit(dying, rows(1), ["y"])


async def test_large_request_wakes_every_idle_executor():
    model = DoublingModel(batch_limit=4)
    async with running(model, executors=3) as scheduler:
        model.gate.clear()
        future = scheduler.submit(model, rows(*range(12)), ["y"])
        for _ in range(1000):
            if scheduler.running == 3:
                break
            await asyncio.sleep(0.001)
        assert scheduler.running == 3
        model.gate.set()
        np.testing.assert_array_equal((await future)["y"], rows(*range(12))["x"] * 2)
    assert model.batches == [4, 4, 4]


async def test_only_the_guilty_requests_of_a_batch_fail():
    model = DoublingModel(batch_limit=16)
    async with running(model, executors=1) as scheduler:
        blocker = await blocked(scheduler, model)
        futures = [scheduler.submit(model, rows(POISON if n in (3, 11) else n), ["y"]) for n in range(16)]
        model.gate.set()
        await blocker
        results = await asyncio.gather(*futures, return_exceptions=True)
    for n, result in enumerate(results):
        if n in (3, 11):
            assert isinstance(result, InferenceFailed)
        else:
            assert isinstance(result, dict)
            np.testing.assert_array_equal(result["y"], rows(n)["x"] * 2)
    assert (scheduler.counters.failed, scheduler.counters.succeeded) == (2, 15)


async def test_deadline_in_the_queue_ends_the_request_and_its_work_is_not_done():
    model = DoublingModel()
    async with running(model, executors=1) as scheduler:
        blocker = await blocked(scheduler, model)
        late = scheduler.submit(model, rows(2), ["y"], timeout=0.02)
        with pytest.raises(DeadlineExceeded):
            await late
        model.gate.set()
        await blocker
    assert model.batches == [1]
    assert scheduler.counters.expired == 1


async def test_a_deadline_ends_a_request_of_which_a_part_has_run():
    """Others of a better priority may go before the rest for as long as they come."""
    model = DoublingModel(batch_limit=1)
    async with running(model, executors=1) as scheduler:
        model.gate.clear()
        late = scheduler.submit(model, rows(1, 2, 3), ["y"], timeout=1.0)
        while not (scheduler.running or late.done()):  # noqa: ASYNC110  (an executor thread sets it)
            await asyncio.sleep(0.001)
        with pytest.raises(DeadlineExceeded):
            await late
        model.gate.set()
        await scheduler.submit(model, rows(4), ["y"])
    assert model.batches == [1, 1]
    assert (scheduler.counters.expired, scheduler.queued) == (1, 0)


async def test_deadlines_in_any_order_end_the_requests_they_are_of_and_none_too_soon():
    model = DoublingModel()
    limits = [0.15, 0.02, *(0.03 + n / 2000 for n in range(100)), 0.01]
    async with running(model, executors=1) as scheduler:
        blocker = await blocked(scheduler, model)
        patient = scheduler.submit(model, rows(1), ["y"], timeout=60.0)

        async def seconds(limit: float) -> float:
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await scheduler.submit(model, rows(2), ["y"], timeout=limit)
            return time.monotonic() - started

        took = await asyncio.gather(*map(seconds, limits))
        assert all(taken >= limit for taken, limit in zip(took, limits, strict=True))
        assert not patient.done()
        model.gate.set()
        await asyncio.gather(blocker, patient)
    assert sum(model.batches) == 2
    assert scheduler.counters.expired == len(limits)


async def test_cancelled_requests_are_not_run():
    model = DoublingModel()
    async with running(model, executors=1) as scheduler:
        blocker = await blocked(scheduler, model)
        gone = scheduler.submit(model, rows(2), ["y"])
        gone.cancel()
        model.gate.set()
        await blocker
    assert model.batches == [1]
    assert scheduler.counters.cancelled == 1
    assert scheduler.queued == 0


async def test_what_belongs_to_a_request_is_admitted_with_it():
    model = DoublingModel()
    model.seconds_per_element = 1.0  # 3 s a row
    scheduler = Scheduler(executors=1, max_wait=1.0, max_requests=100)
    scheduler.start()
    scheduler.register(model)
    first = await blocked(scheduler, model)
    parts = [scheduler.submit(model, rows(n), ["y"], follows=n > 0) for n in range(10)]
    with pytest.raises(Overloaded):
        scheduler.submit(model, rows(1), ["y"])
    model.gate.set()
    await asyncio.gather(first, *parts)
    await scheduler.close(5.0)
    assert scheduler.counters.refused == 1


async def test_queue_limit_refuses_and_counts():
    model = DoublingModel()
    async with running(model, executors=1, max_requests=2) as scheduler:
        first = await blocked(scheduler, model)
        waiting = [scheduler.submit(model, rows(n), ["y"]) for n in range(2)]
        with pytest.raises(Overloaded):
            scheduler.submit(model, rows(9), ["y"])
        with pytest.raises(Overloaded):
            scheduler.check_room(model)
        model.gate.set()
        await asyncio.gather(first, *waiting)
        scheduler.check_room(model)
    assert (scheduler.counters.submitted, scheduler.counters.refused) == (5, 2)


async def test_the_loop_does_not_rest_when_many_are_refused_at_once():
    model, rested, now = DoublingModel(), [], [10.0]
    async with running(model, executors=1, max_requests=1, sleep=rested.append, clock=lambda: now[0]) as scheduler:
        first, second = await blocked(scheduler, model), scheduler.submit(model, rows(1), ["y"])
        for refusals, rests in ((1, 1), (11, 1), (9, 2)):  # ten in 5 ms are a crowd
            now[0] += 0.005
            for _ in range(refusals):
                with pytest.raises(Overloaded):
                    scheduler.check_room(model)
            await asyncio.sleep(0.01)
            assert len(rested) == rests
        model.gate.set()
        await asyncio.gather(first, second)


async def test_the_loop_rests_once_when_all_refusals_of_a_turn_have_left_and_never_for_long():
    model, rested, left = DoublingModel(), [], []
    async with running(model, executors=2, max_requests=1, sleep=rested.append) as scheduler:
        first, second = await blocked(scheduler, model), scheduler.submit(model, rows(1), ["y"])
        while scheduler.queued:  # noqa: ASYNC110  (an executor thread takes it)
            await asyncio.sleep(0.001)
        assert not rested, "nobody was refused"
        for waiting, seconds in ((rows(*range(16)), 16 * 3 * 1e-4 / 2 / 8), (rows(*range(900)), 0.005)):
            third = scheduler.submit(model, waiting, ["y"])
            for _ in range(3):
                with pytest.raises(Overloaded):
                    scheduler.check_room(model)
            asyncio.get_running_loop().call_soon(lambda: left.append(len(rested)))
            await asyncio.sleep(0.01)
            assert rested == [pytest.approx(seconds)]
            assert left == [0], "what was to be sent had its turn before"
            rested.clear()
            left.clear()
            third.cancel()
            await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, second)


async def test_lost_device_fails_what_waits_and_what_comes():
    model = DoublingModel()
    async with running(model) as scheduler:
        with pytest.raises(DeviceFailed):
            await scheduler.submit(model, rows(FATAL), ["y"])
        assert scheduler.device_failure is not None
        with pytest.raises(DeviceFailed):
            scheduler.submit(model, rows(1), ["y"])


async def test_a_dying_executor_leaves_nobody_waiting():
    """What ends a thread is no Exception, or a defect outside the model's run."""
    model, dying = DoublingModel(), DyingModel("dying")
    async with running(model, dying, executors=1) as scheduler:
        held = await blocked(scheduler, model)
        doomed = scheduler.submit(dying, rows(1), ["y"])
        behind = [scheduler.submit(dying, rows(n), ["y"], priority=9) for n in range(5)]
        model.gate.set()
        done, pending = await asyncio.wait([held, doomed, *behind], timeout=10)
        assert not pending
        assert (held.result()["y"] == 2).all()
        assert all(isinstance(future.exception(), DeviceFailed) for future in done - {held})
        with pytest.raises(DeviceFailed, match="executor thread died"):
            scheduler.submit(model, rows(1), ["y"])
    assert (scheduler.counters.submitted, scheduler.counters.succeeded, scheduler.counters.failed) == (7, 1, 6)


async def test_close_answers_what_was_accepted_and_refuses_what_comes():
    model = DoublingModel()
    scheduler = Scheduler(executors=1, max_wait=inf, max_requests=100)
    scheduler.start()
    scheduler.register(model)
    futures = [scheduler.submit(model, rows(n), ["y"]) for n in range(20)]
    await scheduler.close(5.0)
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(Unavailable):
        scheduler.submit(model, rows(1), ["y"])


async def test_close_without_grace_leaves_nothing_pending():
    model = DoublingModel()
    model.gate.clear()
    scheduler = Scheduler(executors=1, max_wait=inf, max_requests=100)
    scheduler.start()
    scheduler.register(model)
    futures = [scheduler.submit(model, rows(n), ["y"]) for n in range(20)]
    closing = asyncio.create_task(scheduler.close(0.05))
    done, pending = await asyncio.wait(futures, timeout=5)
    model.gate.set()
    await closing
    assert not pending
    assert all(isinstance(future.exception(), Unavailable) for future in done)


async def test_executors_with_long_batches_are_waited_for_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.engine.scheduler.JOIN_SECONDS", 0.5)
    model = DoublingModel(batch_limit=1)
    model.gate.clear()
    scheduler = Scheduler(executors=8, max_wait=inf, max_requests=100)
    scheduler.start()
    scheduler.register(model)
    futures = [scheduler.submit(model, rows(n), ["y"]) for n in range(8)]
    while scheduler.running < 8:  # noqa: ASYNC110  (executor threads set it)
        await asyncio.sleep(0.001)
    started = time.monotonic()
    await scheduler.close(0.0)
    took = time.monotonic() - started
    model.gate.set()
    await asyncio.gather(*futures, return_exceptions=True)
    assert 0.5 <= took < 4 * 0.5, "one after the other they take eight times as long"


REQUEST = st.tuples(
    st.sampled_from(["good", "poison", "cancel", "hurry", "pause"]),
    st.integers(0, 9),  # rows
    st.integers(0, 1),  # model
    st.integers(0, 2),  # priority
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(REQUEST, max_size=40),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 1),
    st.sampled_from([0.0, 0.02, inf]),
    st.sampled_from([0.0, inf]),
    st.booleans(),
)
def test_every_request_ends_exactly_once(
    requests: list[tuple], executors: int, limit: int, reserve: int, hold: float, lone: float, abort: bool
):
    async def scenario() -> None:
        models = [DoublingModel("a", batch_limit=limit), DoublingModel("b", batch_limit=limit)]
        bounds: dict[str, Any] = {"max_wait": inf, "max_requests": 30, "reserve": reserve, "hold": hold, "lone": lone}
        if lone:  # time flies, so that the event loop takes what comes alone
            bounds["clock"] = itertools.count().__next__
        scheduler = Scheduler(executors=executors, **bounds)
        scheduler.start()
        for model in models:
            scheduler.register(model)
        await trials(scheduler, models[0])
        accepted = []
        refused = 0
        for kind, count, which, priority in requests:
            if kind == "pause":
                await asyncio.sleep(0.001)
            values = [float(n + 1) for n in range(count)]
            if kind == "poison" and values:
                values[len(values) // 2] = POISON
            timeout = 0.0 if kind == "hurry" else inf
            try:
                future = scheduler.submit(models[which], rows(*values), ["y"], timeout=timeout, priority=priority)
            except Overloaded:
                refused += 1
                continue
            accepted.append((kind, values, future))
            if kind == "cancel":
                future.cancel()
        await scheduler.close(0.0 if abort else 10.0)
        for kind, values, future in accepted:
            assert future.done(), "no future is left pending"
            if future.cancelled():
                assert kind == "cancel"
            elif (error := future.exception()) is not None:
                assert isinstance(error, KronserveError)
                assert abort or kind in ("poison", "hurry")
            else:
                np.testing.assert_array_equal(future.result()["y"], rows(*values)["x"] * 2)
        counters = scheduler.counters
        endings = counters.succeeded + counters.failed + counters.expired + counters.cancelled + counters.aborted
        assert (counters.submitted, counters.refused) == (LONE_TRIALS + len(requests), refused)
        assert endings == LONE_TRIALS + len(accepted)
        assert (scheduler.queued, scheduler.running) == (0, 0)

    asyncio.run(scenario())


async def test_a_request_s_batches_are_noted_before_it_ends_where_that_is_asked_for():
    model = DoublingModel(batch_limit=4)
    async with running(model, executors=1) as scheduler:
        first = await blocked(scheduler, model)
        sliced: list[BatchRun] = []
        guilty: list[BatchRun] = []
        innocent: list[BatchRun] = []
        futures = [
            scheduler.submit(model, rows(*range(9)), ["y"], runs=sliced),
            scheduler.submit(model, rows(1), ["y"]),
            scheduler.submit(model, rows(POISON), ["y"], runs=guilty),
            scheduler.submit(model, rows(2), ["y"], runs=innocent),
        ]
        model.gate.set()
        await asyncio.gather(first, *futures, return_exceptions=True)
    # Nine rows are three batches; what else was in each counts too.
    assert len(sliced) == 3
    assert all(1 <= run.rows <= 4 and run.start <= run.end for run in sliced)
    assert [run.start for run in sliced] == sorted(run.start for run in sliced)
    assert sum(run.rows for run in sliced) >= 9
    assert [run.failed for run in (*sliced, *guilty, *innocent)] == [False, False, False, True, False]


async def test_observers_hear_of_every_ending_once():
    class Watching:
        def __init__(self) -> None:
            self.endings: list[bool] = []
            self.waits = self.rows = 0

        def batch_done(self, batch: Batch, waited: list[float], times: BatchTimes) -> None:
            self.waits += len(waited)
            self.rows += batch.rows
            assert times.stack + times.infer + times.split <= times.whole

        def request_done(self, model: Runnable, seconds: float, error: KronserveError | None) -> None:
            self.endings.append(error is None)

    watching, model = Watching(), DoublingModel(batch_limit=4)
    scheduler = Scheduler(executors=1, max_wait=inf, max_requests=3, observers=[watching])
    scheduler.start()
    scheduler.register(model)
    first = await blocked(scheduler, model)
    long, bad, gone = (scheduler.submit(model, rows(*values), ["y"]) for values in (range(9), [POISON], [1]))
    gone.cancel()
    await asyncio.sleep(0)
    scheduler.submit(model, rows(2), ["y"])
    for refused in (lambda: scheduler.check_room(model), lambda: scheduler.submit(model, rows(3), ["y"])):
        with pytest.raises(Overloaded):
            refused()
    model.gate.set()
    await first
    assert len((await long)["y"]) == 9
    with pytest.raises(InferenceFailed):
        await bad
    await scheduler.close(5.0)
    assert (watching.endings.count(True), watching.endings.count(False)) == (3, 3)
    assert watching.waits == 4, "each admitted request that was run waited once, however many slices it had"
    assert watching.rows == 1 + 9 + 1 + 1


async def test_retired_model_answers_what_it_accepted_and_is_let_go():
    model, other = DoublingModel("old"), DoublingModel("other")
    gone = weakref.ref(model)
    async with running(other) as scheduler:
        scheduler.register(model)
        first = await blocked(scheduler, model)
        waiting = [scheduler.submit(model, rows(*range(n + 1)), ["y"]) for n in range(12)]
        scheduler.retire(model)
        late = scheduler.submit(model, rows(5), ["y"])
        cancelled = scheduler.submit(model, rows(6), ["y"])
        cancelled.cancel()
        model.gate.set()
        np.testing.assert_array_equal((await late)["y"], rows(5)["x"] * 2)
        for n, future in enumerate(waiting):
            np.testing.assert_array_equal((await future)["y"], rows(*range(n + 1))["x"] * 2)
        await first
        after = scheduler.submit(model, rows(7), ["y"])  # its request was decoded before the retirement
        np.testing.assert_array_equal((await after)["y"], rows(7)["x"] * 2)
        del first, waiting, late, cancelled, after, model
        for _ in range(500):
            if gone() is None:
                break
            gc.collect()
            await asyncio.sleep(0.01)
        assert gone() is None


async def test_the_estimate_counts_what_keeps_an_executor_from_its_next_batch():
    """Here the time goes by after the model has run, as it does for threads that wait for the interpreter."""

    class Slow:
        now = 0.0

        def batch_done(self, batch: Batch, waited: list[float], times: BatchTimes) -> None:
            assert times.whole == 0.0
            self.now += 5.0

        def request_done(self, model: Runnable, seconds: float, error: KronserveError | None) -> None:
            pass

    slow, model = Slow(), DoublingModel()
    scheduler = Scheduler(executors=1, max_wait=inf, max_requests=10, observers=[slow], clock=lambda: slow.now)
    scheduler.start()
    scheduler.register(model)
    for _ in range(100):
        await scheduler.submit(model, rows(1), ["y"])
    first = await blocked(scheduler, model)
    second = scheduler.submit(model, rows(2), ["y"])
    assert scheduler.estimated_wait == pytest.approx(5.0, rel=0.01)
    model.gate.set()
    await asyncio.gather(first, second)
    await scheduler.close(5.0)
