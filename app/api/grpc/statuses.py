"""How errors leave over gRPC: `app.errors` to status codes, as google/rpc/code.proto relates HTTP statuses to them."""

from __future__ import annotations

from math import ceil

import grpc

from app.errors import KronserveError, Overloaded

LONGEST_MESSAGE = 500
"""Characters. A message travels in the trailers, each character as up to 12 bytes; clients take 8 KiB of them."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_code(error: KronserveError) -> grpc.StatusCode:
    """The status code of one of our own errors."""
    return _CODES.get(error.status, grpc.StatusCode.INTERNAL)


def trailing_metadata(error: KronserveError) -> tuple[tuple[str, str], ...]:
    """What goes beside the status: how long clients with a retry policy should wait (gRPC A6, "Pushback")."""
    if isinstance(error, Overloaded):
        return (("grpc-retry-pushback-ms", str(max(1, ceil(error.retry_after * 1000)))),)
    return ()
