"""What is fuzzed: each reader as a function of bytes that may raise the service's own errors and nothing else."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
import pydicom.encaps
from pydicom.dataset import Dataset, FileMetaDataset

from app.errors import KronserveError
from app.readers.bounded import gunzip, inflate, inflate_raw, unzip_members
from app.readers.columnar import read_columnar
from app.readers.dates import NotADate, parse_dates
from app.readers.dicom_jpeg import packed, unpacked
from app.readers.dicom_jpeg_process import check_frame
from app.readers.formats import EVERYTHING, Format, read_series
from app.readers.multipart import read_parts
from app.readers.numeric_json import read_document
from app.readers.regularity import settle
from app.readers.table import MAX_TEXT
from app.readers.volumes import read_json_volume, read_volume

LIMIT = 1 << 16
"""Bytes that a reader may make of its input; small, so that what passes it is seen."""


@dataclass(frozen=True)
class Target:
    """`run` on any bytes returns, or the reader is at fault; `seeds` are inputs to begin from.

    pace: inputs that a core takes in a second. A run with a seed tries so many, whatever the machine.
    starts_process: every input takes a good part of a second.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    pace: int
    starts_process: bool = False


def _allowing(read: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with contextlib.suppress(KronserveError):
            read(data)

    return run


def _series(kind: Format) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        for series in read_series(data, kind, LIMIT).series:
            regular, report = settle(series, 2, fill="linear" if len(data) % 2 else None)
            assert np.isfinite(regular.values).all()
            assert regular.values.shape == (len(regular.names), report.used)

    return _allowing(read)


def _volume(data: bytes) -> None:
    volume = read_volume(data, LIMIT)
    assert volume.data.ndim == 3
    assert volume.data.size
    assert volume.data.dtype.kind != "f" or np.isfinite(volume.data).all()


def _dates(data: bytes) -> None:
    with contextlib.suppress(NotADate):
        parse_dates(data.decode("latin-1").split("\n"), None, "Europe/Berlin" if len(data) % 2 else None)


def _form(data: bytes) -> None:
    read_parts(data, "multipart/form-data; boundary=b")


def _columns(kind: str) -> Callable[[bytes], None]:
    """What the process that reads tables does, but for its end."""
    from app.readers.columnar_process import columns_of, use_little

    use_little()

    def read(data: bytes) -> None:
        with contextlib.suppress(MemoryError):
            said, arrays = columns_of(data, kind, LIMIT, EVERYTHING)
            assert arrays["values"].shape[0] == len(said["names"])
            assert sum(array.nbytes for array in arrays.values()) < MAX_TEXT * LIMIT

    return _allowing(read)


def _process(data: bytes) -> None:
    """A process of its own for each input: it may die of it, and that is a refusal."""
    kind, content = data[:1], data[1:]
    if kind in (b"0", b"1"):
        read_columnar(content, "parquet" if kind == b"0" else "arrow", EVERYTHING, LIMIT)
    elif content:
        syntax = {b"2": pydicom.uid.JPEGLosslessSV1, b"3": pydicom.uid.JPEG2000Lossless}
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = syntax.get(kind, pydicom.uid.JPEGLSLossless)
        one.Rows, one.Columns, one.BitsAllocated, one.BitsStored = 2, 2, 16, 16
        one.HighBit, one.PixelRepresentation, one.PixelData = 15, 0, pydicom.encaps.encapsulate([content + b"\0"])
        file = packed(one, 0, 1, 8)
        assert file is not None
        (pixels,) = unpacked([file], several=False)
        assert pixels.shape == (1, 2, 2)


def _parquet(compression: str = "none", stamps: bool = True) -> bytes:
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(_table(stamps), stream, compression=compression, store_schema=False)
    return stream.getvalue()


def _arrow(file: bool, compression: str | None = None) -> bytes:
    import pyarrow.ipc

    stream, table = io.BytesIO(), _table(file)
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with (pyarrow.ipc.new_file if file else pyarrow.ipc.new_stream)(stream, table.schema, options=options) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _table(stamps: bool) -> Any:
    """A wide table with timestamps, or a long one with written dates."""
    import pyarrow as pa

    if stamps:
        return pa.table({"ds": pa.array([0, 3600, 7200], pa.timestamp("s")), "a": [1.0, None, 3.0], "b": [1, 2, 3]})
    ids = pa.array(["x", "x", "y"]).dictionary_encode()
    return pa.table({"unique_id": ids, "ds": ["2020-01-01", "2020-01-02", "2020-01-01"], "y": [1.0, 2.0, 3.0]})


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, volume=array)
    return stream.getvalue()


def _nifti(array: np.ndarray) -> bytes:
    import nibabel

    data: bytes = nibabel.Nifti1Image(array, np.diag([2.0, 1.0, 3.0, 1.0])).to_bytes()
    return data


def _nrrd(array: np.ndarray, encoding: str) -> bytes:
    import nrrd

    stream = io.BytesIO()
    nrrd.write(stream, array, {"encoding": encoding, "space": "LPS", "space directions": np.eye(3)})
    return re.sub(rb"\n# on [^\n]*", b"", stream.getvalue(), count=1)  # without the date of today


def _metaimage(array: np.ndarray) -> bytes:
    size = " ".join(map(str, array.shape))
    head = f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
    return f"{head}ElementDataFile = LOCAL\n".encode() + array.tobytes(order="F")


def _dicom(number: int, deflated: bool = False) -> bytes:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = pydicom.uid.CTImageStorage
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = pydicom.uid.UID(f"1.2.{number + 1}")
    explicit, packed = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.DeflatedExplicitVRLittleEndian
    one.file_meta.TransferSyntaxUID = packed if deflated else explicit
    one.SeriesInstanceUID, one.Modality = "1.2", "CT"
    one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing = [0, 0, number], [1, 0, 0, 0, 1, 0], [1, 1]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.Rows, one.Columns = 1, "MONOCHROME2", 2, 2
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelData = bytes(range(8))
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, one, enforce_file_format=True)
    return stream.getvalue()


def _zip(files: list[bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, data in enumerate(files):
            archive.writestr(zipfile.ZipInfo(f"{number}.dcm"), data, zipfile.ZIP_DEFLATED)  # dated 1980
    return stream.getvalue()


_JPEG = (
    b"\xff\xd8\xff\xc3\0\x0b\x10\0\2\0\2\1\1\x11\0\xff\xc4\0\x16\0\0\0\0\0\3" + bytes(11) + b"\0\1\2"
    b"\xff\xda\0\x08\1\1\0\1\0\0\x1a\x2b\xff\xd9"
)
_JPEG2000 = b"\xff\x4f\xff\x51\0\x29\0\0" + bytes(
    [0, 0, 0, 2] * 2 + [0] * 8 + [0, 0, 0, 2] * 2 + [0] * 8 + [0, 1, 15, 1, 1]
)
_CUBE = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
_WIDE = b"date,a,b\n2020-01-01,1,2.5\n2020-01-02,,-3e2\n2020-01-04,5,6\n"
_LONG = b"unique_id;ds;y\nA;01.02.2020 10:00;1,5\nA;13.02.2020 10:00;2\nB;13.02.2020 10:00;3\n"

TARGETS: dict[str, Target] = {
    "csv": Target(_series("csv"), (_WIDE, _LONG, "date\té\n2020-01-01T00:00Z\t1\n".encode("latin-1")), pace=500),
    "json": Target(
        _series("json"),
        (
            b'{"target": [[1, 2.5], [3, 4]], "names": ["a", "b"], "start": "2020-01-31", "freq": "ME", "horizon": 3}',
            b'[{"ds": "2020-01-01", "y": 1}, {"ds": "2020-01-02", "y": null}]',
        ),
        pace=10_000,
    ),
    "npy": Target(_series("npy"), (_npy(np.ones((2, 5))), _npy(np.arange(3))), pace=30_000),
    "dates": Target(
        _allowing(_dates),
        (b"2020-01-01T10:00:00+01:00", b"13/01/2020 10:00 PM\n12/01/2020 01:00 AM", b"1 Jul 2020"),
        pace=100,
    ),
    "document": Target(
        _allowing(lambda data: read_document(data, "a", LIMIT)), (b'{"a": [[1], [2]], "b": {"c": [1]}}',), pace=70_000
    ),
    "nifti": Target(_allowing(_volume), (_nifti(_CUBE), gzip.compress(_nifti(_CUBE.astype("f4")), mtime=0)), pace=4000),
    "dicom": Target(
        _allowing(_volume),
        (_zip([_dicom(0), _dicom(1)]), _dicom(0), _dicom(1, deflated=True), _zip([_dicom(0, True)])),
        pace=1000,
    ),
    "nrrd": Target(_allowing(_volume), (_nrrd(_CUBE, "raw"), _nrrd(_CUBE, "gzip")), pace=2000),
    "metaimage": Target(_allowing(_volume), (_metaimage(_CUBE),), pace=2000),
    "npz": Target(_allowing(_volume), (_npz(_CUBE), _npy(_CUBE)), pace=3000),
    "volume-json": Target(
        _allowing(lambda data: read_json_volume(data, LIMIT)), (b'{"volume": [[[0, 1]], [[1, 0]]]}',), pace=60_000
    ),
    "zip": Target(_allowing(lambda data: list(unzip_members(data, LIMIT))), (_zip([b"abc" * 50, b""]),), pace=60_000),
    "gzip": Target(_allowing(lambda data: gunzip(data, LIMIT)), (gzip.compress(b"abc" * 50, mtime=0),), pace=30_000),
    "deflate": Target(
        _allowing(lambda data: (inflate_raw if len(data) % 2 else inflate)(data, LIMIT)),
        (b"x\x9cKLJ\x06\x00\x02M\x01'",),
        pace=90_000,
    ),
    "parquet": Target(
        _columns("parquet"), (_parquet(), _parquet("zstd"), _parquet("snappy", stamps=False)), pace=10_000
    ),
    "arrow": Target(
        _columns("arrow"), (_arrow(True), _arrow(False), _arrow(True, "zstd"), _arrow(False, "lz4")), pace=20_000
    ),
    "jpeg-header": Target(
        _allowing(lambda data: check_frame(data, (2, 2), 16)),
        (_JPEG, _JPEG.replace(b"\xc3", b"\xf7"), _JPEG2000),
        pace=30_000,
    ),
    "process": Target(
        _allowing(_process),
        (b"0" + _parquet(), b"1" + _arrow(True), b"2" + _JPEG, b"3" + _JPEG2000),
        starts_process=True,
        pace=1,
    ),
    "form": Target(
        _allowing(_form),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--\r\n',),
        pace=9000,
    ),
}
"""Every reader. What other processes do is tried in this one, where coverage guides, and as the service has it."""
