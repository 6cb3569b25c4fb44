"""The outermost ASGI layer: counts, times and traces answers, and lets early ones reach clients that still send.

It adds the headers that every answer has, unless the answer has its own.

While the service drains, every answer closes its connection, so that no client sends its next request into one that is
about to go.

An answer given before the body was read (413, 404, ...) would be lost to a client in the middle of its upload when the
connection is closed on it. So the answer is sent, the rest of the upload is thrown away for a while, and only then does
the response end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.answers import CLIENT_LEFT
from app.api.gate import KEY_NAME, OPEN
from app.journal import REQUEST_ID
from app.security_headers import security_headers
from app.service import Service
from app.timeline import attach

UNTRACED = OPEN | {"/metrics"}
"""Probes and scrapes, which would be most of the traces of a service at rest."""

LINGER_SECONDS = 10.0
"""Longest time that the rest of an upload is read and dropped."""


class Edge:
    """Pure-ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._common = security_headers(tls=service.settings.tls_certificate is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the protocol below sends no body (RFC 9110, section 9.3.2)
            scope = {**scope, "method": "GET"}
        started = time.perf_counter()
        journal = self._service.journal
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), None)
        request_id = journal.request_id(given)
        tracing = None if scope["path"] in UNTRACED else self._service.tracing
        timeline = None if tracing is None else tracing.begin(scope["headers"])
        if timeline is not None:
            attach(scope, timeline)
        status = CLIENT_LEFT
        unread = True

        async def receive_and_note() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def send_and_linger(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                own = {name for name, _ in headers}
                headers += [header for header in self._common if header[0] not in own]
                if self._service.draining:
                    headers.append((b"connection", b"close"))
                if request_id is not None:
                    headers.append((REQUEST_ID, request_id))
                message = {**message, "headers": headers}
            elif status >= 400 and unread and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _drop_rest(receive_and_note, lambda: unread)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_and_linger)
        except Exception:
            status = 500
            raise
        finally:
            route = scope.get("route")
            template = getattr(route, "path", "unmatched")
            seconds = time.perf_counter() - started
            self._service.metrics.answered(template, status, seconds)
            trace = None
            if timeline is not None and tracing is not None:
                known = None if route is None else template
                trace = tracing.answered_http(timeline, scope["method"], self._service.scheme, known, status)
            if not journal.silent:
                model = self._service.repository.known(scope.get("path_params", {}).get("model"))
                key = scope.get(KEY_NAME)
                journal.answered("http", template, status, seconds, request_id, trace, model=model, key=key)


async def _drop_rest(receive: Receive, unread: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while unread():
                await receive()
    except TimeoutError:
        return
