"""Bytes from strangers, read and decompressed under a limit.

gzip, deflate and zip expand up to a thousandfold, so every expansion here is counted while it streams and stops at the
limit: no call holds more than its limit and one block, whatever the stream claims or hides.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request

from app.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from app.readers.byte_budget import SMALL, Lease
from app.readers.offload import offload

Buffer = bytes | bytearray | memoryview
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

BLOCK = 1 << 16
"""Bytes fed to, or taken from, a decompressor at a time."""

KEPT_AT_ONCE, USUAL_EXPANSION = 32 << 20, 20
"""Bytes up to which an expansion is kept in any case; past them, what expands more than text does is counted first."""

MAX_GZIP_MEMBERS = 1 << 14
"""A stream of millions of empty members costs time without ever reaching the byte limit."""

MAX_ZIP_DIRECTORY = 1 << 19
"""Bytes of a zip's central directory: a hundred or so for each file in it."""

MAX_ZIP_ENTRIES = 4096
"""Files of a zip: more than a series of slices has."""

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"

MAX_EXPANSION = 1032
"""Bytes that one byte of a deflate stream can become at most (zlib's technical notes)."""

_END_OF_ZIP = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR_SIZE = 20


def gunzip(data: Buffer, limit: int) -> bytearray:
    """Decompress a gzip stream, of one member or several.

    Raises:
        PayloadTooLarge: it expands past `limit` bytes.
        InvalidRequest: it is broken, truncated, or followed by something else.
    """
    return _expanded(lambda: _gzip_blocks(data), limit, "gzip stream")


def gunzip_prefix(data: Buffer, size: int) -> bytes:
    """The first `size` bytes (or fewer, if it ends before) of a gzip stream, without expanding the rest."""
    prefix = bytearray()
    for block, _ in _gzip_blocks(data):
        prefix += block
        if len(prefix) >= size:
            break
    return bytes(prefix[:size])


def inflate(data: Buffer, limit: int) -> bytearray:
    """Decompress HTTP's `deflate`: a zlib stream, or the bare deflate stream that some clients send for it.

    Raises:
        PayloadTooLarge: it expands past `limit` bytes.
        InvalidRequest: it is broken, truncated, or followed by something else.
    """
    head = bytes(data[:2])
    is_zlib = len(head) == 2 and head[0] & 0x0F == 8 and int.from_bytes(head, "big") % 31 == 0
    wbits = zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS
    return _expanded(lambda: _deflate_blocks(data, wbits), limit, "deflate stream")


def inflate_raw(data: Buffer, limit: int) -> bytearray:
    """Decompress a deflate stream without any header, as DICOM's deflated transfer syntax has it; padding may follow.

    Raises:
        PayloadTooLarge: it expands past `limit` bytes. InvalidRequest: it is broken or truncated.
    """
    name = "deflate stream"
    return _expanded(lambda: _stream_blocks(memoryview(data), 0, -zlib.MAX_WBITS, name), limit, name)


def zip_directory(data: Buffer) -> list[zipfile.ZipInfo]:
    """The entries of a zip archive, after its directory's size has been checked.

    Raises:
        InvalidRequest: it is not a zip archive, or its directory is larger than a few arrays need.
    """
    end = bytes(data[-_END_OF_ZIP.size :])
    if len(end) < _END_OF_ZIP.size or not end.startswith(b"PK\x05\x06") or end[-2:] != b"\0\0":
        raise InvalidRequest("the zip archive is truncated, or has a comment")
    directory_size = _END_OF_ZIP.unpack(end)[5]
    locator_at = len(data) - _END_OF_ZIP.size - _ZIP64_LOCATOR_SIZE
    has_zip64_end = locator_at >= 0 and bytes(data[locator_at : locator_at + 4]) == b"PK\x06\x07"
    if directory_size > MAX_ZIP_DIRECTORY or has_zip64_end:
        raise InvalidRequest(f"the zip archive's directory is larger than {MAX_ZIP_DIRECTORY} bytes")
    with _broken_zip_is_invalid(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ZIP_ENTRIES:
        raise PayloadTooLarge(f"the zip archive holds {len(entries)} entries; at most {MAX_ZIP_ENTRIES} are read")
    for entry in entries:
        _check_name(entry)
    return entries


def unzip_members(data: Buffer, limit: int) -> Iterator[tuple[str, bytearray]]:
    """Every file of a zip archive in turn, with its name; the sum of their sizes is bounded by `limit`.

    Raises as `unzip_member` does.
    """
    left, entries = limit, zip_directory(data)
    with _broken_zip_is_invalid(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in entries:
            if not entry.is_dir():
                content = _unzip(archive, entry, left)
                left -= len(content)
                yield entry.filename, content


def unzip_member(data: Buffer, member: zipfile.ZipInfo, limit: int) -> bytearray:
    """Decompress one stored or deflated entry of a zip archive; its checksum is verified.

    Raises:
        PayloadTooLarge: it is, or claims to be, larger than `limit` bytes.
        InvalidRequest: it is broken, encrypted, or compressed by another method.
    """
    with _broken_zip_is_invalid(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        return _unzip(archive, member, limit)


async def read_body(
    source: Receive | Request,
    headers: Iterable[tuple[bytes, bytes]],
    limit: int,
    decoded_limit: int | None = None,
    lease: Lease | None = None,
) -> bytes | bytearray:
    """The whole body of an HTTP request, its Content-Encoding undone.

    Args:
        source: the ASGI `receive` callable, or a request that has one.
        headers: the raw ASGI headers, names in lower case.
        limit: most bytes taken from the wire; a larger Content-Length is refused before anything is read.
        decoded_limit: most bytes after Content-Encoding; `limit` if None.
        lease: counts the bytes against the service's budget, for as long as the caller keeps it.

    Raises:
        Overloaded: the budget has no room for it.
        PayloadTooLarge: past a limit.
        UnsupportedEncoding: a Content-Encoding other than identity, gzip, deflate.
        InvalidRequest: Content-Length is not a number, Content-Encoding is repeated, or the encoded body is broken.
        ClientDisconnect: the client left before the end.
    """
    encoding: bytes | None = None
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit():
                raise InvalidRequest("Content-Length is not a number")
            # int() of an absurdly long digit string is an error of its own, and the value past any limit.
            if len(value) > 18 or int(value) > limit:
                raise PayloadTooLarge(f"the body is larger than the limit of {limit} bytes")
        elif name == b"content-encoding":
            if encoding is not None:
                raise InvalidRequest("Content-Encoding is given more than once")
            encoding = value.strip().lower()
    if encoding not in (None, b"", b"identity", b"gzip", b"x-gzip", b"deflate"):
        raise UnsupportedEncoding("Content-Encoding must be gzip, deflate or identity")

    body = await _read_wire(source.receive if isinstance(source, Request) else source, limit, lease)
    if encoding in (None, b"", b"identity"):
        return body
    decode = inflate if encoding == b"deflate" else gunzip
    return await _expand(decode, body, limit if decoded_limit is None else decoded_limit, lease)


async def _read_wire(receive: Receive, limit: int, lease: Lease | None) -> bytes | bytearray:
    body: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise PayloadTooLarge(f"the body is larger than the limit of {limit} bytes")
        if lease is not None and (body or len(chunk) > SMALL):
            await lease.take(len(chunk))
        if not body:
            body = chunk  # most bodies arrive in one message: no copy
        elif chunk:
            if isinstance(body, bytes):
                body = bytearray(body)
            body += chunk
        if not message.get("more_body", False):
            return body


async def _expand(
    decode: Callable[[Buffer, int], bytearray], body: Buffer, limit: int, lease: Lease | None
) -> bytearray:
    """Decompress in a thread. What it could become at most is held before, what it has become afterwards."""
    largest = min(limit, MAX_EXPANSION * len(body))
    if lease is not None:
        await lease.take(largest)
    decoded = await offload(largest, lambda: decode(body, limit))
    if lease is not None:
        lease.settle(len(decoded))
    return decoded


Expansion = Iterator[tuple[bytes, int]]
"""Blocks, each with the compressed bytes that it and those before it took."""


def _expanded(start: Callable[[], Expansion], limit: int, name: str) -> bytearray:
    """All that an expansion gives. What looks like a bomb is gone through without keeping it, and then once more."""
    whole, size, mark, counted = bytearray(), 0, 0, False
    for block, taken in start():
        size += len(block)
        if size > limit:
            raise PayloadTooLarge(f"{name}: expands past the limit of {limit} bytes")
        if size <= KEPT_AT_ONCE:
            mark = taken
        elif size - KEPT_AT_ONCE > USUAL_EXPANSION * (taken - mark) + 2 * BLOCK:
            whole, counted = bytearray(), True
        if not counted:
            whole += block
    return _collect((block for block, _ in start()), size, name) if counted else whole


def _collect(blocks: Iterable[bytes], limit: int, name: str) -> bytearray:
    whole = bytearray()
    for block in blocks:
        if len(whole) + len(block) > limit:
            raise PayloadTooLarge(f"{name}: expands past the limit of {limit} bytes")
        whole += block
    return whole


def _unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytearray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidRequest("only stored and deflated zip entries are read")
    if member.flag_bits & 0x1:
        raise InvalidRequest("encrypted zip entries are not read")
    if member.file_size > limit:
        raise PayloadTooLarge(f"a zip entry claims {member.file_size} bytes, more than the limit of {limit}")
    with archive.open(member) as stream:
        return _collect(iter(lambda: stream.read(BLOCK), b""), limit, "zip entry")


def _gzip_blocks(data: Buffer) -> Expansion:
    view, position, members = memoryview(data), 0, 0
    while members == 0 or position < len(view):
        if members and not bytes(view[position : position + BLOCK]).strip(b"\0"):
            position += BLOCK  # gzip pads the last tape block with zeros
            continue
        if members == MAX_GZIP_MEMBERS:
            raise InvalidRequest(f"gzip stream: more than {MAX_GZIP_MEMBERS} members")
        position = yield from _stream_blocks(view, position, zlib.MAX_WBITS | 16, "gzip stream")
        members += 1


def _deflate_blocks(data: Buffer, wbits: int) -> Expansion:
    view = memoryview(data)
    end = yield from _stream_blocks(view, 0, wbits, "deflate stream")
    if end != len(view):
        raise InvalidRequest("deflate stream: followed by other bytes")


def _stream_blocks(view: memoryview, position: int, wbits: int, name: str) -> Generator[tuple[bytes, int], None, int]:
    """Yield one compressed stream's content in blocks; return (to `yield from`) the position after its end."""
    stream = zlib.decompressobj(wbits)
    try:
        while not stream.eof:
            fed: Buffer = stream.unconsumed_tail
            if not fed:
                fed = view[position : position + BLOCK]
                position += len(fed)
            block = stream.decompress(fed, BLOCK)
            # zlib may hold back output that did not fit: only "nothing in, nothing out" means that the end is missing.
            if not fed and not block and not stream.eof:
                raise InvalidRequest(f"{name}: truncated")
            if block:
                yield block, position - len(stream.unconsumed_tail)
    except zlib.error as exc:
        raise InvalidRequest(f"{name}: broken ({exc})") from exc
    return position - len(stream.unused_data)


def _check_name(entry: zipfile.ZipInfo) -> None:
    """Nothing is ever written by these names; who makes an archive with such ones means harm."""
    name = entry.filename.replace("\\", "/")
    if not name:
        raise InvalidRequest("the zip archive has an entry without a name")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        raise InvalidRequest("the zip archive has an entry with an absolute or a parent path")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InvalidRequest("the zip archive has a symbolic link")


@contextmanager
def _broken_zip_is_invalid() -> Iterator[None]:
    """Whatever zipfile raises on a broken archive, as InvalidRequest."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, OSError, NotImplementedError) as exc:
        raise InvalidRequest("the zip archive is broken") from exc
