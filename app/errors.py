"""Every failure a caller can meet, each with its HTTP status.

KronserveError                500
├── InvalidRequest            400   malformed: cannot be decoded, wrong shape, wrong datatype
├── Unauthorized              401   no valid API key; with WWW-Authenticate
├── Forbidden                 403   the key's scopes do not reach, or a page of an origin that is not allowed asks
├── UnusableInput             422   decoded, but not something the model can answer
│   └── LoadFailed            422   a version that was asked for cannot be loaded
├── UnknownModel              404
├── NotAcceptable             406
├── PayloadTooLarge           413
├── UnsupportedMediaType      415
│   └── UnsupportedEncoding   415   with Accept-Encoding
├── Overloaded                429   with Retry-After
├── InferenceFailed           500
├── DeviceFailed              500   the device cannot be used again; liveness turns off
├── NotSupported              501
├── Unavailable               503   not ready, unloaded, or shutting down
└── DeadlineExceeded          504

`app.api` turns them into each protocol's answer; nothing else does.
"""

from __future__ import annotations


class KronserveError(Exception):
    """Base of the tree. `field` names the part of the request at fault, where there is one."""

    status = 500
    reason = ""
    """What the metrics count it under, of the errors that turn a request away unread or undone."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidRequest(KronserveError):
    status = 400


class Unauthorized(KronserveError):
    status = 401
    reason = "key_unknown"


class Forbidden(KronserveError):
    status = 403
    reason = "key_scope"


class UnusableInput(KronserveError):
    status = 422


class LoadFailed(UnusableInput):
    pass


class UnknownModel(KronserveError):
    status = 404


class NotAcceptable(KronserveError):
    status = 406


class PayloadTooLarge(KronserveError):
    status = 413


class UnsupportedMediaType(KronserveError):
    status = 415


class UnsupportedEncoding(UnsupportedMediaType):
    pass


class Overloaded(KronserveError):
    """More than there is room for. `retry_after` is in seconds; `reason` says what there is no room in."""

    status = 429

    def __init__(self, message: str, *, retry_after: float, reason: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class InferenceFailed(KronserveError):
    status = 500


class DeviceFailed(KronserveError):
    status = 500


class NotSupported(KronserveError):
    status = 501


class Unavailable(KronserveError):
    status = 503


class DeadlineExceeded(KronserveError):
    status = 504
    reason = "deadline"
