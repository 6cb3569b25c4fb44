"""Requests that web pages of other origins make: answered for the allowed origins, and for no other.

Fetch standard, "HTTP CORS protocol". Credentials are never allowed: keys travel in a header that the page sets itself.
"""

from __future__ import annotations

from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import deadline
from app.api.answers import error_response, error_responses
from app.api.oip_codec import JSON_HEADER_LENGTH
from app.errors import Forbidden
from app.journal import REQUEST_ID

METHODS = ("GET", "POST")

ASKED = (
    "authorization",
    "content-encoding",
    JSON_HEADER_LENGTH.decode(),
    REQUEST_ID.decode(),
    deadline.HEADER,
    "traceparent",
    "tracestate",
    "baggage",
)
"""Request headers that mean something here, beside those that every page may send."""

SHOWN = (JSON_HEADER_LENGTH.decode(), REQUEST_ID.decode(), "retry-after")
"""Answer headers that a page may read, beside those that every page may."""


READING = frozenset({"GET", "HEAD", "OPTIONS"})
FOREIGN = frozenset({b"cross-site", b"same-site"})


class NoForgery:
    """ASGI middleware: what a page of an origin that is not allowed would have done is refused.

    CORS keeps such a page from reading answers, not from sending a form. From the browser of whoever looks at it that
    reaches services which only that machine can reach, and which therefore ask for no key. Browsers tell on it: W3C,
    "Fetch Metadata Request Headers", Sec-Fetch-Site. No one else sends that header.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READING and self._foreign(scope["headers"]):
            refusal = Forbidden("pages of other origins may not do that; KRONSERVE_CORS_ORIGINS names those that may")
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign(self, headers: list[tuple[bytes, bytes]]) -> bool:
        if not any(name == b"sec-fetch-site" and value in FOREIGN for name, value in headers):
            return False
        origins = [value for name, value in headers if name == b"origin"]
        return b"*" not in self._origins and not (len(origins) == 1 and origins[0] in self._origins)


def document_refusals(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document which operations `NoForgery` refuses."""
    refusals = {str(status): response for status, response in error_responses(403).items()}
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if method.upper() not in READING:
                operation["responses"] = refusals | operation["responses"]


class Cors(CORSMiddleware):
    """Starlette's middleware, whose refusals have the shape of every other error."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(app, allow_origins=origins, allow_methods=METHODS, allow_headers=ASKED, expose_headers=SHOWN)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to the question whether a request may be made; it carries no key, and needs none."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        body = orjson.dumps({"error": bytes(answer.body).decode()})
        return Response(body, answer.status_code, headers, media_type="application/json")
