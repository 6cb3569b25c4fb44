"""Accept headers after RFC 9110, 12.5.1."""

from __future__ import annotations

import pytest

from app.api.negotiation import choose
from app.errors import NotAcceptable

OFFERED = ("application/json", "text/csv", "application/x-npy")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("TEXT/CSV", "text/csv"),
        ("text/*", "text/csv"),
        ("application/json;q=0.2, text/csv;q=0.3", "text/csv"),
        ("text/html, application/x-npy;q=0.1", "application/x-npy"),
        ("application/json;q=0, */*;q=0.5", "text/csv"),
        ("text/csv; charset=utf-8; q=1.0", "text/csv"),
        ("application/*;q=0.1, application/x-npy", "application/x-npy"),
    ],
)
def test_choose(accept: str, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0", "*/*;q=0", "text/csv;q=x", "nonsense"])
def test_nothing_left(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        choose(accept, OFFERED)
