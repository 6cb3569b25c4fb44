"""The gate before every endpoint: which scope a request needs, and whether its key has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from app.access import Keys, Pass, Scope, bearer
from app.api.answers import error_response, error_responses
from app.errors import KronserveError

OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
"""For orchestrators and load balancers, who have no keys."""

KEY_NAME = "kronserve.key"
"""Where an ASGI scope has the name of the key that let the request in."""


def scope_of(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None for the open ones. What is not known to be harmless is `admin`."""
    path = path.rstrip("/")
    if path in OPEN and method in ("GET", "HEAD"):
        return None
    if method in ("GET", "HEAD", "OPTIONS") or path == "/v2/repository/index":
        return "read"
    infers = path.startswith("/v1/") or (path.startswith("/v2/models/") and path.endswith("/infer"))
    return "inference" if method == "POST" and infers else "admin"


def admit(keys: Keys, headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> Pass:
    """`Keys.admit` with the key of the raw ASGI headers; more than one Authorization is none."""
    given = [value for name, value in headers if name == b"authorization"]
    return keys.admit(bearer(given[0].decode("latin-1")) if len(given) == 1 else None, scope)


def document_keys(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document which operations need a key, and what a request without one is told."""
    document.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refusals = {str(status): response for status, response in error_responses(401, 403, 429).items()}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if scope_of(method.upper(), path) is not None:
                operation["security"] = [{"key": []}]
                operation["responses"] = refusals | operation["responses"]


class Gate:
    """ASGI middleware: requests without a sufficient key are answered here, before anything of theirs is read."""

    def __init__(self, app: ASGIApp, keys: Keys, routes: Iterable[BaseRoute], refused: Callable[[str], None]) -> None:
        """routes: those of the application, by which refusals are counted. refused: told the reason of each."""
        self._app, self._keys, self._routes, self._refused = app, keys, routes, refused

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        needed = scope_of(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if needed is None:
            await self._app(scope, receive, send)
            return
        try:
            let_in = admit(self._keys, scope["headers"], needed)
        except KronserveError as error:
            self._refused(error.reason)
            found = (route for route in self._routes if route.matches(scope)[0] is Match.FULL)
            scope["route"] = next(found, None)
            await error_response(error)(scope, receive, send)
            return
        scope[KEY_NAME] = let_in.name
        try:
            await self._app(scope, receive, send)
        finally:
            let_in.leave()
