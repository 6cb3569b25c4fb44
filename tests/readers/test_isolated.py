"""Work in another process: what it answers, and what becomes of one that dies, hangs, or eats memory."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, Unavailable, UnusableInput
from app.readers import isolated

MODULE = "tests.readers.misbehaving"
ONE = 1 << 20


def test_the_answer_comes_back() -> None:
    data = np.random.default_rng(0).bytes(3 << 20)
    said, arrays = isolated.ask(MODULE, "the file", "echo", data, ONE)
    assert said == {"size": len(data)}
    assert arrays["data"].tobytes() == data
    assert (arrays["none"].shape, arrays["none"].dtype) == ((0, 3), np.float32)


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        ("refuse", UnusableInput, "not so"),
        ("spin", PayloadTooLarge, "takes longer than 1 s"),
        ("eat", PayloadTooLarge, "more memory than its limit"),
        ("die", InvalidRequest, "is broken, or"),
        ("leave", InvalidRequest, "is broken, or"),
        ("talk", InvalidRequest, "is broken, or"),
    ],
)
def test_ends(
    question: str,
    error: type[KronserveError],
    message: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(isolated, "PATIENCE", 1000)
    with pytest.raises(error, match=f"{'' if question == 'refuse' else 'the file '}.*{message}") as caught:
        isolated.ask(MODULE, "the file", question, b"1234", ONE, seconds=1)
    assert caught.value.field == ("there" if question == "refuse" else None)
    assert "secret" not in caplog.text


def test_one_that_does_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "PATIENCE", 0.001)
    with pytest.raises(PayloadTooLarge, match="takes longer"):
        isolated.ask(MODULE, "the file", "sleep", b"", ONE)


def test_one_that_leaves_before_it_has_read_everything() -> None:
    with pytest.raises(InvalidRequest, match="broken"):
        isolated.ask(MODULE, "one that does not listen", "x" * ONE, bytes(ONE), ONE)


def test_where_none_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="cannot be read now"):
        isolated.ask(MODULE, "the file", "echo", b"", ONE)
