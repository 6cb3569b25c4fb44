"""Cross-origin requests of web pages, where origins are allowed to make them. Fetch standard, "HTTP CORS protocol".

Credentials are never allowed: keys travel in a header that the page sets itself.
"""

from __future__ import annotations

import orjson
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from app.api import deadline
from app.api.oip_codec import JSON_HEADER_LENGTH
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
