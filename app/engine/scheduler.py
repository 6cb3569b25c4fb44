"""Requests in, answers out: executor threads pull batches from the waiting line and run them on ONNX Runtime.

An executor that becomes free takes its next batch itself, under one lock, without a turn of the event loop; the loop
only hears of finished batches. Every request's future ends exactly once: with its outputs, an error of `app.errors`, or
its caller's cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf, prod
from typing import NamedTuple, Protocol

import numpy as np

from app.engine.queueing import Batch, Entry, Slice, WaitingLine
from app.errors import DeadlineExceeded, DeviceFailed, InferenceFailed, KronserveError, Unavailable

logger = logging.getLogger(__name__)

MOST_RUNS = 64
"""Batches of one request that are noted for its caller."""

REST_SECONDS, REST_SHARE = 0.005, 1 / 8
"""How long the event loop rests once it has refused somebody, and at most what part of the work that waits.

Who is refused may be back at once. Heard one by one, they would each wake the loop on a processor that is computing;
heard together they cost less, and the executors have enough to do meanwhile.
"""

CROWD = 2000
"""Refusals a second from which on the loop does not rest: it hears many at once without."""

HOLD_SHARE = 1 / 2
"""An answer is held for at most this share of the wait of a new request of its model and priority: without a queue, not
at all."""

LONE_TRIALS, LONE_RUNS = 4, 32
"""Of requests in a row that each came when no other was on its way, executors run the first, the event loop the next.

While it does, it hears nobody, and several clients would be served one by one. Whether there are several shows when it
runs none, so after `LONE_RUNS` it tries again.
"""

EXPIRY_SECONDS = 0.005
"""Deadlines are looked after together, at least this long apart: a timer for each would cost every request."""

JOIN_SECONDS = 1.0
"""How long executors whose batches go on are waited for when the scheduler is closed."""

COMPANY_SECONDS = 0.1
"""How long the event loop runs nothing once a request came while another was on its way."""

Tensor = np.ndarray
Tensors = dict[str, Tensor]
Result = tuple[Slice, list[Tensor] | KronserveError]
"""What became of one slice: the requested outputs' rows, or the error."""


class Runnable(Protocol):
    """What the scheduler needs of a loaded model (`app.engine.runtime.Model`)."""

    name: str
    version: str

    def __hash__(self) -> int: ...

    @property
    def batch_elements(self) -> int:
        """Input elements that fill a batch; rows of any width count by their elements."""

    @property
    def batch_rows(self) -> int:
        """Most rows of one batch, however narrow."""

    @property
    def batched(self) -> bool:
        """Whether the first axis of every input and output is the batch."""

    @property
    def seconds_per_element(self) -> float: ...

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str], *, alone: bool) -> list[Tensor]:
        """Run one batch. Raises InferenceFailed, or DeviceFailed when the device cannot be used again."""


class BatchRun(NamedTuple):
    """A batch that a request was in: when it ran, by the scheduler's clock, and the rows of all that were in it.

    failed: whether the request failed in it.
    """

    start: float
    end: float
    rows: int
    failed: bool


@dataclass(slots=True, eq=False)
class Request:
    """One submitted request: its tensors, where its rows go, and the future that its caller awaits."""

    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    future: asyncio.Future[Tensors]
    parts: dict[int, list[Tensor]] = field(default_factory=dict)
    """Finished slices by their first row."""
    rows_left: int = 0
    """Rows without a result yet, of a request that runs in several slices."""
    runs: list[BatchRun] | None = None
    """Where the caller wants its batches noted."""


@dataclass(slots=True)
class Counters:
    """Totals since start; every submitted request is counted in exactly one of the endings."""

    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    aborted: int = 0
    """Still waiting when the grace of a shutdown ended."""


@dataclass(slots=True)
class BatchTimes:
    """Seconds that one batch took: all of it, and in it joining the inputs, running the model, parting the outputs."""

    whole: float = 0.0
    stack: float = 0.0
    infer: float = 0.0
    split: float = 0.0


class _Outcome(NamedTuple):
    """What became of a batch: of each slice, when it began, and what it took.

    clean: whether all went well, so that the time says something of the model's rate.
    """

    results: list[Result]
    clean: bool
    started: float
    times: BatchTimes


class Observer(Protocol):
    """Told of what happens, from executor threads and from the event loop."""

    def batch_done(self, batch: Batch, waited: list[float], times: BatchTimes) -> None:
        """A batch was run; `waited`: seconds in the queue of each request that began in it."""

    def request_done(self, model: Runnable, seconds: float, error: KronserveError | None) -> None:
        """A request ended `seconds` after it arrived, 0 when it was not admitted. error: why, if not by an answer."""


class Scheduler:
    """Bounded admission, batching, deadlines and cancellation over a fixed set of executor threads.

    executors: threads that run batches. max_wait: longest estimated wait at admission, seconds. max_requests: most
    requests that may wait. reserve: as `WaitingLine` has it. hold: longest time for which an answer waits for others
    that the event loop is told of with it, seconds. lone: longest expected time, seconds, of a lone client's row that
    the event loop runs itself. clock, sleep: of monotonic seconds, for tests.
    """

    def __init__(
        self,
        *,
        executors: int,
        max_wait: float,
        max_requests: int,
        reserve: int = 0,
        hold: float = 0.0,
        lone: float = 0.0,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._line = WaitingLine(executors=executors, max_wait=max_wait, max_requests=max_requests, reserve=reserve)
        self._executors, self._hold = executors, hold
        self._observers = tuple(observers)
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        """Of the waiting line, and of slices' results that are not all there."""
        self._work_came = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox = _Outbox()
        self._ends = [inf] * executors
        """When the batch that each executor runs is expected to end."""
        self._lone_seconds = lone
        self._lone: asyncio.Handle | None = None
        """The event loop's run of the only request, until it begins."""
        self._alone_in_a_row, self._company_until = 0, -inf
        """Requests since the last that came while another was on its way, and until when such are reckoned with."""
        self._stopping = False
        self._closed = False
        self._in_flight: set[Entry] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._expires, self._expired = inf, -inf
        """When deadlines are looked after next, and when they last were."""
        self._rested, self._refusals = 0.0, 0
        """When the loop last could have rested, and the refusals since: from the first on, it is about to."""
        self._retiring: set[Runnable] = set()
        self.counters = Counters()
        self.device_failure: str | None = None
        """Why no batch can be run any more; the process has to be started anew."""

    def start(self) -> None:
        """Start the executor threads; call from the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._executors):
            thread = threading.Thread(target=self._work, args=[number], name=f"executor-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def register(self, model: Runnable) -> None:
        """Make a model known to the line."""
        with self._lock:
            self._add_line(model)

    def _add_line(self, model: Runnable) -> None:
        self._line.register(
            model,
            batch_rows=model.batch_rows,
            batch_elements=model.batch_elements,
            seconds_per_element=model.seconds_per_element,
        )

    def retire(self, model: Runnable) -> None:
        """Forget a model as soon as nothing of it waits. Its requests that were decoded by now are still taken."""
        with self._lock:
            self._retiring.add(model)
            self._forget_idle()

    @property
    def executors(self) -> int:
        return self._executors

    @property
    def queued(self) -> int:
        """Requests that wait now."""
        return self._line.requests

    @property
    def running(self) -> int:
        """Batches that run now."""
        return self._line.running

    @property
    def estimated_wait(self) -> float:
        """Seconds until all that waits has started."""
        return self._line.estimated_wait

    def check_room(self, model: Runnable) -> None:
        """Refuse a request before it is decoded when the queue is full: Overloaded, and counted as refused.

        Its priority is not known by then: it is refused if one of the best would be.
        """
        try:
            self._line.check_room(model, 0)
        except KronserveError as error:
            self.counters.submitted += 1
            self._refused(model, error)
            raise

    def submit(
        self,
        model: Runnable,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        *,
        timeout: float = inf,
        priority: int = 0,
        runs: list[BatchRun] | None = None,
        follows: bool = False,
    ) -> asyncio.Future[Tensors]:
        """Queue one validated request; from the event loop only. Cancel the future when its caller has gone.

        inputs: every input of the model; with a batch axis, all of the same number of rows (0 is legal).
        outputs: names of the wanted outputs. timeout: seconds that it may wait in the queue. priority: lower is first.
        runs: the batches that it was in are added here, the first `MOST_RUNS`, before the future ends. follows: it is
        one of several that make up one request of a caller, and not the first: it is admitted with that.
        Raises Overloaded (queue full), Unavailable (shutting down), DeviceFailed. The future may end with
        DeadlineExceeded, InferenceFailed, DeviceFailed or Unavailable.
        """
        assert self._loop is not None, "start() comes first"
        if self._closed:
            raise Unavailable("the server is shutting down")
        if self.device_failure is not None:
            raise DeviceFailed(self.device_failure)
        now = self._clock()
        if model.batched:
            shapes = [tensor.shape[1:] for tensor in inputs.values()]
            rows, width = len(next(iter(inputs.values()))), sum(map(prod, shapes))
            lane: Hashable = (tuple(outputs), *shapes)
        else:
            rows, width, lane = 1, sum(tensor.size for tensor in inputs.values()), object()
        request = Request(inputs, tuple(outputs), self._loop.create_future(), rows_left=rows, runs=runs)
        entry = Entry(
            model=model,
            lane=lane,
            rows=rows,
            width=width,
            payload=request,
            arrived=now,
            deadline=now + timeout,
            priority=priority,
        )
        self.counters.submitted += 1
        with self._lock:
            try:
                try:
                    self._line.admit(entry, follows=follows)
                except KeyError:  # retired while this request was decoded
                    self._add_line(model)
                    self._retiring.add(model)
                    self._line.admit(entry, follows=follows)
            except KronserveError as error:
                self._refused(model, error)
                raise
            if self._in_flight:
                self._alone_in_a_row, self._company_until = 0, now + COMPANY_SECONDS
            else:
                self._alone_in_a_row += 1
            self._in_flight.add(entry)
            self._send_for(entry)
        if entry.deadline < self._expires:
            self._expire_at(entry.deadline, now)
        request.future.add_done_callback(partial(self._ended, entry))
        return request.future

    def _send_for(self, entry: Entry) -> None:
        """Have a queued request run, by the event loop itself if it is a lone client's, or by an executor."""
        assert self._loop is not None
        if self._lone is not None:  # for the one before, which is not alone any more
            self._lone.cancel()
            self._lone = None
            self._work_came.notify(2)
        elif self._is_lone(entry):
            self._lone = self._loop.call_soon(self._run_lone)
        else:
            self._work_came.notify()

    def _is_lone(self, entry: Entry) -> bool:
        if self._line.running or entry.rows > 1 or entry.seconds >= self._lone_seconds:
            return False
        tried = (self._alone_in_a_row - 1) % (LONE_TRIALS + LONE_RUNS) >= LONE_TRIALS
        return tried and entry.arrived >= self._company_until

    async def close(self, grace: float) -> None:
        """Answer what was accepted, for at most `grace` seconds; then fail the rest and stop the executors."""
        self._closed = True
        pending = [entry.payload.future for entry in self._in_flight]
        if pending:
            await asyncio.wait(pending, timeout=grace)
        self.abort()
        with self._lock:
            self._line.drain()
            self._stopping = True
            self._work_came.notify_all()
        await asyncio.to_thread(self._join, time.monotonic() + JOIN_SECONDS)

    def _join(self, until: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def abort(self) -> None:
        """Accept nothing more, and end what was accepted with Unavailable now; from the event loop."""
        self._closed = True
        for entry in list(self._in_flight):
            self._fail(entry, Unavailable("the server is shutting down"))

    # -- on the event loop -------------------------------------------------------------------------------------------

    def _refused(self, model: Runnable, error: KronserveError) -> None:
        """Bookkeeping for a request that the full line does not take; the loop rests when all refusals have left."""
        self.counters.refused += 1
        self._report(model, 0.0, error)
        self._refusals += 1
        if self._refusals == 1 and self._loop is not None:
            self._loop.call_soon(self._loop.call_soon, self._rest)

    def _run_lone(self) -> None:
        """Run the only request here: no thread has to be woken for it, nor the event loop for its answer."""
        assert self._loop is not None
        self._lone = None
        taken = self._clock()
        with self._lock:
            batch, expired = self._take(taken)
        self._deliver(expired)
        if batch is None:  # its client has left, or it came too late
            return
        try:
            outcome = self._run(batch, lambda: None)
        except BaseException as error:
            self._died("a run in the event loop", error)
            return
        if outcome.clean:
            with self._lock:
                self._line.paced(batch, self._clock() - taken)
        self._deliver(list(self._completed(outcome.results)))
        self._loop.call_soon(self._tell, batch, outcome)  # once the answer is written

    def _rest(self) -> None:
        now = self._clock()
        crowded = self._refusals > CROWD * (now - self._rested)
        self._rested, self._refusals = now, 0
        if not crowded:
            self._sleep(min(REST_SECONDS, REST_SHARE * self._line.estimated_wait))

    def _ended(self, entry: Entry, future: asyncio.Future[Tensors]) -> None:
        """Bookkeeping when a request's future ends, however it ends."""
        self._in_flight.discard(entry)
        request: Request = entry.payload
        request.parts.clear()
        request.inputs = {}
        with self._lock:
            self._line.discard(entry)
            if self._retiring:
                self._forget_idle()
        counters = self.counters
        if future.cancelled():
            counters.cancelled += 1
            return
        error = future.exception()
        assert error is None or isinstance(error, KronserveError), "nothing else is put into a future"
        self._report(entry.model, self._clock() - entry.arrived, error)
        match error:
            case None:
                counters.succeeded += 1
            case DeadlineExceeded():
                counters.expired += 1
            case Unavailable():
                counters.aborted += 1
            case _:
                counters.failed += 1

    def _report(self, model: Runnable, seconds: float, error: KronserveError | None) -> None:
        for observer in self._observers:
            observer.request_done(model, seconds, error)

    def _forget_idle(self) -> None:
        for model in [model for model in self._retiring if not self._line.waiting_for(model)]:
            self._line.forget(model)
            self._retiring.discard(model)

    def _expire_at(self, deadline: float, now: float) -> None:
        """Look after deadlines when this one passes, but not all the time."""
        assert self._loop is not None
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires = max(deadline, self._expired + EXPIRY_SECONDS)
        self._expiry = self._loop.call_later(self._expires - now, self._expire)

    def _expire(self) -> None:
        """The requests whose deadline has passed and of which something still waits end here."""
        now = self._clock()
        self._expiry, self._expires, self._expired = None, inf, now
        with self._lock:
            waiting = [entry for entry in self._in_flight if entry.waiting]
        for entry in waiting:
            if entry.deadline <= now:
                self._fail(entry, _deadline_exceeded(entry))
        left = min((entry.deadline for entry in waiting if entry.deadline > now), default=inf)
        if left < inf:
            self._expire_at(left, now)

    def _fail(self, entry: Entry, error: KronserveError) -> None:
        future: asyncio.Future[Tensors] = entry.payload.future
        if not future.done():
            future.set_exception(error)

    def _abandon(self, reason: str) -> None:
        """Fail everything that was accepted and has not ended."""
        for entry in list(self._in_flight):
            self._fail(entry, DeviceFailed(reason))

    def _deliver(self, finished: Iterable[Result]) -> None:
        """End the requests that these results complete."""
        for part, result in finished:
            request: Request = part.entry.payload
            if isinstance(result, KronserveError):
                self._fail(part.entry, result)
            elif not request.future.done():
                request.future.set_result(dict(zip(request.outputs, result, strict=True)))

    # -- on an executor thread ---------------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        """A thread that ends before its time leaves nobody waiting; the process is not live any more."""
        assert self._loop is not None
        try:
            self._execute(number, self._loop)
        except BaseException as error:
            self._died("an executor thread", error)

    def _died(self, who: str, error: BaseException) -> None:
        assert self._loop is not None
        self.device_failure = f"{who} died"
        logger.critical(self.device_failure, exc_info=error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._abandon, self.device_failure)

    def _take(self, now: float) -> tuple[Batch | None, list[Result]]:
        """The next batch if anything waits, and the errors of those whose deadline had passed; under the lock."""
        batch = self._line.take(now)
        expired, self._line.expired = self._line.expired, []
        if self._line.requests:
            self._work_came.notify()  # what this batch leaves behind is for the next idle executor
        return batch, [(Slice(entry, 0, entry.rows), _deadline_exceeded(entry)) for entry in expired]

    def _execute(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        taken, clean = self._clock(), False
        batch: Batch | None = None
        outbox = self._outbox
        while True:
            with self._lock:
                if batch is not None and clean:
                    self._line.paced(batch, self._clock() - taken)
                batch, expired = self._take(self._clock())
                taken = self._clock()
                if batch is None and not expired and outbox.empty:
                    if self._stopping:
                        return
                    self._work_came.wait()
                    continue
            outbox.put(expired, taken)
            if batch is not None:
                outcome = self._run(batch, partial(self._prepared, number, batch, loop))
                self._tell(batch, outcome)
                clean = outcome.clean
                self._ends[number] = inf
                outbox.put(list(self._completed(outcome.results)), self._clock())
                del outcome
            else:
                self._hand_over(loop)
            del expired  # while it waits for work, a thread must not keep a retired model alive

    def _prepared(self, number: int, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """Before the model runs: tell the loop what is finished, unless that has time until a running batch is too."""
        now = self._clock()
        self._ends[number] = now + batch.expected
        held = max(now, min(self._ends)) - self._outbox.since  # who is late may be done at any moment
        queued = min([self._line.wait_for(*kind) for kind in self._outbox.kinds], default=0.0)
        if not queued or batch.expected > self._hold or held > min(self._hold, HOLD_SHARE * queued):
            self._hand_over(loop)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell the event loop what is finished; most slices of a large request end nothing."""
        if results := self._outbox.take():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._deliver, results)

    def _run(self, batch: Batch, ready: Callable[[], None]) -> _Outcome:
        """Run a batch, halved where that is needed.

        ready: called when all is prepared and the model runs next, unless nothing is to be run.
        """
        started = self._clock()
        clean = True
        times = BatchTimes()
        try:
            finished = self._run_slices(batch.model, batch.slices, times, ready, alone=batch.alone)
            failed = any(isinstance(result, KronserveError) for _, result in finished)
            clean = not failed and len(finished) == len(batch.slices)  # who left was not run
        except Exception as error:  # a defect here must not take the executor or the requests with it
            logger.exception("executor failed outside the model")
            failure = InferenceFailed(f"internal error: {type(error).__name__}")
            finished = [(part, failure) for part in batch.slices]
            clean = False
        times.whole = self._clock() - started
        with self._lock:
            self._line.done(batch, times.whole)
        guilty = set() if clean else {part.entry for part, result in finished if isinstance(result, KronserveError)}
        for part in batch.slices:
            runs = part.entry.payload.runs
            if runs is not None and len(runs) < MOST_RUNS:
                runs.append(BatchRun(started, started + times.whole, batch.rows, part.entry in guilty))
        return _Outcome(finished, clean, started, times)

    def _tell(self, batch: Batch, outcome: _Outcome) -> None:
        """Tell the observers of a batch."""
        waited = [outcome.started - part.entry.arrived for part in batch.slices if part.start == 0]
        for observer in self._observers:
            try:
                observer.batch_done(batch, waited, outcome.times)
            except Exception:  # whoever only watches must not cost anybody an answer
                logger.exception("an observer failed")

    def _completed(self, results: Iterable[Result]) -> Iterator[Result]:
        """The results that end a request: errors, whole requests, and those whose last slice this is, put together."""
        for part, result in results:
            request: Request = part.entry.payload
            if isinstance(result, KronserveError) or part.stop - part.start == part.entry.rows:
                yield part, result
                continue
            with self._lock:
                request.parts[part.start] = result
                request.rows_left -= part.stop - part.start
                if request.rows_left:
                    continue
                ordered = [request.parts[start] for start in sorted(request.parts)]
            try:
                yield part, [np.concatenate(pieces) for pieces in zip(*ordered, strict=True)]
            except MemoryError:
                yield part, InferenceFailed("not enough memory to put the answer together")

    def _run_slices(
        self, model: Runnable, slices: Sequence[Slice], times: BatchTimes, ready: Callable[[], None], *, alone: bool
    ) -> list[Result]:
        """Run slices as one batch; when that fails, halve it until only the guilty requests are left with the error."""
        # Inputs are read once: those of a request that ends in the meantime are taken away.
        waiting = [(part, part.entry.payload.inputs) for part in slices if not part.entry.payload.future.done()]
        waiting = [(part, inputs) for part, inputs in waiting if inputs]
        if not waiting:
            return []
        live = [part for part, _ in waiting]
        outputs = live[0].entry.payload.outputs
        begun = self._clock()
        stacked = _stack(model, waiting)
        prepared = self._clock()
        times.stack += prepared - begun
        ready()
        try:
            results = model.run(stacked, outputs, alone=alone)
        except DeviceFailed as error:
            self.device_failure = error.message
            return [(part, error) for part in live]
        except InferenceFailed as error:
            if len(live) == 1:
                return [(live[0], error)]
            middle = len(live) // 2
            return [
                *self._run_slices(model, live[:middle], times, ready, alone=alone),
                *self._run_slices(model, live[middle:], times, ready, alone=alone),
            ]
        done = self._clock()
        times.infer += done - prepared
        if len(live) == 1:
            return [(live[0], results)]
        split: list[Result] = []
        start = 0
        for part in live:
            stop = start + part.stop - part.start
            split.append((part, [tensor[start:stop] for tensor in results]))
            start = stop
        times.split += self._clock() - done
        return split


class _Outbox:
    """Finished requests, of all executors, that the event loop has not been told of.

    Told at once, the loop would wake while the executor prepares its next batch, and ask for the interpreter when no
    model runs without one. Told one by one, it would find its caches cold each time.
    """

    def __init__(self) -> None:
        self._results: list[Result] = []
        self._lock = threading.Lock()
        self.since = inf
        """When the first of them came."""

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return not self._results

    @property
    def kinds(self) -> set[tuple[Runnable, int]]:
        """Of which models and priorities they are."""
        with self._lock:
            return {(part.entry.model, part.entry.priority) for part, _ in self._results}

    def put(self, results: list[Result], now: float) -> None:
        """Add these."""
        if results:
            with self._lock:
                self.since = min(self.since, now)
                self._results += results

    def take(self) -> list[Result]:
        """All of them, which are no longer here."""
        if not self._results:
            return []
        with self._lock:
            results, self._results, self.since = self._results, [], inf
            return results


def _stack(model: Runnable, slices: Sequence[tuple[Slice, Mapping[str, Tensor]]]) -> Mapping[str, Tensor]:
    """The batch's input tensors: the slices' rows one after another."""
    part, first = slices[0]
    if not model.batched:
        return first
    if len(slices) == 1:
        if part.stop - part.start == part.entry.rows:
            return first
        return {name: tensor[part.start : part.stop] for name, tensor in first.items()}
    return {name: np.concatenate([inputs[name][part.start : part.stop] for part, inputs in slices]) for name in first}


def _deadline_exceeded(entry: Entry) -> DeadlineExceeded:
    return DeadlineExceeded(f"waited {entry.deadline - entry.arrived:g} s in the queue, its deadline passed")
