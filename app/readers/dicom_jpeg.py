"""Pixels of DICOM files compressed as JPEG, JPEG-LS or JPEG 2000: the extra `dicom-jpeg`, in a process of its own.

Which library decodes what (PS3.5, 8.2): GDCM JPEG, CharLS JPEG-LS, OpenJPEG JPEG 2000 and HTJ2K. All are native code,
and images say themselves how large they are.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, UnusableInput
from app.readers.isolated import SECONDS, ask

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_GDCM, _CHARLS, _OPENJPEG = ("gdcm", "gdcm"), ("jpeg_ls", "pyjpegls"), ("openjpeg", "pylibjpeg")
_DECODERS = {
    "1.2.840.10008.1.2.4.50": _GDCM,  # baseline
    "1.2.840.10008.1.2.4.51": _GDCM,  # extended
    "1.2.840.10008.1.2.4.57": _GDCM,  # lossless
    "1.2.840.10008.1.2.4.70": _GDCM,  # lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": _CHARLS,
    "1.2.840.10008.1.2.4.81": _CHARLS,
    "1.2.840.10008.1.2.4.90": _OPENJPEG,
    "1.2.840.10008.1.2.4.91": _OPENJPEG,
    "1.2.840.10008.1.2.4.201": _OPENJPEG,
    "1.2.840.10008.1.2.4.202": _OPENJPEG,
    "1.2.840.10008.1.2.4.203": _OPENJPEG,
}
"""By transfer syntax: the module that must be there, and what pydicom calls it."""

_EXTENDED = "1.2.840.10008.1.2.4.51"

_TOLD = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")

_PIXEL_SPACE = 24
"""Bytes that decoding one frame takes for each of its pixels, its result apart."""

_BYTES_A_SECOND = 4 << 20
"""The least speed of decoding that is waited for."""


@dataclass(frozen=True)
class Packed:
    """The compressed pixels of one file, and what its header says of them; size: bytes that they claim to be."""

    number: int
    header: dict[str, Any]
    pixels: bytes
    size: int


def packed(dataset: Dataset, number: int, frames: int, size: int) -> Packed | None:
    """A file's pixels for `unpacked`; None where they are not of these syntaxes.

    number: of the file among those of its series, for errors.

    Raises:
        UnusableInput: they cannot be decoded here. InvalidRequest: the file does not say what they are.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    decoder = _DECODERS.get(str(syntax))
    if decoder is None:
        return None
    module, plugin = decoder
    if find_spec(module) is None:
        raise UnusableInput(
            f"pixels compressed as {syntax.name} need the extra 'dicom-jpeg' on the server (pip install "
            "'kronserve[dicom-jpeg]'); or send them uncompressed or as RLE"
        )
    try:
        header: dict[str, Any] = {key: int(dataset[key].value) for key in _TOLD if key in dataset}
        tables = {key: base64.b64encode(dataset[key].value).decode() for key in _OFFSETS if key in dataset}
        pixels = bytes(dataset.PixelData)
    except Exception as exc:  # empty, or of another kind than the attribute has
        raise InvalidRequest("the DICOM file does not say how its pixels are laid out") from exc
    if syntax == _EXTENDED and header.get("BitsStored") != 8:
        raise UnusableInput(
            "pixels compressed as lossy JPEG of 12 bits are not decoded here; send them uncompressed or as RLE"
        )
    header |= {"NumberOfFrames": frames, "TransferSyntaxUID": str(syntax)}
    question = {"number": number, "plugin": plugin, "header": header, "tables": tables}
    return Packed(number, question, pixels, size)


def unpacked(files: Sequence[Packed], several: bool) -> list[npt.NDArray[Any]]:
    """The pixels of every file (frames, rows, columns), as they are stored.

    several: whether errors name the file.

    Raises:
        InvalidRequest: broken, or of another size than the header says. PayloadTooLarge: they take too much memory or
        time. Unavailable: no process can be started.
    """
    claimed = sum(one.size for one in files)
    pixels = max(one.header["header"]["Rows"] * one.header["header"]["Columns"] for one in files)
    question = {"several": several, "files": [one.header | {"length": len(one.pixels)} for one in files]}
    _, arrays = ask(
        "app.readers.dicom_jpeg_process",
        "the compressed DICOM image",
        question,
        b"".join(one.pixels for one in files),
        memory=2 * claimed + _PIXEL_SPACE * pixels,
        seconds=SECONDS + claimed / _BYTES_A_SECOND,
    )
    return [np.asarray(arrays[str(one.number)]) for one in files]
