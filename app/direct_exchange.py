"""Requests answered without ASGI: a handler is called when the whole request has come, and answers when it can.

An ASGI application costs every request a task, a scope and four messages, about as much as decoding, queueing and
encoding it. A handler takes the requests that it knows how to answer without awaiting anything on the way; all others
go to the application.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

if TYPE_CHECKING:
    from app.http_protocol import BoundedHttpProtocol

Headers = Sequence[tuple[bytes, bytes]]


class Answering(Protocol):
    """What a handler does with one request that it accepted."""

    @property
    def length(self) -> int:
        """Bytes of the body, as the request announces them."""

    def arrived(self, exchange: DirectExchange) -> None:
        """`exchange.body` has grown, or is complete. Whoever wants no more of it for now calls `exchange.pause`."""

    def begin(self, exchange: DirectExchange) -> None:
        """The request is complete in `exchange.body`; `exchange.respond` ends it, now or later."""

    def ended(self, status: int | None) -> None:
        """It is over, begun or not: `status` was sent, or None because the client left first. Called once."""


class Handler(Protocol):
    """Answers some of the requests of every connection."""

    def accept(self, url: bytes, headers: Headers) -> Answering | None:
        """Take a POST with these headers (names in lower case), or leave it to the application: None."""


class DirectExchange:
    """One request and its answer, in the place of uvicorn's cycle of the same connection.

    uvicorn's protocol fills `body`, clears `more_body`, sets `disconnected`, and says so by `message_event.set()`.
    """

    __slots__ = (
        "_answering",
        "_begun",
        "_first",
        "_paused",
        "_protocol",
        "body",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
    )

    def __init__(self, protocol: BoundedHttpProtocol, answering: Answering) -> None:
        self._protocol, self._answering = protocol, answering
        self.body: bytes | bytearray = b""  # to which uvicorn adds; the first piece, mostly the whole, is not copied
        self._first = 0
        self.more_body = self.keep_alive = True
        self.disconnected = self.response_started = self.response_complete = False
        self._begun = self._paused = False

    @property
    def message_event(self) -> DirectExchange:
        return self

    def set(self) -> None:
        """Something changed: a piece of the body came, or its end, or the client left."""
        if self.response_complete:
            return
        if self.disconnected:
            self._end(None)
        elif self.more_body and len(self.body) == self._answering.length:
            return  # the end is told next
        elif not self._begun:
            self._collect()
            if not self._paused:
                self._protocol.flow.resume_reading()
                self._answering.arrived(self)
                self._go_on()

    def _collect(self) -> None:
        """From the second piece on, collect them where adding one does not copy all before it."""
        if self._first == 0:
            self._first = len(self.body)
        elif len(self.body) > self._first and isinstance(self.body, bytes):
            self.body = bytearray(self.body)

    def _go_on(self) -> None:
        if not (self.more_body or self._paused or self._begun or self.response_complete):
            self._begun = True
            self._answering.begin(self)

    def pause(self) -> None:
        """Read nothing more of the request until `resume`."""
        self._paused = True
        self._protocol.flow.pause_reading()

    def resume(self) -> None:
        """Go on reading, or begin."""
        self._paused = False
        if not self.response_complete:
            self._protocol.flow.resume_reading()
            self._go_on()

    def respond(self, status: int, headers: Headers, pieces: Sequence[bytes | memoryview]) -> None:
        """Send the whole answer, its Content-Length among `headers`; nothing happens when the client has left.

        An answer that comes before the request is complete is the connection's last, and the rest is not listened to.
        """
        if self.response_complete:
            return
        protocol = self._protocol
        if protocol.transport.is_closing():
            self._end(None)
            return
        if self.more_body:
            self.keep_alive = False
        head = [STATUS_LINE[status]]
        for name, value in (*protocol.server_state.default_headers, *headers):
            head += (name, b": ", value, b"\r\n")
        head.append(protocol.common_lines)
        head.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        protocol.transport.writelines([b"".join(head), *pieces])
        if self.more_body:
            protocol.drop_rest()
        elif not self.keep_alive:
            protocol.transport.close()
        self._end(status)
        protocol.on_response_complete()

    def _end(self, status: int | None) -> None:
        self.response_started = self.response_complete = True
        self._answering.ended(status)
        # An idle connection keeps its last exchange, but not what that was about.
        del self._answering
        self.body = b""
