"""Inference requests over HTTP that come whole and small, which is nearly all of them, answered without ASGI.

What is larger, compressed or in chunks goes to `oip.InferFirst`; both decode, queue and encode by the same functions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from functools import lru_cache

import numpy as np

from app.access import Pass
from app.api import dataplane, deadline
from app.api.answers import CLIENT_LEFT, error_parts
from app.api.gate import admit
from app.api.oip import INFER_ROUTE, Answer, decode, infer_route, pack, pack_inline, submit
from app.api.oip_codec import JSON_HEADER_LENGTH, InferRequest, encode_response
from app.direct_exchange import Answering, DirectExchange, Headers
from app.engine.runtime import Model
from app.errors import InferenceFailed, KronserveError
from app.journal import REQUEST_ID
from app.readers.byte_budget import SMALL
from app.readers.offload import INLINE_BYTES
from app.service import Service
from app.timeline import Timeline

LONGEST_LENGTH = len(str(INLINE_BYTES))
LONGEST_URL = 256
"""Bytes of a URL that is remembered with its route."""

NOT_PLAIN = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"origin", b"sec-fetch-site"})
"""Headers of requests that the application answers; the last two are those of web pages."""

Future = asyncio.Future[dict[str, np.ndarray]]


class DirectInference:
    """A `direct_exchange.Handler`: POSTs to a model's /infer with a Content-Length of up to `INLINE_BYTES`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._largest = min(INLINE_BYTES, service.settings.max_body_bytes)
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, url: bytes, headers: Headers) -> Answering | None:
        """See `direct_exchange.Handler`."""
        route = _plain_route(url) if len(url) <= LONGEST_URL else None
        if route is None:
            return None
        size = -1
        header_length = accept_encoding = timeout = request_id = None
        for name, value in headers:
            if name == b"content-length":
                if len(value) > LONGEST_LENGTH or not value.isdigit():
                    return None
                size = int(value)
            elif name == JSON_HEADER_LENGTH:
                if header_length is not None:
                    return None
                header_length = value
            elif name == b"accept-encoding":
                accept_encoding = value
            elif name == deadline.RAW_HEADER:
                timeout = value
            elif name == REQUEST_ID:
                if request_id is None:  # the first of two, as `edge` takes it
                    request_id = value
            elif name in NOT_PLAIN:
                return None
        if not 0 <= size <= self._largest:
            return None
        let_in = None
        if self._service.keys is not None:
            try:
                let_in = admit(self._service.keys, headers, "inference")
            except KronserveError:
                return None  # the gate before the application finds the same, and answers
        tracing = self._service.tracing
        timeline = None if tracing is None else tracing.begin(headers)
        return _Inference(
            self, self._service, route, size, header_length, accept_encoding, timeout, let_in, request_id, timeline
        )

    def later(self, work: Coroutine[None, None, None]) -> None:
        """Run what must be awaited, and hold it until it ends."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@lru_cache(maxsize=256)
def _plain_route(url: bytes) -> dict[str, str] | None:
    """The path parameters of an inference request whose URL is no more than its path."""
    plain = url.endswith(b"/infer") and b"%" not in url and b"?" not in url and url.isascii()
    return infer_route(url.decode()) if plain else None


class _Inference:
    """One request on its way: every failure is answered, every ending counted."""

    __slots__ = (
        "_accept_encoding",
        "_exchange",
        "_future",
        "_handler",
        "_header_length",
        "_held",
        "_inputs",
        "_let_in",
        "_model",
        "_request",
        "_request_id",
        "_route",
        "_service",
        "_started",
        "_timeline",
        "_timeout",
        "length",
    )
    _exchange: DirectExchange
    _model: Model
    _request: InferRequest
    _inputs: dict[str, np.ndarray]

    def __init__(
        self,
        handler: DirectInference,
        service: Service,
        route: dict[str, str],
        length: int,
        header_length: bytes | None,
        accept_encoding: bytes | None,
        timeout: bytes | None,
        let_in: Pass | None,
        request_id: bytes | None,
        timeline: Timeline | None,
    ) -> None:
        self._handler, self._service, self._route, self._held = handler, service, route, 0
        self.length = length
        self._header_length, self._accept_encoding, self._timeout = header_length, accept_encoding, timeout
        self._let_in, self._request_id = let_in, service.journal.request_id(request_id)
        self._started, self._timeline = time.perf_counter(), timeline
        self._future: Future | None = None

    def arrived(self, exchange: DirectExchange) -> None:
        """Count what came against the service's budget, and wait where it has no room."""
        size = len(exchange.body)
        more = size - self._held
        if more <= 0 or (size <= SMALL and not exchange.more_body):
            return
        if self._service.body_budget.take_at_once(more):
            self._held = size
        else:
            exchange.pause()
            self._handler.later(self._wait_for_room(exchange, more))

    async def _wait_for_room(self, exchange: DirectExchange, more: int) -> None:
        try:
            await self._service.body_budget.take(more)
        except KronserveError as error:
            self._exchange = exchange
            self._fail(error)
            return
        if exchange.response_complete:
            self._service.body_budget.give(more)
        else:
            self._held += more
            exchange.resume()

    def begin(self, exchange: DirectExchange) -> None:
        """Decode and queue the request."""
        self._exchange = exchange
        service, timeline = self._service, self._timeline
        try:
            self._model = model = service.repository.get(self._route["model"], self._route.get("version"))
            if timeline is not None:
                timeline.belongs_to(model)
            service.scheduler.check_room(model)
            if timeline is not None:
                timeline.decode()
            self._request, self._inputs = decode(exchange.body, self._header_length, model)
            self._future = submit(service, model, self._request, self._inputs, self._timeout, timeline)
        except Exception as error:
            self._fail(error)
        else:
            self._future.add_done_callback(self._finish)

    def _finish(self, future: Future) -> None:
        """The scheduler is done with it."""
        if future.cancelled():
            return
        try:
            results = future.result()
            if self._timeline is not None:
                self._timeline.encode()
            smallest = self._service.settings.compress_from
            if not pack_inline(self._request, results):
                packed = pack(self._model, self._request, results, self._accept_encoding, smallest)
                self._handler.later(self._respond_with(packed))
                return
            answer = Answer(*encode_response(self._model, self._request, results))
            coding = answer.worthwhile(self._accept_encoding, smallest)
            if coding is None:
                self._respond(answer)
            else:
                self._handler.later(self._respond_with(answer.compressed(coding)))
        except InferenceFailed as error:
            self._fail(dataplane.fault(self._inputs, error))
        except Exception as error:
            self._fail(error)

    async def _respond_with(self, answer: Awaitable[Answer]) -> None:
        try:
            self._respond(await answer)
        except Exception as error:
            self._fail(error)

    def _respond(self, answer: Answer) -> None:
        self._send(200, answer.headers(), answer.pieces)

    def _fail(self, error: Exception) -> None:
        status, headers, body = error_parts(error)
        self._send(status, headers, [body])

    def _send(self, status: int, headers: list[tuple[bytes, bytes]], pieces: list[bytes | memoryview]) -> None:
        if self._service.draining:
            self._exchange.keep_alive = False
        if self._request_id is not None:
            headers.append((REQUEST_ID, self._request_id))
        self._exchange.respond(status, headers, pieces)

    def ended(self, status: int | None) -> None:
        """See `direct_exchange.Answering`: nobody waits any more."""
        if self._future is not None:
            self._future.cancel()
        if self._held:
            self._service.body_budget.give(self._held)
        if self._let_in is not None:
            self._let_in.leave()
        status = CLIENT_LEFT if status is None else status
        seconds = time.perf_counter() - self._started
        self._service.metrics.answered(INFER_ROUTE.path, status, seconds)
        trace = None
        if self._timeline is not None and self._service.tracing is not None:
            trace = self._service.tracing.answered_http(
                self._timeline, "POST", self._service.scheme, INFER_ROUTE.path, status
            )
        journal = self._service.journal
        if not journal.silent:
            model = self._service.repository.known(self._route["model"])
            key = None if self._let_in is None else self._let_in.name
            journal.answered("http", INFER_ROUTE.path, status, seconds, self._request_id, trace, model=model, key=key)
