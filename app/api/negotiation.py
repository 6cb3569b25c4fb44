"""Choosing the answer's media type from the Accept header (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import NotAcceptable


def choose(accept: str, offered: Sequence[str]) -> str:
    """The offered media type that the caller likes most; the first of equals, and the first of all for no preference.

    Raises:
        NotAcceptable: the header leaves none.
    """
    ranges = [_parse(text) for text in accept.split(",") if text.strip()]
    if not ranges:
        return offered[0]
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))
    if _quality(best, ranges) == 0:
        raise NotAcceptable(f"the answer comes as {', '.join(offered)}")
    return best


def _parse(text: str) -> tuple[str, float]:
    media_range, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return media_range, min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    # The most specific range speaks for a type: "text/csv;q=0, */*" wants anything but CSV.
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        for media_range, quality in ranges:
            if media_range == pattern:
                return quality
    return 0.0
