"""How errors leave: one place that turns `app.errors` into HTTP answers, {"error": ..., "field"?: ...} on every path.

The shape is the Open Inference Protocol's ("error" is its only required key), so its clients read every failure.
"""

from __future__ import annotations

import logging
from math import ceil

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.errors import InvalidRequest, KronserveError, Overloaded, Unauthorized, UnsupportedEncoding

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""What the metrics count a client under that left before its answer; nobody receives it."""

LONGEST_MESSAGE = 1000
"""Characters: a message may repeat a name that the caller gave."""

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "What went wrong."},
        "field": {"type": "string", "description": "The part of the request at fault."},
    },
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, object]]:
    """OpenAPI entries for the given error statuses."""
    texts = {
        400: "Malformed request",
        401: "No valid API key, where keys are asked for",
        403: "A web page of an origin that is not allowed, or an API key without the scope",
        404: "Unknown model or version",
        406: "None of the accepted media types can be given",
        413: "Body or decompressed content over the limit",
        415: "Unsupported media type or content encoding",
        422: "Decoded, but not something the model can answer",
        429: "The queue is full; Retry-After says when to come back",
        500: "The model failed on this input",
        501: "Not supported",
        503: "Not ready, not available, or shutting down",
        504: "The deadline passed while the request waited",
    }
    content = {"application/json": {"schema": ERROR_SCHEMA}}
    return {status: {"description": texts[status], "content": content} for status in statuses}


def error_parts(error: Exception) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the HTTP answer. A defect of ours is logged here and told without its details.

    The traceback of one of our own errors is dropped. It holds the frames of a thread's work and, in a circle, what it
    worked on: a refused body would stay in memory until the next garbage collection.
    """
    if not isinstance(error, KronserveError):
        logger.error("unexpected %s", type(error).__name__, exc_info=error)
        error = KronserveError("internal error")
    error.__traceback__ = None
    told = {"error": error.message[:LONGEST_MESSAGE]}
    if error.field is not None:
        told["field"] = error.field[:LONGEST_MESSAGE]
    body = orjson.dumps(told)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after))))
    elif isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    elif isinstance(error, UnsupportedEncoding):
        headers.append((b"accept-encoding", b"gzip, deflate"))
    return error.status, headers, body


def error_response(error: Exception) -> Response:
    """The same as an ASGI application."""
    status, headers, body = error_parts(error)
    response = Response(body, status)
    response.raw_headers = headers
    return response


def install(app: FastAPI) -> None:
    """Register the handlers that give every failure the same shape."""

    @app.exception_handler(KronserveError)
    @app.exception_handler(Exception)
    async def _failed(_: Request, error: Exception) -> Response:
        return error_response(error)

    @app.exception_handler(ClientDisconnect)
    async def _left(_: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or None
        return error_response(InvalidRequest(f"{field or 'request'}: {first['msg']}", field=field))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        body = orjson.dumps({"error": str(error.detail)})
        return Response(body, error.status_code, error.headers, media_type="application/json")
