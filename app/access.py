"""Who may do what: API keys with scopes and limits, kept in a TOML file that holds only their SHA-256.

    [keys.billing]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    scopes = ["inference"]          # read, inference, admin
    requests_per_second = 50        # optional; so many at once after a quiet second
    concurrent = 8                  # optional; requests under way

A key is 256 bits of chance, made by `kronserve key`, so one SHA-256 protects it; passwords have no place here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import Forbidden, Overloaded, Unauthorized

Scope = Literal["read", "inference", "admin"]

PREFIX = "krs_"
LONGEST = 256
"""Characters of a presented key that are looked at; more are no key."""


class KeyEntry(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(extra="forbid")

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    concurrent: Annotated[int, Field(gt=0)] | None = None


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: Annotated[dict[str, KeyEntry], Field(min_length=1)]


@dataclass(slots=True)
class _Key:
    name: str
    digest: bytes
    entry: KeyEntry
    allowance: float
    """Requests that may still begin at once."""
    counted: float
    """When the allowance was last brought up to date."""
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """A request that was let in; `leave` is called once when it is over."""

    name: str
    leave: Callable[[], None]


@dataclass(slots=True)
class Keys:
    """All keys of a service. For one event loop."""

    _keys: list[_Key] = field(default_factory=list)
    _clock: Callable[[], float] = time.monotonic

    def admit(self, presented: str | None, scope: Scope) -> Pass:
        """Let a request in that shows a key of this scope.

        Raises Unauthorized without a known key, Forbidden when its scopes do not reach, Overloaded past its limits.
        """
        key = self.check(presented, scope)
        if key.entry.concurrent is not None and key.under_way >= key.entry.concurrent:
            raise Overloaded(
                "this API key has as many requests under way as it may", retry_after=1.0, reason="key_concurrency"
            )
        rate = key.entry.requests_per_second
        if rate is not None:
            now = self._clock()
            key.allowance = min(max(1.0, rate), key.allowance + (now - key.counted) * rate)
            key.counted = now
            if key.allowance < 1:
                after = (1 - key.allowance) / rate
                raise Overloaded("this API key sends faster than it may", retry_after=after, reason="key_rate")
            key.allowance -= 1
        key.under_way += 1

        def leave() -> None:
            key.under_way -= 1

        return Pass(key.name, leave)

    def check(self, presented: str | None, scope: Scope) -> _Key:
        """The key that is shown, or Unauthorized or Forbidden as from `admit`; nothing counts against its limits."""
        key = self._find(presented)
        if key is None:
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")
        if scope not in key.entry.scopes:
            raise Forbidden(f"this API key has no scope {scope!r}")
        return key

    def _find(self, presented: str | None) -> _Key | None:
        """Every key is compared, each in constant time, so that nothing is learned from how long it takes."""
        if presented is None or len(presented) > LONGEST:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def load_keys(path: Path, clock: Callable[[], float] = time.monotonic) -> Keys:
    """The keys of a file. ValueError names what is wrong with it; OSError when it cannot be read."""
    try:
        listed = _KeyFile.model_validate(tomllib.loads(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not TOML: {error}") from None
    digests = [entry.sha256 for entry in listed.keys.values()]
    if len(set(digests)) < len(digests):
        raise ValueError(f"{path.name}: two names have the same key")
    now = clock()
    keys = [
        _Key(name, bytes.fromhex(entry.sha256), entry, max(1.0, entry.requests_per_second or 1.0), now)
        for name, entry in listed.keys.items()
    ]
    return Keys(keys, clock)


def new_key() -> tuple[str, str]:
    """A fresh key, and the SHA-256 that the file has of it."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def bearer(authorization: str | None) -> str | None:
    """The token of an Authorization header. RFC 6750, section 2.1."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
