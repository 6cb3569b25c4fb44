"""The waiting line: who is admitted, who runs next, and with whom. No threads, no clock, no futures; time is passed in.

Rules
- Requests wait per model and *lane* (same input shapes past the batch axis, same requested outputs); a batch is taken
  from one lane.
- A free executor takes work at once. Batches grow only because all executors were busy while requests arrived.
- Who is next: the highest priority level; among models, the one that has received the least executor time (so a slow
  model cannot crowd out a fast one); within a model, the oldest request. Time that a model received while no other
  wanted any is not held against it, and no model is ahead by more than `LEAD_SECONDS` or a batch.
- A request with more rows than a batch holds is taken in slices. While it has had less than a turn's time it keeps its
  place, so that medium requests end in order; from then on the rest queues, after each slice, behind those waiting.
- Admission is bounded by the number of requests before the new one and by the estimated wait in seconds. Of what waits
  that counts all of a better priority, the model's own of the same, and of every other model's as much as the executors
  would share with it: a full queue of one model keeps out no other, and one of bulk work nothing that is urgent. Of a
  large request no more than a turn counts for a small one, which goes between its slices then.

Cost is counted in elements of the input tensors, converted to seconds with each model's measured rate.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from typing import Any

from app.errors import Overloaded

STALLED = 1.5
"""An oldest request that has waited this many times the longest wait shows that the estimate is not to be trusted."""

CROWDS = 2
"""Times the most requests before one that may wait in all: of other models and of better priorities, too."""

ADMITTED = 0.85
"""Part of the longest wait up to which work is admitted: the rest is for the estimate's error and the way back."""

TURN_SECONDS = 0.1
"""Executor time after which a request that is taken in slices lets others go first."""

LEAD_SECONDS = 1.0
"""Executor time by which a model may be ahead of the others, if a batch takes no longer: its wait for each of them."""

RATE_SMOOTHING = 0.1
"""Weight of the newest batch in a model's moving average of seconds per element."""

SURPRISE = 4.0
"""In that average a batch counts for at most this many times what it was expected to take.

A machine that stood still for a while would otherwise have the queue refuse what it could well take.
"""


@dataclass(slots=True, eq=False)
class Entry:
    """One request as it waits. `payload` is the caller's; nothing here looks into it."""

    model: Any
    lane: Hashable
    rows: int
    width: int
    """Input elements of one row."""
    payload: Any
    arrived: float
    deadline: float
    priority: int = 0
    taken: int = 0
    """Rows already handed to executors."""
    seconds: float = 0.0
    """Estimated executor time of the rows not yet taken; part of the model's backlog."""
    turn: float = 0.0
    """Of it, what goes before others: the rest of `TURN_SECONDS`, or one batch if that is longer."""
    received: float = 0.0
    """Estimated executor time of the rows taken."""
    waiting: bool = False
    sequence: int = 0

    @property
    def is_large(self) -> bool:
        """Whether it takes more than a turn."""
        return self.turn < self.seconds

    @property
    def rows_left(self) -> int:
        """Rows not yet handed to an executor."""
        return self.rows - self.taken


@dataclass(slots=True, eq=False)
class Slice:
    """Rows [start, stop) of one entry, as a part of a batch."""

    entry: Entry
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Batch:
    """What one executor runs at once: slices of one lane. `alone`: nothing else is waiting or running.

    rows, elements: of the inputs of all slices.
    seconds_per_element: the model's measured rate when it was taken.
    reason: why it has no more rows. "drained": no more were waiting. "full": it holds as many as the model's batch may.
    "shared": the rest is for the executors that will be free next.
    """

    model: Any
    slices: tuple[Slice, ...]
    rows: int
    elements: int
    alone: bool
    seconds_per_element: float
    reason: str

    @property
    def expected(self) -> float:
        """Seconds that it will take."""
        return self.elements * self.seconds_per_element


_Item = tuple[int, int, Entry]
_Heap = list[_Item]


@dataclass(slots=True)
class _Lane:
    """Requests that can share a batch, and the rows that they still wait with."""

    heap: _Heap = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True)
class _Level:
    """What waits of one model's requests of one priority.

    seconds: their estimated executor time. turns: of it, a turn of each.
    """

    waiting: int = 0
    seconds: float = 0.0
    turns: float = 0.0

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        self.waiting += 1
        self.seconds += entry.seconds
        self.turns += entry.turn

    def remove(self, entry: Entry) -> None:
        """Count it no more."""
        self.waiting -= 1
        if self.waiting:
            self.seconds -= entry.seconds
            self.turns -= entry.turn
        else:  # nor what sums of fractions are off by
            self.seconds = self.turns = 0.0


_NOTHING = _Level()


@dataclass(slots=True)
class _Line:
    """Everything waiting for one model."""

    batch_rows: int
    batch_elements: int
    seconds_per_element: float
    used: float = 0.0
    """Executor seconds received, as far as they count against others that want some."""
    order: _Heap = field(default_factory=list)
    lanes: dict[Hashable, _Lane] = field(default_factory=dict)
    waiting: int = 0
    running: int = 0
    """Input elements that executors are working on."""
    levels: dict[int, _Level] = field(default_factory=dict)
    """By priority. Another dictionary when one is added: some ask without the lock."""

    @property
    def active(self) -> bool:
        """Whether it wants executor time, or is receiving some."""
        return self.waiting > 0 or self.running > 0

    @property
    def backlog(self) -> float:
        """Estimated executor time of all that waits."""
        return sum([level.seconds for level in self.levels.values()])

    def at(self, priority: int) -> _Level:
        """What waits with this priority."""
        return self.levels.get(priority, _NOTHING)

    def before(self, priority: int) -> list[_Level]:
        """What waits with a better one."""
        return [level for known, level in self.levels.items() if known < priority]

    def estimate(self, entry: Entry, seconds: float) -> None:
        """Note what is left of an entry."""
        batch = self.seconds_per_element * max(self.batch_elements, entry.width)
        entry.seconds, entry.turn = seconds, min(seconds, max(TURN_SECONDS - entry.received, batch))

    def level(self, priority: int) -> _Level:
        """Where requests of this priority are counted. Levels of which none waits make place for a new one."""
        level = self.levels.get(priority)
        if level is None:
            level = _Level()
            self.levels = {known: other for known, other in self.levels.items() if other.waiting} | {priority: level}
        return level

    def compact(self) -> None:
        """Drop the items of entries that have left, when they outnumber those that wait."""
        self.order = [item for item in self.order if _is_live(item)]
        heapq.heapify(self.order)
        for key, lane in list(self.lanes.items()):
            lane.heap = [item for item in lane.heap if _is_live(item)]
            heapq.heapify(lane.heap)
            if not lane.heap:
                del self.lanes[key]


class WaitingLine:
    """All requests that wait, over all models. Not thread-safe: the scheduler holds a lock around every call.

    reserve: 1 when what waits has to last until the answers bring new requests, else 0 (`Device.reserve`).
    """

    def __init__(self, *, executors: int, max_wait: float, max_requests: int, reserve: int = 0) -> None:
        self._executors, self._reserve = executors, reserve
        self._max_wait = max_wait
        self._max_requests = max_requests
        self._lines: dict[Hashable, _Line] = {}
        """Another dictionary when a model comes or goes: some ask without the lock."""
        self._sequence = count()
        self.requests = 0
        self.running = 0
        self.expired: list[Entry] = []
        """Entries whose deadline passed while they waited, for the caller to collect."""

    def register(
        self, model: Hashable, *, batch_elements: int, seconds_per_element: float, batch_rows: int = 1 << 31
    ) -> None:
        """Make a model known: the input elements that fill a batch, most rows of one, the rate measured at warm-up."""
        self._lines = {**self._lines, model: _Line(batch_rows, batch_elements, seconds_per_element)}

    def forget(self, model: Hashable) -> None:
        """Remove a model that has nothing waiting."""
        self._lines = {known: line for known, line in self._lines.items() if known != model}

    def waiting_for(self, model: Hashable) -> int:
        """Requests of one model that wait."""
        line = self._lines.get(model)
        return line.waiting if line else 0

    @property
    def estimated_wait(self) -> float:
        """Seconds until all that waits has started, by the measured rates: the wait for the model that has the most."""
        return sum([line.backlog for line in self._lines.values()]) / self._executors

    def wait_for(self, model: Hashable, priority: int, *, large: bool = False) -> float:
        """Seconds until a request of this model that arrives now would start, while the executors share their time.

        large: it takes more than a turn itself. Then all of each before it counts, since it waits between its turns.
        """
        line = self._lines.get(model)
        if line is None or not self.requests:
            return 0.0
        level = line.at(priority)
        own = level.seconds if large else level.turns
        ahead = sum([min(own, other.at(priority).seconds) for other in self._lines.values()])
        if priority:
            ahead += sum([level.seconds for other in self._lines.values() for level in other.before(priority)])
        return ahead / self._executors

    def _is_crowded(self, model: Hashable, priority: int) -> bool:
        """Whether as many requests as may be wait before a new one of this kind, counted as its wait is."""
        if self.requests < self._max_requests:
            return False
        if self.requests >= CROWDS * self._max_requests or model not in self._lines:
            return True
        own, lines = self._lines[model].at(priority).waiting, self._lines.values()
        before = sum([level.waiting for other in lines for level in other.before(priority)])
        return before + sum([min(own, other.at(priority).waiting) for other in lines]) >= self._max_requests

    def check_room(self, model: Hashable, priority: int, *, large: bool = False) -> None:
        """Raise Overloaded, with the seconds after which to try again, when no more of this kind is admitted."""
        crowded, wait = self._is_crowded(model, priority), self.wait_for(model, priority, large=large)
        if crowded or wait > ADMITTED * self._max_wait:
            raise Overloaded(
                f"the queue is full ({self.requests} requests, {wait:.2f} s of work); try again later",
                retry_after=self.estimated_wait if crowded else wait,
                reason="queue_length" if crowded else "queue_wait",
            )

    def admit(self, entry: Entry, *, follows: bool = False) -> None:
        """Queue an entry, or raise Overloaded. follows: it is more of a request whose first part was admitted."""
        line = self._lines[entry.model]
        # Without rows or elements it costs a run all the same.
        line.estimate(entry, max(1, entry.rows) * max(1, entry.width) * line.seconds_per_element)
        if not follows:
            self.check_room(entry.model, entry.priority, large=entry.is_large)
            self._check_progress(line, entry)
        if not line.active:
            least = self._least_used(line)
            if least is None:
                least = max(other.used for other in self._lines.values())
            line.used = min(max(least, line.used), _most_used(least, entry.turn))
        self._push(line, entry)

    def _check_progress(self, line: _Line, entry: Entry) -> None:
        """Raise Overloaded when what would run before the entry has waited for too long."""
        _drop_stale(line.order)
        first = line.order[0][2] if line.order else entry
        before = first.priority <= entry.priority and first.received < TURN_SECONDS
        if before and entry.arrived - first.arrived > STALLED * self._max_wait:
            raise Overloaded(
                "the queue has stalled; try again later", retry_after=self._max_wait, reason="queue_stalled"
            )

    def discard(self, entry: Entry) -> bool:
        """Take back an entry whose caller is gone; False when nothing of it is waiting any more."""
        if not entry.waiting:
            return False
        line = self._lines[entry.model]
        self._leave(line, entry)
        if len(line.order) > 2 * line.waiting + 64:
            line.compact()
        return True

    def take(self, now: float) -> Batch | None:
        """The next batch for a free executor, or None. Entries past their deadline move to `expired`."""
        while (model := self._next_model()) is not None:
            line = self._lines[model]
            head = line.order[0][2]
            lane = line.lanes[head.lane]
            slices, reason = self._fill(line, lane, now)
            if not lane.heap:
                del line.lanes[head.lane]
            if slices:
                self.running += 1
                alone = self.requests == 0 and self.running == 1
                rows = sum([part.stop - part.start for part in slices])
                elements = rows * head.width
                line.running += elements
                return Batch(model, slices, rows, elements, alone, line.seconds_per_element, reason)
        return None

    def done(self, batch: Batch, seconds: float) -> None:
        """An executor finished `batch` in `seconds`."""
        self.running -= 1
        line = self._lines.get(batch.model)
        if line is None:
            return
        line.running -= batch.elements
        line.used += seconds
        least = self._least_used(line)
        if least is not None:
            line.used = min(line.used, _most_used(least, batch.expected))

    def paced(self, batch: Batch, seconds: float) -> None:
        """An executor is free for the next batch `seconds` after it took `batch`: the model's rate, by the clock.

        That is more than the batch itself takes where threads wait for the interpreter or for a processor.
        """
        line = self._lines.get(batch.model)
        if line is not None and batch.elements:
            known, rate = line.seconds_per_element, seconds / batch.elements
            if known:
                line.seconds_per_element += RATE_SMOOTHING * (min(rate, SURPRISE * known) - known)
            else:  # the first batch of a model that could not be run at its start
                line.seconds_per_element = rate

    def drain(self) -> list[Entry]:
        """Remove and return everything that waits."""
        left = [item[2] for line in self._lines.values() for item in line.order if _is_live(item)]
        for entry in left:
            self._leave(self._lines[entry.model], entry)
        return left

    def _least_used(self, line: _Line) -> float | None:
        """What the model has received that received least, of the others that want some; None if none does."""
        return min((other.used for other in self._lines.values() if other is not line and other.active), default=None)

    def _push(self, line: _Line, entry: Entry) -> None:
        entry.sequence, entry.waiting = next(self._sequence), True
        item = (entry.priority, entry.sequence, entry)
        heapq.heappush(line.order, item)
        lane = line.lanes.get(entry.lane)
        if lane is None:
            lane = line.lanes[entry.lane] = _Lane()
        heapq.heappush(lane.heap, item)
        lane.rows += entry.rows_left
        line.waiting += 1
        line.level(entry.priority).add(entry)
        self.requests += 1

    def _leave(self, line: _Line, entry: Entry) -> None:
        """The entry stops waiting; its heap items are dropped when they surface."""
        entry.waiting = False
        line.lanes[entry.lane].rows -= entry.rows_left
        line.waiting -= 1
        self.requests -= 1
        line.levels[entry.priority].remove(entry)
        entry.seconds = 0.0

    def _next_model(self) -> Hashable | None:
        best: tuple[int, float, int] | None = None
        chosen: Hashable | None = None
        for model, line in self._lines.items():
            _drop_stale(line.order)
            if not line.order:
                line.lanes.clear()
                continue
            priority, sequence, _ = line.order[0]
            rank = (priority, line.used, sequence)
            if best is None or rank < best:
                best, chosen = rank, model
        return chosen

    def _fill(self, line: _Line, lane: _Lane, now: float) -> tuple[tuple[Slice, ...], str]:
        """Rows from the head of one lane: a batch full, or one executor's share of the model's work if that is less.

        With them `Batch.reason`. What is left of the lane begins with a live entry.

        Whoever took all that waits would leave the next executor idle until the answers bring new requests. With a
        reserve, one more share of the work than there are executors is meant to wait for that.
        """
        width = max(1, lane.heap[0][2].width)
        limit = max(1, min(line.batch_rows, line.batch_elements // width))
        work = lane.rows + line.running / width
        share = max(1, ceil((work - self._reserve) / (self._executors + self._reserve)))
        room = min(limit, share)
        slices: list[Slice] = []
        while room > 0:
            _drop_stale(lane.heap)
            if not lane.heap:
                break
            entry = lane.heap[0][2]
            if entry.deadline <= now:
                self._leave(line, entry)
                self.expired.append(entry)
                continue
            left = entry.rows_left
            if slices and room < left <= limit:
                break  # it fits the next batch whole
            rows = min(left, room)
            slices.append(Slice(entry, entry.taken, entry.taken + rows))
            cost = entry.seconds * rows / left if left else 0.0
            rest = entry.seconds - cost
            entry.received += cost
            if rows < left and entry.received < TURN_SECONDS:
                entry.taken += rows
                lane.rows -= rows
                level = line.levels[entry.priority]
                level.remove(entry)
                line.estimate(entry, rest)
                level.add(entry)
                break
            self._leave(line, entry)
            entry.taken += rows
            room -= max(rows, 1)
            if entry.taken < entry.rows:
                line.estimate(entry, rest)
                self._push(line, entry)
                break
        _drop_stale(lane.heap)
        reason = "drained" if not lane.heap else "full" if limit <= share else "shared"
        return tuple(slices), reason


def _most_used(least: float, batch_seconds: float) -> float:
    """What counts of the time that a model with such batches received, when the one with the least received that."""
    return least + max(LEAD_SECONDS, batch_seconds)


def _is_live(item: _Item) -> bool:
    """Whether a heap item still stands for its entry, which may have left, or queued again behind others."""
    return item[2].waiting and item[2].sequence == item[1]


def _drop_stale(heap: _Heap) -> None:
    while heap and not _is_live(heap[0]):
        heapq.heappop(heap)
