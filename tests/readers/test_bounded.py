"""Decompression and body reading: exact where allowed, refused where not, never past the limit."""

from __future__ import annotations

import contextlib
import gzip
import io
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnsupportedMediaType
from app.readers.bounded import (
    KEPT_AT_ONCE,
    MAX_ZIP_ENTRIES,
    gunzip,
    gunzip_prefix,
    inflate,
    read_body,
    unzip_member,
    zip_directory,
)

MIB = 1 << 20
BOMB = gzip.compress(bytes(256 * MIB), 9)


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.integers(0, 600))
def test_gzip_members_and_padding_round_trip(members: list[bytes], padding: int) -> None:
    stream = b"".join(gzip.compress(member) for member in members) + bytes(padding)
    assert gunzip(stream, 12000) == b"".join(members)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 300_000])
def test_streams_of_all_lengths_around_a_block(size: int) -> None:
    for content in (bytes(size), noise(size)):
        assert gunzip(gzip.compress(content), size) == content
        assert inflate(zlib.compress(content), size) == content
        bare = zlib.compressobj(wbits=-15)
        assert inflate(bare.compress(content) + bare.flush(), size) == content


def test_one_byte_past_the_limit_is_too_large() -> None:
    stream = gzip.compress(bytes(100_000))
    assert len(gunzip(stream, 100_000)) == 100_000
    with pytest.raises(PayloadTooLarge):
        gunzip(stream, 99_999)
    with pytest.raises(PayloadTooLarge):
        inflate(zlib.compress(bytes(100_000)), 99_999)


def test_a_bomb_is_refused_within_the_limits_memory() -> None:
    assert len(BOMB) < MIB
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="expands"):
            gunzip(BOMB, 4 * MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * MIB


def test_the_prefix_of_a_bomb_costs_a_block() -> None:
    tracemalloc.start()
    try:
        assert gunzip_prefix(BOMB, 540) == bytes(540)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MIB


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 500, -9, -1])
def test_truncated_streams_are_invalid(cut: int) -> None:
    content = noise(2000)
    with pytest.raises(InvalidRequest):
        gunzip(gzip.compress(content)[:cut], MIB)
    with pytest.raises(InvalidRequest):
        inflate(zlib.compress(content)[:cut], MIB)


def test_what_follows_a_stream_is_not_ignored() -> None:
    with pytest.raises(InvalidRequest):
        gunzip(gzip.compress(b"x") + b"tail", MIB)
    with pytest.raises(InvalidRequest, match="followed"):
        inflate(zlib.compress(b"x") + b"tail", MIB)


def test_a_wrong_checksum_is_invalid() -> None:
    stream = bytearray(gzip.compress(noise(100)))
    stream[-8] ^= 1
    with pytest.raises(InvalidRequest, match="broken"):
        gunzip(stream, MIB)


def test_millions_of_empty_members_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="members"):
        gunzip(gzip.compress(b"") * 20_000, MIB)


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_raise_only_our_errors(data: bytes, zipped: bool) -> None:
    for read in (gunzip, inflate):
        with contextlib.suppress(KronserveError):
            read((b"\x1f\x8b\x08\x00" if zipped else b"") + data, 1000)
    try:
        for entry in zip_directory((b"PK\x03\x04" if zipped else b"") + data):
            unzip_member(data, entry, 1000)
    except KronserveError:
        pass


def archive(compression: int, **members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_members_round_trip_and_are_bounded(compression: int) -> None:
    content = noise(200_000)
    data = archive(compression, a=content, b=b"")
    first, second = zip_directory(data)
    assert unzip_member(data, first, 200_000) == content
    assert unzip_member(data, second, 0) == b""
    with pytest.raises(PayloadTooLarge):
        unzip_member(data, first, 199_999)


def test_a_zip_that_understates_its_size_stays_bounded() -> None:
    data = bytearray(archive(zipfile.ZIP_DEFLATED, a=bytes(4 * MIB)))
    (entry,) = zip_directory(data)
    directory = data.rfind(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (100).to_bytes(4, "little")
    (entry,) = zip_directory(data)
    assert entry.file_size == 100
    with pytest.raises(InvalidRequest):  # the checksum is that of all of it
        unzip_member(data, entry, MIB)


def test_zip_methods_other_than_deflate_and_encryption_are_refused() -> None:
    data = archive(zipfile.ZIP_LZMA, a=b"abc")
    with pytest.raises(InvalidRequest, match="deflated"):
        unzip_member(data, zip_directory(data)[0], 100)
    data = archive(zipfile.ZIP_STORED, a=b"abc")
    (entry,) = zip_directory(data)
    entry.flag_bits |= 1
    with pytest.raises(InvalidRequest, match="encrypted"):
        unzip_member(data, entry, 100)


def test_a_zip_directory_of_thousands_is_refused() -> None:
    data = archive(zipfile.ZIP_STORED, **{f"a-member-with-a-long-name-{index}": b"" for index in range(8000)})
    with pytest.raises(InvalidRequest, match="directory"):
        zip_directory(data)


def test_a_zip_of_more_entries_than_a_series_has_slices_is_refused() -> None:
    data = archive(zipfile.ZIP_STORED, **{f"m{index}": b"" for index in range(MAX_ZIP_ENTRIES + 1)})
    with pytest.raises(PayloadTooLarge, match="entries"):
        zip_directory(data)


class Wire:
    """An ASGI receive callable that counts how often it is asked."""

    def __init__(self, *chunks: bytes, leaves: bool = False) -> None:
        last = len(chunks) - 1
        self.messages: list[MutableMapping[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": leaves or index < last}
            for index, chunk in enumerate(chunks)
        ]
        self.messages.append({"type": "http.disconnect"})
        self.asked = 0

    async def __call__(self) -> MutableMapping[str, Any]:
        self.asked += 1
        return self.messages[self.asked - 1]


async def test_a_body_in_one_message_is_not_copied() -> None:
    body = noise(1000)
    assert await read_body(Wire(body), [(b"content-length", b"1000")], 1000) is body


async def test_chunks_are_joined() -> None:
    wire = Wire(b"", b"ab", b"", b"c", b"def")
    assert await read_body(wire, [], 6) == b"abcdef"


async def test_content_length_past_the_limit_is_refused_unread() -> None:
    for length in (b"101", b"9" * 5000):
        wire = Wire(b"x")
        with pytest.raises(PayloadTooLarge):
            await read_body(wire, [(b"content-length", length)], 100)
        assert wire.asked == 0


async def test_a_body_that_hides_its_length_is_counted() -> None:
    wire = Wire(*[bytes(40)] * 10)
    with pytest.raises(PayloadTooLarge):
        await read_body(wire, [], 100)
    assert wire.asked == 3


@pytest.mark.parametrize("length", [b"-1", b"ten", b"", b"1 0"])
async def test_a_content_length_that_is_no_number(length: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await read_body(Wire(b""), [(b"content-length", length)], 100)


async def test_the_client_leaves() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(Wire(b"ab", leaves=True), [], 100)


@pytest.mark.parametrize("encoding", [b"gzip", b"x-gzip", b" GZIP ", b"deflate", b"identity"])
async def test_content_encodings(encoding: bytes) -> None:
    content = bytes(5000)
    name = encoding.strip().lower()
    body = content if name == b"identity" else zlib.compress(content) if name == b"deflate" else gzip.compress(content)
    assert await read_body(Wire(body), [(b"content-encoding", encoding)], 5000, 5000) == content
    if name != b"identity":
        with pytest.raises(PayloadTooLarge):
            await read_body(Wire(body), [(b"content-encoding", encoding)], 5000, 4999)


@pytest.mark.parametrize("encoding", [b"zstd", b"br", b"gzip, gzip"])
async def test_unknown_content_encodings_are_refused_unread(encoding: bytes) -> None:
    wire = Wire(b"x")
    with pytest.raises(UnsupportedMediaType):
        await read_body(wire, [(b"content-encoding", encoding)], 100)
    assert wire.asked == 0


@pytest.mark.parametrize("wrap", [gzip.compress, zlib.compress])
def test_large_expansions_are_whole_and_bombs_hold_little(wrap: Callable[[bytes], bytes]) -> None:
    """What expands like a bomb is gone through once before it is kept."""
    expand = gunzip if wrap is gzip.compress else inflate
    content = noise(KEPT_AT_ONCE) + bytes(40 * MIB) + noise(MIB)
    stream = wrap(content)
    assert expand(stream, len(content)) == content
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            expand(stream, len(content) - 1)
        assert tracemalloc.get_traced_memory()[1] < KEPT_AT_ONCE + 8 * MIB
    finally:
        tracemalloc.stop()
