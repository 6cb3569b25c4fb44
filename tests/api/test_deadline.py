"""X-Request-Timeout: what counts as a number of seconds."""

from __future__ import annotations

import pytest

from app.api.deadline import earliest, seconds
from app.errors import InvalidRequest


@pytest.mark.parametrize(
    ("value", "expected"), [(b"2", 2.0), (b" 0.25 ", 0.25), ("1.", 1.0), (b"1e-1", 0.1), (".5", 0.5), (None, None)]
)
def test_numbers(value: bytes | str | None, expected: float | None):
    assert seconds(value) == expected


@pytest.mark.parametrize(
    "value", [b"", b"0", b"0.0", b"-1", b"1e999", b"inf", b"nan", b"1 s", b"1,5", b".", b"9" * 40, "٣", b"\xff"]
)
def test_everything_else_is_refused_by_name(value: bytes | str):
    with pytest.raises(InvalidRequest, match="X-Request-Timeout") as caught:
        seconds(value)
    assert caught.value.field == "X-Request-Timeout"


def test_the_shortest_limit_counts():
    assert earliest(3.0, None, 2.0) == 2.0
    assert earliest(None, None) is None
