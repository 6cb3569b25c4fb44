"""What is noted of one request that is traced: when it was decoded, waited, ran and was encoded.

Only times; `app.tracing` makes spans of them when the request is over. Without tracing there is no timeline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from app.engine.scheduler import BatchRun, Runnable

LONGEST = 64
"""Most pieces of work of one request that are noted."""

_KEY = "kronserve.timeline"
"""Where an ASGI scope has it."""


class Phase(NamedTuple):
    """A part of the request's time, monotonic seconds.

    rows: of the batch, where it is one. failed: whether the request failed in that batch.
    """

    name: str
    start: float
    end: float
    rows: int | None = None
    failed: bool = False


@dataclass(slots=True)
class Timeline:
    """One request. parent: the caller's trace, for `app.tracing` alone to look into. model: name and version.

    It may outlive the request in an idle connection, so it holds nothing large.
    """

    parent: Any
    began: float = field(default_factory=time.monotonic)
    began_ns: int = field(default_factory=time.time_ns)
    """The same moment since 1970, nanoseconds."""
    model: tuple[str, str] | None = None
    decoding: float | None = None
    encoding: float | None = None
    _work: list[tuple[float, list[BatchRun]]] = field(default_factory=list)

    def belongs_to(self, model: Runnable) -> None:
        """The request is for this model."""
        self.model = model.name, model.version

    def decode(self) -> None:
        """The request is here, and is decoded from now on."""
        self.decoding = time.monotonic()

    def queue(self) -> list[BatchRun] | None:
        """A piece of work is queued now; the scheduler adds each batch that it is in to the list."""
        self.encoding = None
        if len(self._work) >= LONGEST:
            return None
        runs: list[BatchRun] = []
        self._work.append((time.monotonic(), runs))
        return runs

    def encode(self) -> None:
        """All that was queued has been answered; unless more is queued, the answer is written from now on."""
        self.encoding = time.monotonic()

    def nanoseconds(self, moment: float) -> int:
        """A monotonic time as nanoseconds since 1970."""
        return self.began_ns + round((moment - self.began) * 1e9)

    def phases(self) -> Iterator[Phase]:
        """What the request went through until now, in order; the last one is where it ended."""
        work = [(queued, list(runs)) for queued, runs in self._work]
        now = time.monotonic()
        if self.decoding is not None:
            yield Phase("decode", self.decoding, work[0][0] if work else now)
        for queued, runs in work:
            yield Phase("queue", queued, runs[0].start if runs else now)
            for run in runs:
                yield Phase("compute", run.start, run.end, run.rows, run.failed)
        if self.encoding is not None:
            yield Phase("encode", self.encoding, now)


def attach(scope: MutableMapping[str, Any], timeline: Timeline) -> None:
    """Keep the timeline with an ASGI request."""
    scope[_KEY] = timeline


def timeline_of(scope: MutableMapping[str, Any]) -> Timeline | None:
    """The timeline of an ASGI request that is traced."""
    return scope.get(_KEY)


def note_model(scope: MutableMapping[str, Any], model: Runnable) -> None:
    """An ASGI request is for this model."""
    if (timeline := timeline_of(scope)) is not None:
        timeline.belongs_to(model)


def note_decoding(scope: MutableMapping[str, Any]) -> None:
    """An ASGI request is here, and is decoded from now on."""
    if (timeline := timeline_of(scope)) is not None:
        timeline.decode()
