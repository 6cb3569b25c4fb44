"""HTTP/1.1 connections whose every phase is bounded: uvicorn's protocol with limits on heads and on silence.

uvicorn bounds neither the bytes of a request's head, which the parser collects in memory, nor the time that a client
takes for it or leaves between two pieces of its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from math import inf
from typing import Any, NamedTuple, cast

import httptools
import orjson
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.direct_exchange import DirectExchange, Handler
from app.security_headers import security_lines

OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})
"""Headers of an offer to speak another protocol."""

MAX_HEAD_BYTES = 1 << 16
"""Bytes in a row that are neither body nor the end of a head: request line, headers, trailers, chunk extensions."""

TOO_LARGE = (431, f"the request's headers are larger than {MAX_HEAD_BYTES} bytes")

LAST_WORDS_SECONDS = 1.0
"""How long what still comes is dropped after a refusal, so that the client reads the answer before the reset."""


class Limits(NamedTuple):
    """Seconds: for a request's head, between two pieces of its body, and for the whole body."""

    head: float
    silence: float
    body: float


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection.

    limits: how long a client may take. direct: answers the requests that it accepts, ahead of the application. refused:
    told the status of each answer to what did not become a request that either of them knows of.
    """

    def __init__(
        self,
        *args: Any,
        limits: Limits,
        direct: Handler | None = None,
        refused: Callable[[int], None] = lambda _: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits, self._direct, self._tell_refused = limits, direct, refused
        self._body_until = inf
        self.common_lines = security_lines(tls=self.config.is_ssl)
        """Head lines of the answers that do not come from the application, whose outermost layer adds them itself."""
        self._unclaimed = self._segment = 0
        self._in_message = self._in_head = self._heard = self._refused = self._offered = False
        self._fault: tuple[int, str] | None = None
        """Status and message for a head that is refused; what follows it on the connection is nobody's request."""
        self._answering: RequestResponseCycle | None = None
        """Who is at work on an answer; `cycle` may be a later, pipelined request."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection on which no request is ever begun ends like one that stays idle between two of them.

        It has no less time for that than for a head, however short idle connections are kept.
        """
        super().connection_made(transport)
        self._idle(max(self.timeout_keep_alive, self._limits.head))

    def connection_lost(self, exc: Exception | None) -> None:
        """The timers end with the connection."""
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count, parse, and watch what is not complete yet."""
        if self._refused:
            return
        self._segment = len(data)
        self._unclaimed += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.refuse(400, "Invalid HTTP request received.")
        if self._fault is None and self._unclaimed > MAX_HEAD_BYTES:
            self._fault = TOO_LARGE
        if self._fault is not None:
            self.refuse(*self._fault)
        elif self._in_message and not self._refused:  # most requests arrive in one piece and are never watched
            self._heard = True
            if self._timer is None:
                self._watch()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An offer to speak another protocol, as HTTP/2 clients make it, is declined by not taking it up: the
            # request counts as if it had not been made (RFC 9110, section 7.8). The parser stops there; a new one
            # goes on.
            version = self.parser.get_http_version().encode()
            head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
            for name, value in self.headers:
                if name not in OFFER:
                    head += (name, b": ", value, b"\r\n")
            if not self.parser.should_keep_alive():  # which Connection may have said beside the offer
                head.append(b"connection: close\r\n")
            self._offered = False
            if self._refused or self._fault is not None:
                return
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"".join([*head, b"\r\n"]))
            self._parse(data[upgrade.args[0] :])

    def on_message_begin(self) -> None:
        """A request's first byte was parsed. Empty lines before it begin none (RFC 9112, section 2.2)."""
        self._unset_keepalive_if_required()
        self._in_message = self._in_head = True
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, without the whitespace after its value (RFC 9110, section 5.5).

        Trailers do not join the head (RFC 9110, section 6.5.1), and nobody reads them here. After one that closes the
        connection the parser takes nothing more all the same, so the request is the last that is answered.
        """
        name = name.lower()
        if not self._in_head:
            if name == b"connection":
                self.cycle.keep_alive = False
            return
        value = value.rstrip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head ends; one that came in few large pieces is measured here."""
        large = max(self._unclaimed, self._segment) > MAX_HEAD_BYTES
        self._unclaimed = 0
        if self._fault is None:
            self._fault = self._head_fault(large)
        if self._fault is not None:
            return
        self._offered = self.parser.should_upgrade()
        if self._offered:
            if self.parser.get_method() == b"CONNECT":
                self.refuse(400, "this server is no proxy")
            return
        self._in_head = False
        self._stop_timer()
        self._body_until = inf
        if self._direct is not None and self._take_direct(self._direct):
            return
        url, headers = self.url, self.headers
        # A client of HTTP/1.0 knows no interim answer (RFC 9110, section 10.1.1).
        expecting = self.expect_100_continue and self.parser.get_http_version() != "1.0"
        super().on_message_begin()  # which makes the scope, only now, for the application
        self.url, self.headers, self.expect_100_continue = url, headers, expecting
        self.scope["headers"] = headers
        super().on_headers_complete()

    def _head_fault(self, large: bool) -> tuple[int, str] | None:
        """What is wrong with the head, as RFC 9112 has it (sections 3.2 and 6.1), or its size."""
        if large and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            return TOO_LARGE
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.lower() != b"chunked":
                return 501, "no transfer coding but chunked is known here"
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            return 400, "a request needs one Host header"
        return None

    def _take_direct(self, handler: Handler) -> bool:
        """Whether the handler answers this request. What is not plain HTTP/1.1, or comes too early, is not its own."""
        parser, busy = self.parser, self.cycle is not None and not self.cycle.response_complete
        plain = parser.get_http_version() == "1.1" and parser.should_keep_alive()
        if busy or not plain or self.flow.write_paused or parser.get_method() != b"POST":
            return False
        answering = handler.accept(self.url, self.headers)
        if answering is None:
            return False
        self.cycle = self._answering = cast("RequestResponseCycle", DirectExchange(self, answering))
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unclaimed = 0
        if self._fault is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._offered:
            return
        self._unclaimed = 0
        self._in_message = False
        self._stop_timer()
        if self._fault is not None:
            return
        super().on_message_complete()
        # An answer that was complete before its request left the connection to what still came of that.
        if self.cycle.response_complete and self.timeout_keep_alive_task is None and not self._refused:
            if self.cycle.keep_alive:
                self._idle(self.timeout_keep_alive)
            else:
                self.transport.close()

    def on_response_complete(self) -> None:
        """The connection is idle, or the next request's answer is begun; or a request is still on its way."""
        super().on_response_complete()
        if self._in_message:
            self._unset_keepalive_if_required()
            if self._in_head and self._timer is not None:  # reading may have been paused until now
                self._stop_timer()
                self._watch()

    def _idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def shutdown(self) -> None:
        """The server leaves: an idle connection is closed, one whose request is on its way after the answer."""
        if not self._in_message or (self.cycle is not None and not self.cycle.response_complete):
            super().shutdown()

    def refuse(self, status: int, message: str) -> None:
        """Answer, unless an answer is on its way or the request has had its own, and end the connection."""
        if self._refused:
            return
        self._refused = True
        self._stop_timer()
        if self.transport.is_closing():
            return
        known = False
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_started:
            self.cycle.disconnected = True  # who waits for the rest of this request is told that it will not come
            self.cycle.message_event.set()
            known = True  # to the application, which notes its end
        earlier = self._answering
        if earlier is not None and not earlier.response_complete and not earlier.disconnected:
            earlier.keep_alive = False  # its answer is owed, and the last one here
            self.pipeline.clear()
            return
        if not known and self._in_message and not self._in_head and self.cycle.response_complete:
            self.drop_rest()
            return
        body = orjson.dumps({"error": message})
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        head = f"{head}content-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(b"".join((head.encode(), self.common_lines, b"\r\n", body)))
        if not known:
            self._tell_refused(status)
        self.drop_rest()

    def drop_rest(self) -> None:
        """Listen to nothing more, and close when the client has had time to read what was said."""
        self._refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.loop.call_later(LAST_WORDS_SECONDS, self.transport.close)

    def _watch(self) -> None:
        self._heard = False
        if self._in_head:
            delay = self._limits.head
        else:
            now = self.loop.time()
            self._body_until = min(self._body_until, now + self._limits.body)
            delay = min(self._limits.silence, self._body_until - now)
        self._timer = self.loop.call_later(delay, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._in_head and self.flow.read_paused:  # an earlier request is answered first
            self._watch()
        elif self._in_head:
            self.refuse(408, f"the request's headers took longer than {self._limits.head:g} s")
        elif self.loop.time() >= self._body_until:
            self.refuse(408, f"the request's body took longer than {self._limits.body:g} s")
        elif self._heard or self.flow.read_paused:  # it sends, or we do not read
            self._watch()
        else:
            self.refuse(408, f"nothing came of the request's body for {self._limits.silence:g} s")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
