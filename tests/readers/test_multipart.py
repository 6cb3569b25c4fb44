"""Forms as httpx writes them, and broken ones."""

from __future__ import annotations

import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest, KronserveError
from app.readers.multipart import MAX_PARTS, media_type_of, read_parts


def form(*files: tuple[str, tuple[str, bytes, str]]) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", files=list(files))
    return request.read(), request.headers["content-type"]


@given(
    st.lists(st.one_of(st.binary(max_size=200), st.text("\r\n-", max_size=50).map(str.encode)), min_size=1, max_size=5)
)
def test_parts_round_trip(contents: list[bytes]) -> None:
    body, content_type = form(*(("file", (f"{i}.npy", data, "Text/CSV; a=b")) for i, data in enumerate(contents)))
    parts = read_parts(body, content_type)
    assert [part.data for part in parts] == contents
    assert [(part.name, part.filename, part.media_type) for part in parts] == [
        ("file", f"{i}.npy", "text/csv") for i in range(len(contents))
    ]


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'b' * 71}"],
)
def test_no_boundary(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        read_parts(b"--b--\r\n", content_type)


def test_broken_and_truncated_forms() -> None:
    body, content_type = form(("file", ("a", b"content", "text/csv")))
    for bad in (body[:-20], body[:30], b"", b"garbage", body.replace(b"\r\n\r\n", b"\r\n", 1)):
        with pytest.raises(InvalidRequest):
            read_parts(bad, content_type)


def test_too_many_parts() -> None:
    body, content_type = form(*([("file", ("a", b"", "text/csv"))] * (MAX_PARTS + 1)))
    with pytest.raises(InvalidRequest, match="more than"):
        read_parts(body, content_type)


@given(st.binary(max_size=200), st.text(st.characters(max_codepoint=255), max_size=30))
def test_arbitrary_bytes_raise_only_our_errors(body: bytes, boundary: str) -> None:
    with contextlib.suppress(KronserveError):
        read_parts(b"--b\r\n" + body, f"multipart/form-data; boundary={boundary or 'b'}")


def test_media_type() -> None:
    assert media_type_of(' Text/CSV ; charset="utf-8"') == "text/csv"
    assert media_type_of("") == ""
