"""10 MB that expand past every limit are refused with bounded memory, however they are packed."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from app.errors import InvalidRequest, PayloadTooLarge
from app.readers.bounded import gunzip, inflate
from app.readers.volumes import read_volume
from tests.readers import dicom_files as made

MIB = 1 << 20
LIMIT = 32 * MIB
GIGABYTES = 0xFFFF0000
SIZE = 10 * MIB
"""Packed; more than nine gigabytes unpacked."""


def deflated(wbits: int) -> bytes:
    """SIZE bytes of deflated zeros, from one block repeated: between full flushes, blocks do not depend on another."""
    packer = zlib.compressobj(9, wbits=wbits)
    head = packer.compress(bytes(8 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(8 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * ((SIZE - len(head)) // len(block))


def member(name: str, claim: int) -> bytes:
    """A zip with one entry of SIZE bytes that says it is `claim` bytes large."""
    body = deflated(-15)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), body)
    whole = bytearray(stream.getvalue())
    directory = whole.rfind(b"PK\x01\x02")
    for method, uncompressed in ((8, 22), (directory + 10, directory + 24)):
        whole[method : method + 2] = zipfile.ZIP_DEFLATED.to_bytes(2, "little")
        whole[uncompressed : uncompressed + 4] = claim.to_bytes(4, "little")
    return bytes(whole)


def dicom() -> bytes:
    honest = made.written(made.dataset(made.voxels()[0], 0, syntax="1.2.840.10008.1.2.1.99"))
    start = 144 + int.from_bytes(honest[140:144], "little")
    return honest[:start] + deflated(-15)


def nifti() -> bytes:
    """An honest header of 4 MB of voxels, and gigabytes behind it."""
    head = nib.Nifti1Image(np.zeros((128, 128, 256), np.uint8), np.eye(4)).to_bytes()
    return gzip.compress(head, 9) + deflated(31)


BOMBS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
    "gzip": (lambda: deflated(31), lambda data: gunzip(data, LIMIT)),
    "deflate": (lambda: deflated(15), lambda data: inflate(data, LIMIT)),
    "nifti.gz": (nifti, lambda data: read_volume(data, LIMIT)),
    "dicom": (dicom, lambda data: read_volume(data, LIMIT)),
    "zip": (lambda: member("a.dcm", GIGABYTES), lambda data: read_volume(data, LIMIT)),
    "npz": (lambda: member("volume.npy", GIGABYTES), lambda data: read_volume(data, LIMIT)),
    "zip that lies": (lambda: member("a.dcm", LIMIT // 2), lambda data: read_volume(data, LIMIT)),
    "npz that lies": (lambda: member("volume.npy", LIMIT // 2), lambda data: read_volume(data, LIMIT)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    make, read = BOMBS[name]
    data = make()
    assert SIZE * 0.99 < len(data) < SIZE * 1.01
    tracemalloc.start()
    try:
        # What an entry that lies expands to is read as far as it claims, and then has another checksum.
        with pytest.raises(InvalidRequest if "lies" in name else PayloadTooLarge):
            read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * MIB
