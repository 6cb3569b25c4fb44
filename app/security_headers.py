"""Headers of every HTTP answer that tell a browser to take it for data and nothing else.

As OWASP's REST Security Cheat Sheet, "Security Headers", lists them. The Content-Security-Policy allows nothing: an
answer that is opened as a page loads, runs and frames nothing. `api/docs.py`, the one page there is, has its own.
"""

from __future__ import annotations

from functools import cache

Header = tuple[bytes, bytes]

HSTS_SECONDS = 365 * 24 * 3600


@cache
def security_headers(*, tls: bool) -> tuple[Header, ...]:
    """The headers; over TLS also that this host is never to be asked without it."""
    headers = [
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    ]
    if tls:
        headers.append((b"strict-transport-security", b"max-age=%d" % HSTS_SECONDS))
    return tuple(headers)


@cache
def security_lines(*, tls: bool) -> bytes:
    """The same as lines of a response's head."""
    return b"".join(b"%s: %s\r\n" % header for header in security_headers(tls=tls))
