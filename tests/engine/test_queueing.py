"""The waiting line's rules, with time and rates given."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.queueing import LEAD_SECONDS, Batch, Entry, WaitingLine
from app.errors import Overloaded


def entry(model: str = "a", lane: str = "s", rows: int = 1, **options: float) -> Entry:
    values = {"arrived": 0.0, "deadline": inf, "priority": 0} | options
    return Entry(model=model, lane=lane, rows=rows, width=10, payload=None, **values)  # type: ignore[arg-type]


def line(
    executors: int = 1,
    max_wait: float = inf,
    max_requests: int = 100,
    limits: dict[str, int] | None = None,
    reserve: int = 0,
):
    waiting = WaitingLine(executors=executors, max_wait=max_wait, max_requests=max_requests, reserve=reserve)
    for model, limit in (limits or {"a": 4}).items():
        waiting.register(model, batch_elements=10 * limit, seconds_per_element=0.01)
    return waiting


def taken(batch: Batch | None) -> list[tuple[Entry, int, int]]:
    assert batch is not None
    return [(part.entry, part.start, part.stop) for part in batch.slices]


def test_batch_takes_the_oldest_of_one_lane_up_to_the_limit():
    waiting = line()
    entries = [entry(lane=lane) for lane in "ststtsss"]
    for item in entries:
        waiting.admit(item)
    first = [item for item, _, _ in taken(waiting.take(0.0))]
    assert first == [entries[0], entries[2], entries[5], entries[6]]
    second = [item for item, _, _ in taken(waiting.take(0.0))]
    assert second == [entries[1], entries[3], entries[4]]


def test_priority_goes_before_age():
    waiting = line(limits={"a": 1})
    late_but_urgent = entry(priority=-1)
    old = entry()
    waiting.admit(old)
    waiting.admit(late_but_urgent)
    assert taken(waiting.take(0.0))[0][0] is late_but_urgent


def test_large_request_is_sliced_and_others_go_between_its_slices():
    waiting = line(limits={"a": 4})
    large, small = entry(rows=10), entry(rows=1)
    waiting.admit(large)
    waiting.admit(small)
    assert taken(waiting.take(0.0)) == [(large, 0, 4)]
    assert taken(waiting.take(0.0)) == [(small, 0, 1), (large, 4, 7)]
    assert taken(waiting.take(0.0)) == [(large, 7, 10)]
    assert waiting.take(0.0) is None
    assert waiting.estimated_wait == pytest.approx(0.0)


def test_a_request_of_medium_size_is_finished_before_the_next():
    """Were the rest of each slice to queue again, all requests of a full queue would be answered at its end."""
    waiting = line(executors=2, limits={"a": 4})
    waiting.register("a", batch_elements=40, seconds_per_element=0.0001)  # 0.001 s a row
    first, second = entry(rows=10), entry(rows=10)
    waiting.admit(first)
    waiting.admit(second)
    order = []
    while (batch := waiting.take(0.0)) is not None:
        order += taken(batch)
    assert [item for item, _, _ in order] == sorted((item for item, _, _ in order), key=[first, second].index)
    for item in (first, second):
        assert [row for of, start, stop in order if of is item for row in range(start, stop)] == list(range(10))
    assert waiting.requests == 0
    assert waiting.estimated_wait == pytest.approx(0.0)


def test_a_large_request_has_its_turn_and_then_lets_others_go_between():
    waiting = line(limits={"a": 4})
    waiting.register("a", batch_elements=40, seconds_per_element=0.001)  # 0.04 s a batch
    large, small = entry(rows=100), entry(rows=1)
    waiting.admit(large)
    waiting.admit(small)
    batches = [taken(waiting.take(0.0)) for _ in range(4)]
    assert batches[:3] == [[(large, 0, 4)], [(large, 4, 8)], [(large, 8, 12)]]
    assert batches[3][0] == (small, 0, 1)


def test_a_burst_is_spread_over_idle_executors():
    waiting = line(executors=2, limits={"a": 8})
    for _ in range(6):
        waiting.admit(entry())
    assert [len(taken(waiting.take(0.0))) for _ in range(2)] == [3, 3]


def test_a_busy_executor_leaves_the_other_its_share():
    """Seven waiting behind one running row: taking all seven would leave the other executor idle after its row."""
    waiting = line(executors=2, limits={"a": 8})
    waiting.admit(entry())
    assert len(taken(waiting.take(0.0))) == 1
    for _ in range(7):
        waiting.admit(entry())
    assert len(taken(waiting.take(0.0))) == 4


def test_a_reserve_keeps_work_for_who_is_free_before_the_answers_bring_more():
    """Eight clients of two executors, each with one request: whenever an executor is free, something waits for it."""
    waiting = line(executors=2, limits={"a": 4}, reserve=1)
    for _ in range(8):
        waiting.admit(entry())
    running = [waiting.take(0.0), waiting.take(0.0)]
    sizes = [batch.rows for batch in running if batch]
    for _ in range(20):
        finished = running.pop(0)
        assert finished is not None
        waiting.done(finished, 0.01)
        running.append(waiting.take(0.0))
        sizes.append(len(taken(running[-1])))
        for _ in range(finished.rows):  # answered, and each sends its next
            waiting.admit(entry())
    assert set(sizes[4:]) <= {2, 3}


def test_a_reserve_leaves_full_batches_to_many_and_one_row_to_a_few():
    waiting = line(executors=2, limits={"a": 4}, reserve=1)
    for _ in range(11):
        waiting.admit(entry())
    assert len(taken(waiting.take(0.0))) == 4
    few = line(executors=2, limits={"a": 4}, reserve=1)
    for _ in range(4):
        few.admit(entry())
    assert [len(taken(few.take(0.0))) for _ in range(4)] == [1, 1, 1, 1]


def test_a_batch_says_why_it_has_no_more_rows():
    waiting = line(executors=2, limits={"a": 4})
    for _ in range(11):
        waiting.admit(entry())
    reasons = []
    while (batch := waiting.take(0.0)) is not None:
        reasons.append((batch.rows, batch.reason))
        waiting.done(batch, 0.0)
    assert reasons == [(4, "full"), (4, "full"), (2, "shared"), (1, "drained")]


def admit(waiting: WaitingLine, model: str, count: int, priority: int = 0) -> None:
    """Queue so many requests of one row."""
    for _ in range(count):
        waiting.admit(entry(model, priority=priority))


def turns(waiting: WaitingLine, count: int, seconds: Mapping[str, float]) -> list[str]:
    """Run so many batches one after another, each as long as its model's take; the models."""
    models = []
    for _ in range(count):
        batch = waiting.take(0.0)
        assert batch is not None
        waiting.done(batch, seconds[batch.model])
        models.append(batch.model)
    return models


def test_models_share_executor_time_not_requests():
    """A slow model with a long queue gives way to a fast one after a single batch."""
    waiting = line(limits={"slow": 1, "fast": 1})
    admit(waiting, "slow", 20)
    admit(waiting, "fast", 20)
    order = turns(waiting, 22, {"slow": 1.0, "fast": 0.1})
    assert order.index("fast") <= 1
    assert order[:12].count("slow") <= 2


def test_a_model_that_was_idle_has_saved_up_nothing():
    waiting = line(limits={"a": 1, "b": 1})
    admit(waiting, "a", 10)
    turns(waiting, 8, {"a": 1.0})
    admit(waiting, "b", 5)
    assert sorted(turns(waiting, 4, {"a": 1.0, "b": 1.0})) == ["a", "a", "b", "b"]


def test_time_received_while_nobody_else_wanted_any_is_not_held_against_a_model():
    waiting = line(limits={"a": 1, "b": 1})
    for _ in range(100):
        waiting.admit(entry("a"))
        turns(waiting, 1, {"a": 1.0})
    admit(waiting, "b", 8)
    admit(waiting, "a", 4)
    order = turns(waiting, 8, {"a": 1.0, "b": 1.0})
    assert order.count("a") == order.count("b") == 4
    assert "bbb" not in "".join(order)


@pytest.mark.parametrize("in_line", [0, 1])
def test_a_batch_that_took_very_long_does_not_shut_its_model_out(in_line: int):
    """As when the process was stopped meanwhile, and another model's requests have come."""
    waiting = line(limits={"a": 1, "b": 1})
    admit(waiting, "a", 1 + in_line)
    batch = waiting.take(0.0)
    assert batch is not None
    admit(waiting, "b", 50)
    waiting.done(batch, 1000.0)
    if not in_line:
        waiting.admit(entry("a"))
    order = turns(waiting, 20, {"a": 0.1, "b": 0.1})
    assert order.index("a") == pytest.approx(LEAD_SECONDS / 0.1, abs=1)


def test_batches_longer_than_the_bound_are_shared_evenly():
    waiting = line(limits={"long": 1, "short": 1})
    waiting.register("long", batch_elements=10, seconds_per_element=0.5)
    admit(waiting, "long", 10)
    admit(waiting, "short", 60)
    assert turns(waiting, 44, {"long": 5.0, "short": 0.5}).count("long") == 4


@given(
    phases=st.lists(
        st.tuples(st.fixed_dictionaries(dict.fromkeys("abc", st.integers(0, 3))), st.integers(1, 60)), max_size=12
    ),
    costs=st.lists(st.sampled_from([0.01, 0.3, 5.0]), min_size=3, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_no_model_waits_for_more_than_the_bound_from_each_other(
    phases: list[tuple[dict[str, int], int]], costs: list[float]
):
    """Phases: how many clients, who come again when they are answered, each model has, and for how many batches."""
    seconds = dict(zip("abc", costs, strict=True))
    waiting = line(limits=dict.fromkeys("abc", 1))
    for model in "abc":
        waiting.register(model, batch_elements=10, seconds_per_element=seconds[model] / 10)
    wanted = dict.fromkeys("abc", 0)
    passed = dict.fromkeys("abc", 0.0)  # executor seconds of others since a model that waits last received any
    for clients, batches in phases:
        for _ in range(batches):
            for model, count in clients.items():
                admit(waiting, model, count - wanted[model])
                wanted[model] = max(count, wanted[model])
            batch = waiting.take(0.0)
            if batch is None:
                continue
            waiting.done(batch, seconds[batch.model])
            wanted[batch.model] -= 1
            for model in wanted:
                passed[model] = passed[model] + seconds[batch.model] if wanted[model] else 0.0
            passed[batch.model] = 0.0
            assert max(passed.values()) <= 2 * (max(LEAD_SECONDS, *costs) + max(costs))


def test_expired_requests_are_set_aside_not_run():
    waiting = line()
    late, fine = entry(deadline=1.0), entry(deadline=3.0)
    waiting.admit(late)
    waiting.admit(fine)
    assert [item for item, _, _ in taken(waiting.take(2.0))] == [fine]
    assert waiting.expired == [late]


def test_admission_by_wait_and_by_count():
    waiting = line(max_wait=0.25)
    waiting.admit(entry(rows=3))  # 30 elements x 0.01 s = 0.3 s of work
    with pytest.raises(Overloaded) as refused:
        waiting.admit(entry())
    assert refused.value.retry_after == pytest.approx(0.3)
    assert refused.value.reason == "queue_wait"
    waiting = line(max_wait=0.36)
    waiting.admit(entry(rows=3))
    waiting.admit(entry())  # 0.3 s are within the budget, and leave something of it
    with pytest.raises(Overloaded):
        waiting.admit(entry())
    waiting = line(max_wait=0.35)
    waiting.admit(entry(rows=3))
    with pytest.raises(Overloaded):
        waiting.admit(entry())
    waiting = line(max_requests=2)
    waiting.admit(entry())
    waiting.admit(entry())
    with pytest.raises(Overloaded) as refused:
        waiting.admit(entry())
    assert refused.value.reason == "queue_length"


def test_rate_follows_what_is_measured():
    waiting = line()
    for _ in range(200):
        waiting.admit(entry())
        batch = waiting.take(0.0)
        assert batch is not None
        waiting.done(batch, 1.0)
        waiting.paced(batch, 5.0)  # it took so much longer until the executor was free
    waiting.admit(entry())
    assert waiting.estimated_wait == pytest.approx(5.0, rel=1e-3)


def test_one_batch_that_took_very_long_says_little_of_the_rate():
    waiting = line()
    waiting.admit(entry())
    batch = waiting.take(0.0)
    assert batch is not None
    waiting.done(batch, 1000.0)
    waiting.paced(batch, 1000.0)
    waiting.admit(entry())
    assert waiting.estimated_wait == pytest.approx(0.13)  # 10 elements x 0.01 s, and a tenth of three times that


def test_the_rate_of_a_model_that_could_not_be_measured_at_its_start_is_found():
    waiting = line()
    waiting.register("unknown", batch_elements=10, seconds_per_element=0.0)
    for _ in range(100):
        waiting.admit(entry("unknown"))
        batch = waiting.take(0.0)
        assert batch is not None
        waiting.paced(batch, 2.0)
        waiting.done(batch, 2.0)
    waiting.admit(entry("unknown"))
    assert waiting.estimated_wait == pytest.approx(2.0, rel=1e-3)


def test_the_wait_for_a_model_has_as_much_of_another_s_queue_as_of_its_own():
    waiting = line(executors=2, limits={"a": 2, "b": 2, "c": 2})
    for model, rows in (("a", 1), ("b", 5), ("b", 1)):
        waiting.admit(entry(model, rows=rows))
    waits = {model: waiting.wait_for(model, 0) for model in "abcd"}
    assert waits == {"a": pytest.approx(0.1), "b": pytest.approx(0.2), "c": 0.0, "d": 0.0}
    waits = {model: waiting.wait_for(model, 0, large=True) for model in "abcd"}
    assert waits == {"a": pytest.approx(0.1), "b": pytest.approx(0.35), "c": 0.0, "d": 0.0}
    while (batch := waiting.take(0.0)) is not None:
        assert max(waiting.wait_for(model, 0, large=True) for model in "ab") == pytest.approx(waiting.estimated_wait)
        waiting.done(batch, 0.0)
    assert waiting.wait_for("a", 0) == waiting.wait_for("b", 0) == 0.0


@pytest.mark.parametrize("executors", [1, 2])
@pytest.mark.parametrize("priority", [0, 1, 2])
def test_the_wait_for_a_model_is_what_a_request_of_it_waits(executors: int, priority: int):
    """Against a simulation: executors run what the line gives them, and all take as long as they were expected to.

    Less is waited where the other model had more of the executors at a better priority, and still owes that.
    """
    waiting = line(executors=executors, limits={"a": 1, "b": 1}, max_requests=1000)
    for model, count, level in (("a", 200, 1), ("b", 40, 1), ("a", 20, 0), ("b", 20, 0), ("a", 30, 2), ("b", 60, 2)):
        admit(waiting, model, count, priority=level)
    expected, newcomer, now = waiting.wait_for("b", priority), entry("b", priority=priority), 0.0
    waiting.admit(newcomer)
    running: list[tuple[float, int, Batch]] = []
    while newcomer.waiting:
        while len(running) < executors and (batch := waiting.take(now)) is not None:
            heapq.heappush(running, (now + batch.expected, id(batch), batch))
        now, _, done = heapq.heappop(running)
        waiting.done(done, done.expected)
    owed = LEAD_SECONDS / executors if priority == 2 else 0.0
    assert expected - owed - 0.2 <= now <= expected + 0.2


@pytest.mark.parametrize("rows", [1, 2, 25])
def test_the_wait_behind_large_requests_is_a_turn_of_each(rows: int):
    """Against a simulation, as above. A large request that comes is answered when all before it are."""
    waiting = line(limits={"a": 2})
    for _ in range(5):
        waiting.admit(entry(rows=20))  # 2 s each, in batches of 0.2
    newcomer, now = entry(rows=rows), 0.0
    expected = waiting.wait_for("a", 0, large=rows == 25)
    assert expected == pytest.approx(10.0 if rows == 25 else 1.0)
    waiting.admit(newcomer)
    while newcomer.taken == 0 if rows < 25 else newcomer.waiting:
        batch = waiting.take(now)
        assert batch is not None
        ended = batch.expected if newcomer.waiting else 0.0
        now += ended
        waiting.done(batch, batch.expected)
    assert now - (batch.expected if rows < 25 else 2.5) == pytest.approx(expected, abs=0.2)


def test_a_request_that_has_had_its_turn_goes_before_others_by_a_batch():
    waiting = line(limits={"a": 1})
    waiting.register("a", batch_elements=10, seconds_per_element=0.001)  # batches of 0.01 s
    for _ in range(4):
        waiting.admit(entry(rows=100))
    for now in range(60):
        assert waiting.take(now) is not None
    assert waiting.wait_for("a", 0) == pytest.approx(0.04)
    newcomer = entry()
    waiting.admit(newcomer)
    assert [taken(waiting.take(60))[0][0] is newcomer for _ in range(5)] == [False] * 4 + [True]


def test_a_request_that_runs_for_long_has_not_stalled():
    waiting = line(max_wait=1.0, limits={"a": 1})
    large = entry(rows=100)
    waiting.admit(large)
    for second in range(1, 10):
        assert waiting.take(second) is not None
        waiting.admit(entry(arrived=float(second)))
        assert waiting.take(second) is not None
    assert large.waiting


def test_what_has_no_rows_or_no_elements_costs_a_run_too():
    waiting = line(max_wait=1.0, limits={"a": 1})
    for rows, width in ((0, 10), (1, 0), (0, 0)):
        item = Entry(model="a", lane=width, rows=rows, width=width, payload=None, arrived=0.0, deadline=inf)
        before = waiting.estimated_wait
        waiting.admit(item)
        assert waiting.estimated_wait - before == pytest.approx(0.01 * max(1, width))
    for _ in range(3):
        batch = waiting.take(0.0)
        assert batch is not None
        waiting.done(batch, 0.0)
    assert waiting.estimated_wait == 0.0


def test_a_model_that_fills_the_queue_keeps_out_no_other():
    waiting = line(max_wait=1.0, limits={"a": 4, "b": 4}, max_requests=1000)
    for model, room in (("a", 9), ("b", 5)):  # 0.1 s each, until 0.85 s are exceeded; of b's wait the other half is a's
        admit(waiting, model, room)
        with pytest.raises(Overloaded) as refused:
            waiting.admit(entry(model))
        assert refused.value.reason == "queue_wait"
        assert refused.value.retry_after == pytest.approx(waiting.wait_for(model, 0))


def test_as_many_requests_as_may_wait_of_one_model_keep_out_no_other_and_nothing_urgent():
    waiting = line(limits={"a": 4, "b": 4}, max_requests=10)
    for model, priority, room in (("a", 1, 10), ("b", 1, 5), ("c", 1, 4), ("a", 0, 1), ("b", 0, 0)):
        waiting.register("c", batch_elements=40, seconds_per_element=0.01)
        admit(waiting, model, room, priority=priority)
        with pytest.raises(Overloaded) as refused:
            waiting.admit(entry(model, priority=priority))
        assert refused.value.reason == "queue_length"
    assert waiting.requests == 20


def test_bulk_work_that_fills_the_queue_keeps_out_nothing_of_a_better_priority():
    waiting = line(max_wait=1.0, limits={"a": 4, "b": 4}, max_requests=1000)
    for model, priority, room in (("a", 7, 9), ("a", 2, 9), ("a", 0, 9), ("b", 0, 5), ("b", 7, 0), ("c", 7, 0)):
        waiting.register("c", batch_elements=40, seconds_per_element=0.01)
        admit(waiting, model, room, priority=priority)
        with pytest.raises(Overloaded) as refused:
            waiting.admit(entry(model, priority=priority))
        assert refused.value.reason == "queue_wait"
        assert refused.value.retry_after == pytest.approx(waiting.wait_for(model, priority))


def test_bulk_work_that_never_had_its_turn_does_not_stall_what_is_urgent():
    waiting = line(max_wait=1.0)
    waiting.admit(entry(priority=1))
    for priority, reason in ((1, "queue_stalled"), (2, "queue_stalled"), (0, None)):
        late = entry(priority=priority, arrived=10.0)
        if reason is None:
            waiting.admit(late)
            assert taken(waiting.take(10.0))[0][0] is late
        else:
            with pytest.raises(Overloaded) as refused:
                waiting.admit(late)
            assert refused.value.reason == reason


def test_levels_of_priority_do_not_add_up():
    waiting = line()
    for priority in range(10_000):
        waiting.admit(entry(priority=priority))
        assert waiting.take(0.0) is not None
    assert len(waiting._lines["a"].levels) < 3


def test_alone_only_when_nothing_else_waits_or_runs():
    waiting = line(executors=2, limits={"a": 1})
    waiting.admit(entry())
    first = waiting.take(0.0)
    assert first is not None
    assert first.alone
    waiting.admit(entry())
    second = waiting.take(0.0)
    assert second is not None
    assert not second.alone


def held(waiting: WaitingLine) -> int:
    """Heap items and lanes that the line keeps."""
    return sum(
        len(kept.order) + sum(1 + len(lane.heap) for lane in kept.lanes.values()) for kept in waiting._lines.values()
    )


def test_requests_that_left_are_not_kept():
    """Clients that disconnect while one request holds the queue."""
    waiting = line()
    waiting.admit(entry())
    for _ in range(5000):
        item = entry()
        waiting.admit(item)
        waiting.discard(item)
    assert waiting.requests == 1
    assert held(waiting) < 500


def test_lanes_that_are_empty_are_not_kept():
    """Ever new shapes while the queue is never empty."""
    waiting = line(limits={"a": 1})
    waiting.admit(entry(lane="first"))
    for number in range(5000):
        waiting.admit(entry(lane=f"shape {number}"))
        batch = waiting.take(0.0)
        assert batch is not None
        waiting.done(batch, 0.001)
    assert waiting.requests == 1
    assert held(waiting) < 500


def test_a_queue_that_stands_still_takes_no_more():
    """The estimate says that nothing waits, the clock says that the device hangs."""
    waiting = line(max_wait=1.0, limits={"a": 4})
    waiting.register("a", batch_elements=40, seconds_per_element=0.0)
    waiting.admit(entry(arrived=0.0))
    waiting.admit(entry(arrived=1.4))
    with pytest.raises(Overloaded, match="stalled"):
        waiting.admit(entry(arrived=1.6))


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple]:
    step = st.one_of(
        st.tuples(
            st.just("admit"),
            st.sampled_from("ab"),
            st.sampled_from("st"),
            st.integers(0, 11),
            st.floats(0.0, 20.0),
            st.integers(0, 2),
        ),
        st.tuples(st.just("take"), st.floats(0.0, 3.0)),
        st.tuples(st.just("discard"), st.integers(0, 50)),
        st.tuples(st.just("done"), st.integers(0, 3)),
    )
    return draw(st.lists(step, max_size=60))


@settings(max_examples=300, deadline=None)
@given(scripts(), st.integers(1, 3), st.integers(1, 5), st.sampled_from([0.01, 0.001]), st.integers(0, 1))
def test_every_row_is_taken_once_expired_or_discarded(
    script: list[tuple], executors: int, limit: int, rate: float, reserve: int
):
    waiting = line(executors=executors, max_requests=20, reserve=reserve)
    for model in "ab":  # at the faster rate, a turn is several batches
        waiting.register(model, batch_elements=10 * limit, seconds_per_element=rate)
    now = 0.0
    admitted: list[Entry] = []
    rows_taken: dict[Entry, list[tuple[int, int]]] = {}
    gone: set[int] = set()
    running: list[Batch] = []

    def take() -> bool:
        batch = waiting.take(now)
        gone.update(id(item) for item in waiting.expired)
        waiting.expired.clear()
        if batch is None:
            return False
        running.append(batch)
        assert len({(part.entry.model, part.entry.lane) for part in batch.slices}) == 1
        assert batch.rows <= limit
        for part in batch.slices:
            assert id(part.entry) not in gone
            rows_taken.setdefault(part.entry, []).append((part.start, part.stop))
        return True

    for step in script:
        match step:
            case "admit", model, lane, rows, patience, priority:
                item = entry(model, lane, rows, arrived=now, deadline=now + patience, priority=priority)
                try:
                    waiting.admit(item)
                except Overloaded:
                    continue
                admitted.append(item)
            case "take", passed:
                now += passed
                take()
            case "discard", index if admitted:
                item = admitted[index % len(admitted)]
                if waiting.discard(item):
                    gone.add(id(item))
            case "done", index if running:
                waiting.done(running.pop(index % len(running)), 0.5)
    while take():
        pass

    assert waiting.requests == 0
    assert waiting.estimated_wait == pytest.approx(0.0, abs=1e-6)
    for item in admitted:
        slices = rows_taken.get(item, [])
        starts = [start for start, _ in slices]
        assert starts == sorted(starts)
        covered = [row for start, stop in slices for row in range(start, stop)]
        assert covered == list(range(len(covered))), "rows in order, none twice"
        if id(item) not in gone:
            assert len(covered) == item.rows
            assert slices, "an empty request is answered too"
