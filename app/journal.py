"""What is written of requests and events: one line for each, as text or as JSON, and never anything of a payload."""

from __future__ import annotations

import logging
import re
import uuid
from dataclasses import dataclass

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.orjson import OrjsonFormatter

logger = logging.getLogger("kronserve.requests")

REQUEST_ID = b"x-request-id"
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
"""Visible ASCII, so that an id cannot forge lines."""

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FIELDS = {"asctime": "time", "levelname": "level", "name": "logger"}


def set_up_logging(level: str, log_format: str) -> None:
    """Send the root logger's lines to standard error, as "text" or as "json"; those about requests at any level.

    `Journal` writes only what was asked for.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        form = "%(asctime)s %(levelname)s %(name)s %(message)s"
        # uvicorn's lines carry themselves once more, with escapes for terminals.
        left_out = [*RESERVED_ATTRS, "color_message"]
        handler.setFormatter(OrjsonFormatter(form, rename_fields=FIELDS, reserved_attrs=left_out))
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logger.setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class Journal:
    """Lines about answered requests. every: one for each; slow: one for those that took so many seconds, 0 for none."""

    every: bool
    slow: float

    @property
    def silent(self) -> bool:
        """Whether no request is ever written of."""
        return not self.every and self.slow <= 0

    def request_id(self, given: bytes | None) -> bytes | None:
        """The id of a request: its caller's, else one of ours if there may be a line that names it."""
        if given is not None and _ID.fullmatch(given):
            return given
        return None if self.silent else uuid.uuid4().hex.encode()

    def answered(
        self,
        protocol: str,
        route: str,
        status: int | str,
        seconds: float,
        request_id: bytes | None,
        trace: tuple[str, str] | None = None,
        *,
        model: str | None = None,
        key: str | None = None,
    ) -> None:
        """A request was answered. route: a template or a method, never a caller's path. status: HTTP's or gRPC's.

        trace: the ids of its trace and span. model: the name of one that there is. key: the name of its API key.
        """
        slow = 0 < self.slow <= seconds
        if not (self.every or slow):
            return
        shown = request_id.decode("ascii") if request_id is not None else "-"
        joined = {} if trace is None else {"trace_id": trace[0], "span_id": trace[1]}
        joined |= {name: value for name, value in (("model", model), ("key", key)) if value is not None}
        logger.log(
            logging.WARNING if slow else logging.INFO,
            "%s %s %s %.1f ms %s model=%s key=%s",
            protocol,
            route,
            status,
            1e3 * seconds,
            shown,
            model or "-",
            key or "-",
            extra={
                "protocol": protocol,
                "route": route,
                "status": status,
                "seconds": round(seconds, 6),
                "request_id": shown,
                "slow": slow,
                **joined,
            },
        )
