"""Which coding a client asks for, and that what it gets unpacks."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest

from app.api.compression import accepted, compress, shrinks


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("GZIP;Q=1.0", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=0", None),
        ("*;q=0", None),
        ("br, zstd", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=high, deflate;q=0.1", "deflate"),
        ("", None),
        (",;,=", None),
    ],
)
def test_accept_encoding(header: str, coding: str | None):
    assert accepted(header.encode()) == coding


def test_bodies_unpack():
    pieces = [b"{}", bytes(100_000), b"end"]
    assert gzip.decompress(compress(pieces, "gzip")) == b"".join(pieces)
    assert zlib.decompress(compress(pieces, "deflate")) == b"".join(pieces)


FLOATS = np.random.default_rng(0).normal(size=4096).astype(np.float32)


@pytest.mark.parametrize(
    ("pieces", "worthwhile"),
    [
        ([bytes(8), FLOATS.tobytes()], False),
        ([FLOATS.tobytes(), bytes(100)], False),
        ([str(FLOATS.tolist()).encode()], True),
        ([memoryview(np.zeros(4096, np.float32)).cast("B"), b"{}"], True),
        ([FLOATS.tobytes()[:300]], False),
        ([b""], False),
    ],
)
def test_what_is_worth_compressing(pieces: list[bytes | memoryview], worthwhile: bool):
    assert shrinks(pieces) == worthwhile
